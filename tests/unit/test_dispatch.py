"""Nothing asks what an entry of a seam is: what is done with it stands behind its seam, in the folder of its own.

Found in the syntax tree: `isinstance`, `issubclass`, `hasattr`, `startswith` and comparisons with a name, where the
thing asked about, or the class it is compared with, is called what a seam's entries are.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llama_dyt.boosters.strategy import STRATEGIES
from llama_dyt.core.store import STORES
from llama_dyt.data.formats.format import FORMATS
from llama_dyt.models.spec import FAMILIES
from llama_dyt.norms.spec import NORMS
from llama_dyt.training.trackers.tracker import TRACKERS

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "llama_dyt"
FILES = [*sorted(PACKAGE.rglob("*.py")), *sorted(REPOSITORY.glob("*.py"))]


@dataclass(frozen=True)
class Seam:
    """What gives a question about an entry of a seam away.

    Args:
        things: what variables and attributes that hold one, or its name, are called; a whole identifier.
        classes: of its entries, and of what they are made of; a part of an identifier.
        names: of its entries.
        homes: folders in which it may be asked, relative to the package.
    """

    things: str
    classes: str
    names: frozenset[str]
    homes: tuple[str, ...]


SEAMS = {
    "plugin": Seam(
        things=r"plugin|strategy|optimizer|booster|runtime",
        classes=r"Plugin|Strategy|Optimizer$|FSDP|Gemini|LowLevelZero|HybridParallel|Runtime",
        names=frozenset([*STRATEGIES.names(), *STRATEGIES.aliases()]),
        # `engine` is what is patched in Colossal-AI, inside of its own classes.
        homes=("boosters/strategies", "boosters/engine"),
    ),
    "tracker": Seam(
        things=r"tracker|callback",
        classes=r"Tracker$|Callback$",
        names=frozenset(TRACKERS.names()),
        homes=("training/trackers", "training/callbacks"),
    ),
    "format": Seam(
        things=r"data|reader",
        classes=r"Source$|Shards$|Documents$|TokenArray|MegatronTokens",
        names=frozenset(FORMATS.names()),
        homes=("data/formats",),
    ),
    "store": Seam(things=r"store|location", classes=r"Store$", names=frozenset(STORES.names()), homes=("core/stores",)),
    "model family": Seam(
        things=r"family|model_type|architectures|causal_lm",
        classes=r"Llama(?!DytError)[A-Z]|ForCausalLM|DecoderLayer|PreTrainedModel|ScaledEmbedding",
        names=frozenset([*FAMILIES.names(), *FAMILIES.aliases()]),
        homes=("models/llama", "models/specs"),
    ),
    "norm": Seam(
        things=r"norm_type|own_norm",
        classes=r"DynamicTanh|RMSNorm|LayerNorm",
        names=frozenset([*NORMS.names(), *NORMS.aliases()]),
        homes=("norms/specs", "norms/layers"),
    ),
}


def identifier(node: ast.expr) -> str:
    """The last name of `a`, `x.a`, `x.a()` or `x[...]`."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def texts(node: ast.expr) -> list[str]:
    """The string constants in an expression."""
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def questions(tree: ast.AST, seam: Seam) -> Iterator[int]:
    """Lines that ask what an entry of the seam is."""

    def is_thing(node: ast.expr) -> bool:
        return re.fullmatch(seam.things, identifier(node).lstrip("_")) is not None

    for node in ast.walk(tree):
        found = False
        if isinstance(node, ast.Call) and node.args:
            asked = identifier(node.func)
            if asked in ("isinstance", "issubclass") and len(node.args) == 2:
                classes = [identifier(part) for part in ast.walk(node.args[1]) if isinstance(part, ast.expr)]
                found = is_thing(node.args[0]) or any(re.search(seam.classes, name) for name in classes)
            elif asked == "hasattr" or (asked == "getattr" and len(node.args) == 3):
                found = is_thing(node.args[0])
            elif asked in ("startswith", "endswith", "removeprefix") and isinstance(node.func, ast.Attribute):
                found = is_thing(node.func.value)
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            found = any(map(is_thing, sides)) and any(text in seam.names for side in sides for text in texts(side))
        if found:
            yield node.lineno


