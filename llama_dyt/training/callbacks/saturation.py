"""What is watched of every norm (of Dynamic Tanh: alpha and saturation), sampled during a forward pass.

Sampling a few tokens keeps the probe's cost out of the step time.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

import torch
from torch import nn

from llama_dyt.config.run import RunConfig
from llama_dyt.core import ranks
from llama_dyt.models.build import norm_sites
from llama_dyt.norms.by_name import norm_of
from llama_dyt.training.callbacks.callback import Callback, Training
from llama_dyt.training.callbacks.logging import is_logged
from llama_dyt.training.step import StepOutcome

PROBE_INTERVAL = 10
"""Norms are looked at in every so many-th record: one scalar a site a step would drown TensorBoard."""
SAMPLED_TOKENS = 128


class Saturation(Callback):
    """Looks at the norms during the step of every tenth record, and adds what it saw to that."""

    order = 20

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        self._looking = ExitStack()
        self._probe: SaturationProbe | None = None

    def before_step(self, trainer: Training, step: int) -> None:
        records = (step - 1) // self.run.run.log_interval
        if is_logged(self.run, step, trainer.last_step) and records % PROBE_INTERVAL == 0:
            self._probe = self._looking.enter_context(SaturationProbe(trainer.boosted.module))
            self._looking.enter_context(trainer.boosted.layers_as_written())

    def after_step(self, trainer: Training, outcome: StepOutcome) -> None:
        self._looking.close()

    def record(self, trainer: Training, outcome: StepOutcome) -> dict[str, dict[str, float]]:
        probe, self._probe = self._probe, None
        return {} if probe is None else self._over_stages(trainer, probe.values())

    @staticmethod
    def _over_stages(trainer: Training, site_values: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """Join the per-site values of all pipeline stages: each holds its own sites."""
        group = trainer.boosted.grid.pp_group
        if group is None:
            return site_values
        joined: dict[str, dict[str, float]] = {}
        for stage in ranks.gather(site_values, "logging what is watched of norms", group):
            for kind, sites in stage.items():
                joined.setdefault(kind, {}).update(sites)
        return joined


class SaturationProbe:
    """Context manager: inside it, what the norm's spec names is recorded at each site of `module`."""

    def __init__(self, module: nn.Module) -> None:
        """`module`: a HuggingFace model, perhaps inside wrappers that keep its `config`."""
        self._sites = list(norm_sites(module))
        self._probe = norm_of(module.config).probe
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._kinds: list[str] = []
        self._values: dict[str, torch.Tensor] = {}

    def __enter__(self) -> SaturationProbe:
        for name, site in self._sites:
            self._handles.append(site.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str):
        def record(site: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            with torch.no_grad():
                rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
                sample = rows[:: max(1, len(rows) // SAMPLED_TOKENS)].float()
                found = self._probe(site, sample)
                self._kinds = list(found)
                # A copy: what a probe gives may be a view of a parameter, which is freed or moved before it is read.
                self._values[name] = torch.stack([value.detach().float().reshape(()) for value in found.values()])

        return record

    def values(self) -> dict[str, dict[str, float]]:
        """What is watched → value a site, of the last forward in the context; one host synchronisation."""
        if not self._values:
            return {}
        rows = torch.stack(list(self._values.values())).cpu().tolist()
        columns = zip(self._kinds, zip(*rows, strict=True), strict=True)
        return {kind: dict(zip(self._values, column, strict=True)) for kind, column in columns}
