"""Alpha and tanh saturation of every DyT site, sampled during a forward pass.

A site whose tanh is saturated passes no gradient to what is before it; 2604.23434 finds that the share of |alpha·x| > 2
early in a run predicts a collapse. Sampling a few tokens keeps the probe's cost out of the step time.
"""

from __future__ import annotations

from types import TracebackType

import torch
from torch import nn

from llama_dyt.norms import DynamicTanh

SATURATED = 2.0
"""|alpha·x| beyond which tanh counts as saturated: its slope there is 0.07."""
SAMPLED_TOKENS = 128


class SaturationProbe:
    """Context manager: inside it, each DyT site of `module` records alpha and its saturated share of sampled tokens."""

    def __init__(self, module: nn.Module) -> None:
        self._sites = [(name, site) for name, site in module.named_modules() if isinstance(site, DynamicTanh)]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
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
        def record(site: DynamicTanh, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            with torch.no_grad():
                rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
                sample = rows[:: max(1, len(rows) // SAMPLED_TOKENS)].float()
                alpha = site.alpha.detach().float().reshape(())
                share = ((alpha * sample).abs() > SATURATED).float().mean()
                self._values[name] = torch.stack([alpha, share])

        return record

    def values(self) -> tuple[dict[str, float], dict[str, float]]:
        """(alpha a site, saturated share a site) of the last forward in the context; one host synchronisation."""
        if not self._values:
            return {}, {}
        table = torch.stack(list(self._values.values())).cpu().tolist()
        names = list(self._values)
        return (
            {name: row[0] for name, row in zip(names, table, strict=True)},
            {name: row[1] for name, row in zip(names, table, strict=True)},
        )
