"""Records of a prompt and its completion, as `yizhongw/self_instruct` has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_dyt.data.formats.record_files import check_text
from llama_dyt.data.records.record_shape import Pair, RecordShape, Unusable, text_of


class PromptCompletion(RecordShape):
    name, order = "prompt_completion", 10
    columns = needed = ("prompt", "completion")

    def read(self, record: Mapping[str, Any], names: Mapping[str, str]) -> Pair:
        prompt, completion = (text_of(record, names[column], check_text) for column in self.columns)
        if not completion:
            raise Unusable(f"field '{names['completion']}' is empty, so there is nothing to learn")
        return Pair(prompt, completion)


SHAPE = PromptCompletion()