@pytest.mark.parametrize("kind", SEAMS)
def test_nothing_asks_what_an_entry_of_a_seam_is_outside_of_its_folder(kind):
    seam, wrong = SEAMS[kind], []
    homes = [PACKAGE / home for home in seam.homes]
    for path in FILES:
        if not any(home in path.parents for home in homes):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            wrong += [f"{path.relative_to(REPOSITORY)}:{line}" for line in questions(tree, seam)]
    assert not wrong, f"ask the {kind} for what is wanted instead of what it is: {wrong}"


@pytest.mark.parametrize(
    "line",
    [
        "isinstance(self.plugin, LowLevelZeroPlugin)",
        "isinstance(optimizer, HybridParallelNaiveOptimizer | MixedPrecisionOptimizer)",
        "isinstance(self.module, FSDPModule)",
        "hasattr(plugin, 'pp_axis')",
        "getattr(self.optimizer, 'tp_pg', None)",
        "run.booster.plugin.startswith('gemini')",
        "settings.plugin == 'gemini_auto'",
        "run.booster.plugin in ('fsdp', 'hsdp')",
        "config.model_type == 'llama_dyt'",
        "isinstance(layer, LlamaDytDecoderLayer)",
        "config.model_type.startswith('llama')",
        "config.norm_type == 'dyt'",
        "isinstance(module, DynamicTanh)",
    ],
)
def test_such_a_question_is_found(line):
    assert [1] in [list(questions(ast.parse(line), seam)) for seam in SEAMS.values()]


@pytest.mark.parametrize(
    "line",
    ["isinstance(value, torch.Tensor)", "getattr(booster, flag) > 1", "path.startswith('gemini')", "kind == 'cuda'"],
)
def test_other_questions_are_not(line):
    assert not any(list(questions(ast.parse(line), seam)) for seam in SEAMS.values())


def parts_of_decoders() -> frozenset[str]:
    """What families call parts of their decoders; without words that anything may have."""
    dotted = [
        name
        for family in FAMILIES
        for name in (
            *(family.embedding, family.head, family.rotary, family.attention),
            *family.column_parallel,
            *family.row_parallel,
            *family.layer_norms,
        )
    ]
    return frozenset(part for name in dotted for part in name.split(".")) - {"dense"}


def spelled(tree: ast.AST, parts: frozenset[str]) -> Iterator[int]:
    """Lines that spell a part of a decoder: as an attribute, in a string that is no docstring, or `….model.layers`."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        words: list[str] = []
        if isinstance(node, ast.Attribute):
            words = [node.attr]
            if node.attr == "layers" and isinstance(node.value, ast.Attribute) and node.value.attr == "model":
                yield node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            words = re.split(r"[.\s]+", node.value)
        if parts & {*words}:
            yield node.lineno


def test_only_a_family_spells_the_parts_of_its_decoder():
    parts = parts_of_decoders()
    homes = {PACKAGE / "models/specs", PACKAGE / "models/model_spec.py"}
    homes |= {PACKAGE / "models" / family.config_class.split(":")[0].split(".")[2] for family in FAMILIES}
    homes |= {PACKAGE / "convert/formats/neox.py"}  # that program's own names, some of which are the same words
    wrong = []
    for path in FILES:
        if not homes & {path, *path.parents}:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            wrong += [f"{path.relative_to(REPOSITORY)}:{line}" for line in spelled(tree, parts)]
    assert not wrong, f"ask the family (models.spec) where a part is instead of spelling it: {wrong}"


@pytest.mark.parametrize(
    "line", ["layer.self_attn", "module.model.layers[0]", "name.endswith('lm_head.weight')", "getattr(x, 'mlp')"]
)
def test_a_part_that_is_spelled_is_found(line):
    assert list(spelled(ast.parse(line), parts_of_decoders())) == [1]
