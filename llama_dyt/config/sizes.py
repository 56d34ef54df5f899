"""Every model size that has a name, and the names it goes by.

Its own file because it is a table of published figures: the figures change for other reasons than the program does.
Initial alphas are not here: they depend on the width alone and live with the norms.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from llama_dyt.config.suggest import unknown
from llama_dyt.errors import ConfigurationError


@dataclass(frozen=True)
class Size:
    """The figures that make one LLaMA-shaped decoder.

    `max_length` is the longest sequence, in tokens, the published model was trained on; a run may ask for another.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int = 32000
    max_length: int = 4096
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def with_overrides(
        self,
        *,
        hidden_width: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
    ) -> Size:
        """This size with the figures given by hand in place of its own; None keeps a figure.

        Where every head had its own keys and values, a new number of heads keeps it that way.
        """
        if num_heads is not None and num_key_value_heads is None and self.num_key_value_heads == self.num_heads:
            num_key_value_heads = num_heads
        given = {
            "hidden_size": hidden_width,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "num_key_value_heads": num_key_value_heads,
            "intermediate_size": intermediate_size,
        }
        return replace(self, **{name: value for name, value in given.items() if value is not None})


_LLAMA3 = {"vocab_size": 128256, "max_length": 8192, "rope_theta": 500_000.0}

SIZES: dict[str, Size] = {
    # LLaMA-1: Meta's params.json (norm_eps is 1e-5 in the 65B release only). Colossal-AI's table had an
    # intermediate size of 13760 for 13B and 17888 for 30B; these are the released ones.
    "llama1_7b": Size(4096, 32, 32, 32, 11008, max_length=2048, rms_norm_eps=1e-6),
    "llama1_13b": Size(5120, 40, 40, 40, 13824, max_length=2048, rms_norm_eps=1e-6),
    "llama1_30b": Size(6656, 60, 52, 52, 17920, max_length=2048, rms_norm_eps=1e-6),
    "llama1_65b": Size(8192, 80, 64, 64, 22016, max_length=2048),
    # LLaMA-2 as the DyT paper trained it (arXiv 2503.10622).
    "llama2_1.4b": Size(2048, 24, 16, 4, 6144),
    "llama2_7b": Size(4096, 32, 32, 32, 11008),
    "llama2_13b": Size(5120, 40, 40, 40, 13824),
    "llama2_34b": Size(8192, 48, 64, 8, 22016),
    "llama2_70b": Size(8192, 80, 64, 8, 28672),
    # LLaMA-3 and its smaller relatives, from the DyT authors' LLaMA program.
    "llama3_194m": Size(1024, 10, 8, 8, 2816, **_LLAMA3),
    "llama3_1.8b": Size(2048, 24, 16, 8, 7168, **_LLAMA3),
    "llama3_3.2b": Size(3072, 24, 24, 8, 8192, **_LLAMA3),
    "llama3_8b": Size(4096, 32, 32, 8, 14336, **_LLAMA3),
    "llama3_70b": Size(8192, 80, 64, 8, 28672, **_LLAMA3),
    # Colossal-AI's benchmark: HuggingFace's defaults but for what is named there, hence the eps.
    "100m": Size(1024, 4, 32, 32, 2048, rms_norm_eps=1e-6),
    "5b": Size(4096, 32, 32, 8, 11008, rms_norm_eps=1e-6),
    # Small enough to train on a laptop's CPU.
    "15m": Size(288, 6, 6, 6, 768, max_length=1024),
}

ALIASES: dict[str, str] = {
    # A bare size is LLaMA-2's where LLaMA-2 has it, else the only family that does.
    "7b": "llama2_7b",
    "13b": "llama2_13b",
    "34b": "llama2_34b",
    "70b": "llama2_70b",
    "1.4b": "llama2_1.4b",
    "30b": "llama1_30b",
    "65b": "llama1_65b",
    "194m": "llama3_194m",
    "1.8b": "llama3_1.8b",
    "3.2b": "llama3_3.2b",
    "8b": "llama3_8b",
    # "LLaMA" without a number is the first.
    "llama_7b": "llama1_7b",
    "llama_13b": "llama1_13b",
    "llama_30b": "llama1_30b",
    "llama_65b": "llama1_65b",
    # The paper calls it 33B, Meta's files 30B.
    "33b": "llama1_30b",
    "llama_33b": "llama1_30b",
    "llama1_33b": "llama1_30b",
    "llama_100m": "100m",
    "llama_15m": "15m",
    "llama_5b": "5b",
}


def canonical_name(name: str) -> str | None:
    """The key of `SIZES` that `name` stands for, or None. Letter case, `-` for `_` and `llama-2` for `llama2` do not
    matter, so `LLaMA-2-7B` is `llama2_7b`."""
    plain = name.strip().lower().replace("-", "_")
    for family in "123":
        plain = plain.replace(f"llama_{family}_", f"llama{family}_")
    plain = ALIASES.get(plain, plain)
    return plain if plain in SIZES else None


def get_size(name: str) -> Size:
    """The size called `name`, an alias of it, or in the `config.json` of HuggingFace's form at the path `name`.

    Raises:
        ConfigurationError: nothing is called so (the nearest name is given), or the file cannot be used.
    """
    canonical = canonical_name(name)
    if canonical is not None:
        return SIZES[canonical]
    path = Path(name)
    if path.exists():
        return read_size(path)
    if _looks_like_path(name):
        raise ConfigurationError(
            f"--config {name}: no such file; give an HF config.json, a folder that holds one, or one of {_listing()}"
        )
    guess = unknown("model size", name, [*SIZES, *ALIASES], listed=False)
    raise ConfigurationError(f"--config: {guess} (known: {_listing()}, or the path of an HF config.json)")


def read_size(path: str | Path) -> Size:
    """The size in an HF config file, or in the `config.json` of a folder.

    Raises:
        ConfigurationError: the file is absent, is not JSON, or lacks a figure that has no usual value.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("it does not hold a JSON object")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"{path}: cannot be read as an HF config file: {reason}") from error
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    wrong = [key for key in needed if not isinstance(fields.get(key), int)]
    if wrong:
        raise ConfigurationError(f"{path}: no whole number for {', '.join(wrong)}; is it the config of a LLaMA?")
    # transformers 5 writes rope_theta inside rope_parameters; before, it stood at the top.
    rope = fields.get("rope_parameters") or {}
    return Size(
        hidden_size=fields["hidden_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        num_key_value_heads=fields.get("num_key_value_heads") or fields["num_attention_heads"],
        intermediate_size=fields["intermediate_size"],
        vocab_size=fields.get("vocab_size", 32000),
        max_length=fields.get("max_position_embeddings", 2048),
        rope_theta=float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0))),
        rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
    )


def _looks_like_path(name: str) -> bool:
    return "/" in name or name.startswith(".") or name.endswith(".json")


def _listing() -> str:
    return ", ".join([*SIZES, *(alias for alias in ALIASES if not alias.startswith("llama"))])
