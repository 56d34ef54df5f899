"""A plugin as a user writes it, in one file: every rank holds the whole model in fp32, and gradients are averaged in
buckets by all-reduces of its own, at the end of a step."""

from collections.abc import Iterator
from dataclasses import dataclass

from llama_dyt.boosters.capability import Capability
from llama_dyt.boosters.strategy import STRATEGIES, Strategy
from llama_dyt.config.options import option
from llama_dyt.core.problem import Problem


@dataclass(frozen=True)
class BucketSettings:
    """A flag of the plugin's own; a run has it as `run.bucketed.bucket_kb`."""

    bucket_kb: int = option(1024, "bucketed: size of the messages that gradients are averaged in.", at_least=1)


class Bucketed(Strategy):
    def problems(self, run) -> Iterator[Problem]:
        if run.booster.fp32_gradients:
            yield Problem("fp32_gradients", True, "bucketed has no other", "leave it out", also=("plugin",))

    def boost(self, run, model, optimizer, family):
        from llama_dyt.boosters.clipping import Update, norm_bound
        from llama_dyt.boosters.grid import data_parallel_grid
        from llama_dyt.boosters.materialize import materialize
        from llama_dyt.boosters.parameter_state import ParameterState
        from llama_dyt.boosters.runtime import Runtime
        from llama_dyt.core.environment import device_type

        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        materialize(model, device_type())
        averaged = AveragingAdam(optimizer, Update(norm_bound(run)), run.bucketed.bucket_kb * 2**10)
        runtime = Runtime(model, model, averaged, data_parallel_grid())
        runtime.update = averaged.update
        runtime.state = ParameterState(model, averaged, runtime.grid, shapes, runtime.scaler)
        return runtime


class AveragingAdam:
    """Adam on the mean of all ranks' gradients."""

    def __init__(self, adam, update, bucket_bytes: int) -> None:
        self.optim = adam
        self.param_groups = adam.param_groups
        self.update = update
        self._bucket_elements = max(1, bucket_bytes // 4)
        self._norm = None

    def backward(self, loss) -> None:
        loss.backward()

    def step(self) -> None:
        from llama_dyt.boosters.clipping import squared_norm

        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        self._average(gradients)
        self._norm = squared_norm([(gradient, 1.0) for gradient in gradients], []).sqrt()
        self.optim.step(**self.update.factors(self._norm))

    def _average(self, gradients) -> None:
        import torch
        import torch.distributed as dist

        flat = torch.cat([gradient.flatten() for gradient in gradients]) / dist.get_world_size()
        for bucket in flat.split(self._bucket_elements):
            dist.all_reduce(bucket)
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(mean.view_as(gradient))

    def get_grad_norm(self):
        return self._norm

    def zero_grad(self) -> None:
        self.optim.zero_grad()


STRATEGIES.register(Bucketed("bucketed", Capability(precisions=("fp32",)), settings=BucketSettings))
