"""The sample corpus as prepared tokens: what a run over `-d sample` reads when its sequences are to be shuffled."""

from __future__ import annotations

from pathlib import Path

from llama_dyt.core import files
from llama_dyt.data.preparing.prepare import prepare
from llama_dyt.data.preparing.settings import PrepareSettings
from llama_dyt.data.sample import SampleCorpus, building


def prepare_sample(corpus: SampleCorpus) -> str:
    """The folder of the training text's tokens, by the corpus' own tokenizer; made where it is not there yet.

    Any number of processes may call this at once, as they may `build_sample_corpus`.

    Raises:
        DataError: the folder cannot be written.
    """
    target = Path(corpus.tokens_folder)
    with building(target):
        if not target.is_dir():
            with files.made_whole(target) as aside:
                settings = PrepareSettings(
                    dataset=corpus.train_glob, output_path=str(aside), tokenizer=corpus.tokenizer_folder, num_workers=1
                )
                prepare(settings, show_progress=False)
    return str(target)
