"""The norms there are, by the name `--norm` takes. A new one is one more file in `specs/`, or a user's own that does

    NORMS.register(NormSpec(name="mine", module=__name__, …))

and is brought in by `--import`.
"""

from llama_dyt.core.registry import Registry
from llama_dyt.norms.norm_spec import ATTENTION, FEED_FORWARD, FINAL, NormSpec

__all__ = ["ATTENTION", "FEED_FORWARD", "FINAL", "NORMS", "NormSpec"]

NORMS: Registry[NormSpec] = Registry("norm", "llama_dyt.norms.specs", "NORM", "norm")
