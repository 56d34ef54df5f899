"""All that is changed in Colossal-AI, applied in one go, once a process, before anything else of it is used."""

from __future__ import annotations

from llama_dyt.boosters.engine.adam import register_adam_kernels
from llama_dyt.boosters.engine.compat import apply_compat
from llama_dyt.boosters.engine.host import use_host_accelerator

from llama_dyt.boosters.layers.sequence_parallel import mend_sums_of_slices
from llama_dyt.boosters.layers.zero_bubble import mend_zero_bubble
from llama_dyt.boosters.strategies.gemini.host import adapt_gemini_to_host

_adapted = False


def adapt_engine(device_type: str) -> None:
    """Make the engine run on this torch and on a device of this type ("cuda" or "cpu"). Again it does nothing.

    Raises:
        ConfigurationError: it is not the engine that is adapted here.
    """
    global _adapted
    if _adapted:
        return
    apply_compat()
    register_adam_kernels()
    mend_sums_of_slices()
    mend_zero_bubble()
    if device_type == "cpu":
        use_host_accelerator()
        adapt_gemini_to_host()
    _adapted = True
