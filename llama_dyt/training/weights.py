"""Where a run's tensors come from: its checkpoint, existing weights, the seed; with an adapter two of them at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from llama_dyt.boosters.training_state import Read, Readable
from llama_dyt.models import InitialWeights, read_pretrained
from llama_dyt.models.adapters import AdapterFiles, StartingAdapter
from llama_dyt.training.plan import Plan


@contextmanager
def starting_weights(
    plan: Plan, shapes: Mapping[str, Sequence[int]], trained: Collection[str], filled: bool = False
) -> Iterator[Read]:
    """A context that gives what `Boosted` reads.

    Args:
        shapes: name → whole shape of every parameter, an adapter's too.
        trained: names of those that are trained.
        filled: they are filled otherwise afterwards, and nothing is read for them.
    """
    with ExitStack() as stack:
        base = None
        if plan.weights_folder is not None and (plan.checkpoint is None or plan.adapter is not None):
            base = stack.enter_context(
                read_pretrained(plan.weights_folder, plan.model_config, grown_from=plan.grown_from)
            )
        if filled:
            own = _nothing
        elif plan.checkpoint is not None:
            own = stack.enter_context(plan.checkpoint.reader())
        elif plan.adapter_folder is not None:
            own = stack.enter_context(AdapterFiles(plan.adapter_folder)).read
        elif plan.adapter is not None:
            own = StartingAdapter(shapes, base, plan.run.run.seed).read
        else:
            own = base or InitialWeights(shapes, plan.model_config, plan.run.run.seed).read
        if plan.adapter is None:
            yield own
        else:
            yield lambda name: (own if name in trained else base)(name)


def _nothing(name: str) -> Mapping[str, Readable]:
    return {}
