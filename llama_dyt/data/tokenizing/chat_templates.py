"""Chat templates that are built in, for tokenizers that bring none."""

from __future__ import annotations

CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{{- '\\n' -}}"
    "{%- else -%}{{- message['content'] + '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""OpenAI's chat markup, as Qwen and many others have it; learned are an answer and the token that ends it."""

BUILT_IN: dict[str, tuple[str, tuple[str, ...]]] = {"chatml": (CHATML, ("<|im_start|>", "<|im_end|>"))}
"""Name → (template, the special tokens it writes)."""
