"""Every symbol of the engine that is replaced is as this program expects it, or the launch says which is not."""

from __future__ import annotations

from llama_dyt.boosters.engine import upstream

import ast
import multiprocessing
from pathlib import Path

import pytest

from llama_dyt.core.errors import ConfigurationError
from tests import forks

BOOSTERS = Path(upstream.__file__).parent


def launch_with_another_engine(found) -> None:
    """In a process of its own: the engine without its clipping, and with another Adam; then what launching says."""
    import colossalai
    from colossalai.nn.optimizer import HybridAdam
    from colossalai.zero import LowLevelZeroOptimizer

    from llama_dyt.core.environment import ProcessEnvironment
    from llama_dyt.launch.process_group import launch

    upstream.check_engine()
    del LowLevelZeroOptimizer._unscale_and_clip_grads
    HybridAdam.step = lambda self, closure, scale: None
    try:
        launch(seed=0, environment=ProcessEnvironment())
    except ConfigurationError as error:
        found.send([colossalai.__version__, *error.problems])
    else:
        found.send([])


def test_an_engine_that_differs_is_refused_at_launch_with_its_symbols_and_version():
    ours, theirs = multiprocessing.Pipe()
    process = forks.start(launch_with_another_engine, theirs)
    theirs.close()
    version, head, *differences = ours.recv()
    process.join(60)
    assert f"Colossal-AI {version} is not the engine" in head
    assert f"colossalai=={upstream.WRITTEN_FOR}" in head
    clipping, adam = sorted(differences, key=lambda line: "HybridAdam" in line)
    assert "LowLevelZeroOptimizer._unscale_and_clip_grads is gone" in clipping
    assert "HybridAdam.step takes (self, closure, scale), expected (self, closure, div_scale)" in adam


@pytest.mark.parametrize("path", sorted(BOOSTERS.glob("*.py")), ids=lambda path: path.name)
def test_classes_of_the_engine_are_changed_through_the_list_alone(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    engines = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("colossalai")
        for alias in node.names
    }
    wrong = [
        f"line {node.lineno}: {ast.unparse(target)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute) and ast.unparse(target.value) in engines
        if target.value.id[:1].isupper()
    ]
    assert not wrong, f"{path.name} replaces what upstream.SYMBOLS does not list: {wrong}"
