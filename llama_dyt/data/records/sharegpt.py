"""ShareGPT's conversations: `from` and `value`, with `human` and `gpt` for who speaks."""

from __future__ import annotations

from llama_dyt.data.records.messages import Messages


class ShareGpt(Messages):
    name, order = "sharegpt", 40
    columns = parts = ("conversations", "from", "value")
    needed, inner = ("conversations",), ("from", "value")
    roles = {**Messages.roles, "human": "user", "gpt": "assistant", "observation": "tool"}


SHAPE = ShareGpt()
