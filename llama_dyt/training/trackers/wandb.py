"""Weights & Biases: on its server, or offline in --tracker_dir for `wandb sync`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import in_one_line
from llama_dyt.core.problem import Problem
from llama_dyt.training.trackers.described import described, not_installed, run_name
from llama_dyt.training.trackers.tracker import Record, Sample, Tracked, Tracker, scalars, share_right

_SECONDS_TO_CONNECT = 60


class Wandb(Tracker):
    """A resumed run goes on in the run of the same id. Where the server does not answer it is written offline.

    Nothing is sent that was not asked for: no source, no command line, no git remote, no console, no machine's figures.
    """

    name, in_background, order = "wandb", True, 30

    def __init__(self, tracked: Tracked) -> None:
        super().__init__(tracked)
        self._id = tracked.states.get(self.name, {}).get("run_id") or secrets.token_hex(4)
        self._run: Any = None
        self._ended_well = False

    @classmethod
    def why_not(cls, run: RunConfig) -> Problem | None:
        return not_installed(run, "wandb", "wandb")

    def open(self) -> None:
        import wandb

        settings = self.tracked.run.tracking
        mode = "offline" if settings.tracker_offline else os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not _has_key(settings.tracker_server):
            self.tracked.say("warning: tracker wandb has no key (WANDB_API_KEY or `wandb login`): it writes offline")
            mode = "offline"
        try:
            self._run = self._begin(wandb, mode)
        except wandb.errors.Error as error:
            if mode == "offline":
                raise
            wandb.teardown()
            self._run = self._begin(wandb, "offline")
            self.tracked.say(
                f"warning: tracker wandb cannot be reached ({in_one_line(error)}); it is written offline: "
                f"wandb sync {Path(self._run.dir).parent}"
            )

    def _begin(self, wandb: Any, mode: str) -> Any:
        tracking = self.tracked.run.tracking
        folder = Path(tracking.tracker_dir)
        folder.mkdir(parents=True, exist_ok=True)
        host = {"base_url": tracking.tracker_server} if tracking.tracker_server else {}
        return wandb.init(
            project=tracking.tracker_project_name,
            name=run_name(self.tracked),
            dir=str(folder),
            id=self._id,
            resume="allow" if mode == "online" else None,
            mode=mode,
            config=described(self.tracked),
            settings=wandb.Settings(
                init_timeout=_SECONDS_TO_CONNECT,
                silent=True,
                console="off",
                save_code=False,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                **host,
            ),
        )

    def log(self, record: Record) -> None:
        self._run.log(dict(scalars(record)), step=record["step"])

    def log_samples(self, step: int, samples: Sequence[Sample], seconds: float) -> None:
        import wandb

        rows = [[sample.prompt, sample.text, sample.expected or ""] for sample in samples]
        told = {"samples": wandb.Table(columns=["prompt", "continuation", "expected"], data=rows)}
        if (right := share_right(samples)) is not None:
            told["samples/right"] = right
        self._run.log(told, step=step)

    def log_event(self, step: int, kind: str, text: str) -> None:
        self._run.summary[f"event/{kind}"] = f"step {step}: {text}"

    def log_picture(self, name: str, path: Path) -> None:
        import wandb

        self._run.log({f"picture/{name}": wandb.Image(str(path))})

    def state(self) -> dict[str, Any]:
        return {"run_id": self._id}

    def finish(self) -> None:
        self._ended_well = True

    def close(self) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if self._ended_well else 1)

    def result(self) -> tuple[str, str] | None:
        if self._run is None:
            return None
        return "wandb", f"wandb sync {Path(self._run.dir).parent}" if self._run.offline else self._run.url


def _has_key(server: str | None) -> bool:
    """Whether wandb knows who is asking; without a key it would ask a terminal."""
    import wandb

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(wandb.Api(overrides={"base_url": server} if server else None, timeout=10).api_key)
    except Exception:
        return False


TRACKER = Wandb
