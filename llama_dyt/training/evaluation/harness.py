"""Tasks of EleutherAI's lm-evaluation-harness, where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem

Figures = dict[str, dict[str, float]]
"""Task → figure → value."""


def harness_problems(tasks: Sequence[str]) -> list[Problem]:
    """What keeps tasks from being done; nothing is imported for it."""
    if not tasks or find_spec("lm_eval") is not None:
        return []
    reason = "needs EleutherAI's lm-evaluation-harness, which is not installed"
    return [Problem("tasks", ",".join(tasks), reason, "run `pip install lm-eval`", clause=True)]


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    folder: str | None = None,
) -> Figures:
    """The figures of some tasks.

    Args:
        num_fewshot: examples before each question; None: as many as the task says.
        limit: questions of each task; None for all.
        folder: of the user's own tasks, in the harness's YAML.

    Raises:
        ConfigurationError: a task is unknown, or cannot be done (its data are not here, say).
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folder)
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise ConfigurationError(
            [Problem("tasks", task, "no such task of the harness", "`lm-eval ls tasks` lists them") for task in unknown]
        )
    try:
        found = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=0,
        )
    except Exception as error:  # of the harness, of `datasets`, of whatever loads a task's data
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(Problem("tasks", ",".join(tasks), f"cannot be done ({reason})")) from error
    return {task: _figures(values) for task, values in found["results"].items()}


def _figures(values: dict[str, Any]) -> dict[str, float]:
    """The numbers of a task, without the harness's filter where it is none, and without standard errors."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and "_stderr" not in key and "," in key
    }
