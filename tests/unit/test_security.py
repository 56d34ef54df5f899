"""What came with a file is data: no source of ours runs code from one, asks a shell, or opens what is not its own.

Found in the syntax tree of every file; what is let through is named with its reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = [
    *sorted((REPOSITORY / "llama_dyt").rglob("*.py")),
    *sorted(REPOSITORY.glob("*.py")),
    *sorted((REPOSITORY / "scripts").rglob("*.py")),
    *sorted((REPOSITORY / "benchmarks").rglob("*.py")),
]
ALLOWED = {
    # a pipe to a process that this one started, and what it is told by it
    "llama_dyt/data/tokenizing/workers.py": {"pickle.load"},
    # of its own value, to see whether an error can be sent; torch's collectives send pickles between the ranks of a run
    "llama_dyt/core/ranks.py": {"pickle.loads"},
    # an unpickler that finds the classes of torch's own table alone
    "llama_dyt/convert/distributed_checkpoint.py": {"pickle.Unpickler"},
}
"""File → what it may do that no other may."""

FORBIDDEN = {
    *("eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "marshal.load", "shelve.open", "dill.load"),
    *("joblib.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "tempfile.mktemp", "pandas.read_pickle"),
    *("jinja2.Template", "jinja2.Environment", "Template", "Environment", "extractall", "os.chmod", "os.umask"),
    *("numpy.load", "np.load"),
}


def name_of(node: ast.expr) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id if isinstance(node, ast.Name) else "…", *reversed(parts)])


def truth(call: ast.Call, keyword: str) -> bool | None:
    """What a keyword of a call is, where it stands there: None is absent; what is no constant counts as True."""
    for given in call.keywords:
        if given.arg == keyword:
            return bool(given.value.value) if isinstance(given.value, ast.Constant) else True
    return None


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of everything that may run code which came with data, or ask a shell."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and name_of(node) in FORBIDDEN & {"pickle.Unpickler"}:
            yield node.lineno, name_of(node)
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        last = name.rpartition(".")[2]
        if name in FORBIDDEN - {"pickle.Unpickler"} or last == "extractall":
            yield node.lineno, name
        elif name == "torch.load" and truth(node, "weights_only") is not True:
            yield node.lineno, "torch.load without weights_only"
        elif name == "yaml.load" and not any(given.arg == "Loader" for given in node.keywords):
            yield node.lineno, "yaml.load without a loader"
        elif last in ("run", "Popen", "call", "check_call", "check_output") and truth(node, "shell"):
            yield node.lineno, "shell=True"
        elif truth(node, "trust_remote_code"):
            yield node.lineno, "trust_remote_code"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_source_runs_what_came_with_data(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    allowed = ALLOWED.get(str(path.relative_to(REPOSITORY)), set())
    assert [(line, what) for line, what in unsafe(tree) if what not in allowed] == []


def test_all_that_is_allowed_is_used():
    for name, allowed in ALLOWED.items():
        tree = ast.parse((REPOSITORY / name).read_text(encoding="utf-8"))
        assert {what for _, what in unsafe(tree)} == allowed


@pytest.mark.parametrize(
    "line",
    [
        *("eval(text)", "os.system(x)", "pickle.loads(b)", "torch.load(p)", "torch.load(p, weights_only=False)"),
        *("yaml.load(t)", "yaml.unsafe_load(t)", "subprocess.run(c, shell=True)", "tar.extractall(p)"),
        *("AutoModel.from_pretrained(p, trust_remote_code=True)", "f(trust_remote_code=given)", "np.load(p)"),
        *("jinja2.Template(t)", "class A(pickle.Unpickler): pass", "tempfile.mktemp()"),
    ],
)
def test_such_a_line_is_found(line):
    assert list(unsafe(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        *("torch.load(p, weights_only=True)", "yaml.load(t, Loader=Safe)", "model.eval()", "re.compile(x)"),
        *("subprocess.run([a, b])", "f(trust_remote_code=False)", "torch.compile(m)"),
    ],
)
def test_other_lines_are_not(line):
    assert not list(unsafe(ast.parse(line)))
