"""Stanford Alpaca's records: an instruction, perhaps an input to it, and the output; with the prompts of its authors.

Source of the two texts: https://github.com/tatsu-lab/stanford_alpaca (the prompts that its models were trained with).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_dyt.data.formats.record_files import check_text
from llama_dyt.data.records.record_shape import Pair, RecordShape, Unusable, text_of

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


class Alpaca(RecordShape):
    name, order = "alpaca", 20
    columns = ("instruction", "input", "output")
    needed = ("instruction", "output")

    def read(self, record: Mapping[str, Any], names: Mapping[str, str]) -> Pair:
        instruction, output = (text_of(record, names[column], check_text) for column in self.needed)
        given = record.get(names["input"])
        given = "" if given is None else text_of(record, names["input"], check_text)
        if not output:
            raise Unusable(f"field '{names['output']}' is empty, so there is nothing to learn")
        template = WITH_INPUT if given else WITHOUT_INPUT
        return Pair(template.format(instruction=instruction, input=given), output)


SHAPE = Alpaca()
