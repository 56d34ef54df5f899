"""The name `sample`: the training files of the corpus that is built on this machine."""

from __future__ import annotations

from llama_dyt.data.formats.format import Format, open_files
from llama_dyt.data.formats.sources import SAMPLE, ReadOptions, Source


class SampleCorpusFormat(Format):
    name = "sample"
    order = 0

    def matches(self, dataset: str) -> bool:
        return dataset == SAMPLE

    def open(self, dataset: str, options: ReadOptions) -> Source:
        from llama_dyt.data.sample import build_sample_corpus

        return open_files(build_sample_corpus(options.sample_folder).train_glob, options)


FORMAT = SampleCorpusFormat()
