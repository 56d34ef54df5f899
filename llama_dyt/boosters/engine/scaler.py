"""The fp16 loss scaler of any booster: one view of it, and two faults of the engine's mended.

Each family of optimizer in Colossal-AI keeps a `FP16MixedPrecisionMixin` in a place of its own, which its strategy
knows. Here is recorded whether a step was skipped, and the whole of the scaler is saved (the engine's own state_dict
forgets the growth and hysteresis counters).
"""

from __future__ import annotations

from llama_dyt.boosters.engine.upstream import replace

from colossalai.amp.naive_amp.mixed_precision_mixin import FP16MixedPrecisionMixin

INITIAL_SCALE = 2.0**16
"""First loss scale, PyTorch's. The engine's ZeRO plugin starts at 2**32, which skips the first tens of steps."""


class LossScaler:
    """View of an engine optimizer's fp16 scaler; harmless (scale 1, never skips) for any other precision.

    Args:
        mixin: where the optimizer keeps its scaler; None outside fp16.
    """

    def __init__(self, mixin: FP16MixedPrecisionMixin | None) -> None:
        self._mixin = mixin
        self.last_step_skipped = False
        self.last_scale = self.scale
        self.skips_at_smallest_scale = 0
        """Steps in a row, up to the last one, that were skipped where the scale could not become smaller."""
        if self._mixin is not None:
            self._wrap(self._mixin)

    def _wrap(self, mixin: FP16MixedPrecisionMixin) -> None:
        original_should_skip = mixin.should_skip_step
        original_div_scale = mixin.get_grad_div_scale

        def should_skip_step() -> bool:
            # Upstream `FP16MixedPrecisionMixin.should_skip_step` lets the scaler grow before the gradients are
            # unscaled, so every growth_interval steps they were divided by twice their scale. Keep the one they carry.
            self.last_scale = self.scale
            self.last_step_skipped = original_should_skip()
            at_smallest = self.last_step_skipped and self.last_scale <= self._smallest_scale
            self.skips_at_smallest_scale = self.skips_at_smallest_scale + 1 if at_smallest else 0
            return self.last_step_skipped

        def get_grad_div_scale() -> float:
            original_div_scale()  # flips the mixin's own SCALED/UNSCALED state
            return self.last_scale

        replace(mixin, "should_skip_step", should_skip_step)
        replace(mixin, "get_grad_div_scale", get_grad_div_scale)

    @property
    def enabled(self) -> bool:
        return self._mixin is not None

    @property
    def scale(self) -> float:
        """The scale the next backward will use; 1.0 when there is none."""
        return float(self._mixin.grad_scaler.scale.item()) if self._mixin is not None else 1.0

    @property
    def _smallest_scale(self) -> float:
        smallest = self._mixin.grad_scaler._min_scale
        return 0.0 if smallest is None else float(smallest)

    def state_dict(self) -> dict[str, float | int] | None:
        """Everything that decides the scaler's future, JSON-able; None when not in fp16."""
        if self._mixin is None:
            return None
        scaler = self._mixin.grad_scaler
        return {
            "scale": self.scale,
            "growth_step": scaler._growth_step,
            "hysteresis_step": scaler._hysteresis_step,
        }

    def load_state_dict(self, state: dict[str, float | int] | None) -> None:
        """Restore `state_dict()`'s value. A state from a run of another precision (None) leaves a fresh scaler."""
        if self._mixin is None or state is None:
            return
        scaler = self._mixin.grad_scaler
        scaler._scale.fill_(float(state["scale"]))
        scaler._growth_step = int(state["growth_step"])
        scaler._hysteresis_step = int(state["hysteresis_step"])
