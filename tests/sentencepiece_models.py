"""SentencePiece models of LLaMA's kind, made small: for the tests of tokenizers and of what is trained with one."""

from __future__ import annotations

import io
import pydoc
import re
from functools import cache
from pathlib import Path

SPACE = "\u2581"
LAST_OF_ALL = -1e9
CODE = 'def f(x):\n        if x:\n            return  "a"   # two  spaces,    four\n'


@cache
def sample_text() -> str:
    """Prose and indented code, the same in every process."""
    documents = "\n".join(pydoc.plain(pydoc.render_doc(name)) for name in ("json", "random"))
    return re.sub("0x[0-9a-f]{6,}", "0x7f", documents) + CODE * 20


def write_model(path: Path, *, vocab_size: int = 600, **changes) -> Path:
    """Train a model as LLaMA's was, some of the trainer's arguments changed.

    Runs of spaces have low ids and merge last of all, as in LLaMA's own file.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    model = io.BytesIO()
    llamas = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample_text().splitlines()),
        model_writer=model,
        vocab_size=vocab_size,
        num_threads=1,  # one result, whatever the machine
        minloglevel=2,
        **{**llamas, **changes},
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    for piece in proto.pieces:
        if set(piece.piece) == {SPACE} and proto.trainer_spec.model_type == 2:
            piece.score = LAST_OF_ALL
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return path
