"""From a command line to a plan: everything a run needs that can be known, and refused, before processes talk.

Four stages, a file each: `parse` (a command line as a run), `check` (what its flags alone make wrong), `resolve` (what
its names lead to) and `size_up` (what of the run its size decides); `make_plan` is the four in a row. The first two
need nothing that takes seconds to import: an entry begins with them (`answer`), and goes on from what they found.
"""

from llama_dyt.core.lazily import lazy_names

_HOMES = {
    "Checked": "llama_dyt.training.plan.check",
    "Plan": "llama_dyt.training.plan.plan",
    "make_plan": "llama_dyt.training.plan.make",
    "resolve_checkpoint": "llama_dyt.training.plan.resolve",
    "say": "llama_dyt.training.plan.plan",
}
__getattr__, __all__ = lazy_names(__name__, _HOMES)
