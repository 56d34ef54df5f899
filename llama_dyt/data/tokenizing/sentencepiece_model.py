"""A SentencePiece model as a HuggingFace tokenizer that encodes as SentencePiece does, which is seen by comparing them.

HuggingFace's tokenizers know merges by rank where SentencePiece knows pieces by score. Ranking merges by id is wrong
for LLaMA's own model, whose runs of spaces have low ids and the lowest of all scores: they are to merge last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import DataError
from llama_dyt.data.tokenizing.encode import encode_with_backend

_SPACE = "\u2581"
_UNIGRAM, _BPE = 1, 2  # of TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # of ModelProto.SentencePiece.Type
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")

_HARD_TEXTS = (
    "def f(x):\n    return [x, 3.14]\t# caf\u00e9 \u6f22\u5b57 \U0001f600\r\n\n  \ufb01nal words,  spaced",
    "x" + "".join(" " * count + "y" for count in range(1, 40)) + "\n" + " " * 37,
    "   three spaces first, and two last  ",
    "\n\n\n\t\t\tif (a && !b) { return c[0]->d; } // 1_000_000 0x7fFF\n        }\n            else:\r\n",
    "'tis  isn't  I'm ... -- === !!!! ((((())))) https://example.org/a?b=%20&c=d#e <p class=\"q\"></p>\\n",
    "aaaaaaa abababab 0000000 1234567890 AAAA bookkeeper mississippi antidisestablishmentarianism",
    "e\u0301 n\u0303 a\u030a\u0323 \u1100\u1161\u11a8 \uac01 \u212b \uff21\uff22 \u2460 \u00bd \u0130\u0131 \u1e9e",
    "\u6c49\u5b57\u6f22\u5b57\u3002\u304b\u306a\u30ab\u30ca \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a"
    "\u0629 \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 \u05e2\u05d1\u05e8\u05d9\u05ea \u03b5\u03bb "
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 \U00020000\U0001d54f",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f3fd \U0001f1e9\U0001f1ea\u2764\ufe0f \U0001f9d1\u200d\U0001f680",
    "\x00\x01\x07\x08\x0b\x0c\x1b\x1f\x7f\x85\xa0\xad\u200b\u2028\u2029\u3000\ufeff\ufffd\ue000\uffff",
    "\u2581a \u2581\u2581b <s>not special</s><unk><0x0A>\n<pad>",
)
_NEVER = 1000.0
_MOST_PIECES = 4000  # of the vocabulary that are compared too: a fraction of a second
_IN_A_TEXT = 50  # of these: SentencePiece sums a unigram text's scores in single precision, which rounds long sums


class SentencePieceModel:
    """One SentencePiece file.

    Args:
        path: the file, under any name.

    Raises:
        DataError: it is in tiktoken's form, as Llama 3's tokenizer.model is, or neither BPE nor unigram.
        RuntimeError, google.protobuf's DecodeError: it is no SentencePiece model.
    """

    def __init__(self, path: Path):
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        content = path.read_bytes()
        if _TIKTOKEN_LINE.match(content):
            raise DataError(
                f"tokenizer {path}: is in tiktoken's form (as Llama 3's tokenizer.model), not SentencePiece's; take "
                "the folder of the same model for HuggingFace, which has a tokenizer.json"
            )
        self._path = path
        self._processor = SentencePieceProcessor(model_proto=content)
        self._proto = sentencepiece_model_pb2.ModelProto.FromString(content)
        if self._proto.trainer_spec.model_type not in (_UNIGRAM, _BPE):
            raise DataError(f"tokenizer {path}: neither a BPE nor a unigram model; only these two kinds can be used")
        self._own_symbols = [p.piece for p in self._proto.pieces if p.type == _USER_DEFINED]

    @property
    def special_tokens(self) -> dict[str, str]:
        """HuggingFace's name → piece of each special token that the model has, and of no other."""
        ids = {f"{kind}_token": getattr(self._processor, f"{kind}_id")() for kind in ("unk", "bos", "eos", "pad")}
        return {name: self._processor.id_to_piece(id) for name, id in ids.items() if id >= 0}

    def convert(self) -> Any:
        """A `tokenizers.Tokenizer` with the model's ids.

        It puts BOS, where there is one, before a text for those who ask for special tokens: they generate from what was
        trained on documents that begin so.

        Raises:
            DataError: it would not encode as the model does; the first difference is shown.
        """
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors

        normalization = self._proto.normalizer_spec
        steps: list[Any] = []
        if normalization.precompiled_charsmap:
            steps.append(normalizers.Precompiled(normalization.precompiled_charsmap))
        if normalization.remove_extra_whitespaces:
            steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r"\A +| +\z"), "")]
        cuts: list[Any] = []
        decoder = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if normalization.add_dummy_prefix:
            steps += [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
            decoder.append(decoders.Strip(" ", left=1, right=0))
        else:
            cuts.append(pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=False))
        if self._own_symbols:
            # Not as added tokens: these are found before a text is normalized, which then begins anew behind each.
            found = "|".join(map(re.escape, sorted(self._own_symbols, key=len, reverse=True)))
            cuts.append(pre_tokenizers.Split(Regex(found), "isolated"))

        backend = Tokenizer(self._model())
        if steps:
            backend.normalizer = normalizers.Sequence(steps)
        if cuts:
            backend.pre_tokenizer = cuts[0] if len(cuts) == 1 else pre_tokenizers.Sequence(cuts)
        backend.decoder = decoders.Sequence(decoder)
        special = [p.piece for p in self._proto.pieces if p.type in (_UNKNOWN, _CONTROL)]
        backend.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
        if (bos := self.special_tokens.get("bos_token")) is not None:
            backend.post_processor = processors.TemplateProcessing(
                single=f"{bos}:0 $A:0",
                pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
                special_tokens=[(bos, self._processor.bos_id())],
            )
        if difference := self.first_difference(backend):
            raise DataError(
                f"tokenizer {self._path}: HuggingFace's tokenizers cannot be made to encode as this SentencePiece "
                f"model does: {difference}; give a folder with the tokenizer.json that its own model has"
            )
        return backend

    def _model(self) -> Any:
        from tokenizers import models

        trained, pieces = self._proto.trainer_spec, self._proto.pieces
        if trained.model_type == _UNIGRAM:
            # What SentencePiece never finds in a text must not be the best way through it here either.
            never = min(p.score for p in pieces) - _NEVER
            scores = [(p.piece, p.score if p.type in (_NORMAL, _USER_DEFINED) else never) for p in pieces]
            return models.Unigram(scores, unk_id=trained.unk_id, byte_fallback=trained.byte_fallback)
        return models.BPE(
            vocab={p.piece: id for id, p in enumerate(pieces)},
            merges=_merges({p.piece: p.score for p in pieces if p.type == _NORMAL}),
            # Where bytes stand for what is not in the vocabulary, nothing is unknown.
            unk_token=None if trained.byte_fallback else trained.unk_piece,
            fuse_unk=True,
            byte_fallback=trained.byte_fallback,
            ignore_merges=bool(self._own_symbols),  # an own symbol stands alone, and no merge makes it
        )

    def first_difference(self, backend: Any, *, leading_spaces: bool = True) -> str | None:
        """Where a `tokenizers.Tokenizer` encodes hard text otherwise than the model; None where it nowhere does.

        Args:
            leading_spaces: whether spaces at a text's start are compared as well. HuggingFace's tokenizers of LLaMA's
                family that are not "legacy" put no space of their own there, where SentencePiece does.
        """
        texts = list(self._hard_texts())
        if not leading_spaces:
            texts = [text.lstrip(f" {_SPACE}") for text in texts]
        expected = self._processor.encode(texts)
        for text, own, other in zip(texts, expected, encode_with_backend(backend, texts), strict=True):
            if own != other.tolist():
                return self._describe(text, own, other.tolist(), backend)
        return None

    def _hard_texts(self) -> Iterator[str]:
        yield from _HARD_TEXTS
        pieces = [p.piece.replace(_SPACE, " ") for p in self._proto.pieces if p.type == _NORMAL]
        some = pieces[:: -(-len(pieces) // _MOST_PIECES)]
        for first in range(0, len(some), _IN_A_TEXT):
            few = some[first : first + _IN_A_TEXT]
            yield from ("".join(few), "".join(reversed(few)), " ".join(few))
        if own := [piece.replace(_SPACE, " ") for piece in self._own_symbols[:_MOST_PIECES]]:
            yield from ("a".join(["", *own, ""]), " ".join(own), own[-1])

    def _describe(self, text: str, own: Sequence[int], other: Sequence[int], backend: Any) -> str:
        first = next(i for i, (a, b) in enumerate(zip_longest(own, other)) if a != b)
        shown = slice(max(0, first - 2), first + 4)
        around = self._processor.decode(own[max(0, first - 6) : first + 8]) or text[:40]
        expected = [self._processor.id_to_piece(id) for id in own[shown]]
        got = [backend.id_to_token(id) for id in other[shown]]
        return f"at {around!r}, SentencePiece gives {expected}, the other {got}"


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """What BPE joins, first what comes first: SentencePiece joins the two neighbours whose result has the best score.

    Among results of one score, such as runs of spaces, it takes the leftmost, so that the longest grows on: the longer
    result goes first here.
    """
    ranked = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            first, second = piece[:cut], piece[cut:]
            if first in scores and second in scores:
                ranked.append(((-score, -len(piece), cut), (first, second)))
    return [merge for _, merge in sorted(ranked, key=itemgetter(0))]
