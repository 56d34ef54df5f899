"""Between log steps the host waits for nothing on the GPU, compiled or not; and what it reads late is the same."""

import pytest
import torch

from tests.distributed.harness import Pools
from tests.distributed.small_run import Layout
from tests.gpu import waiting_cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


@pytest.fixture(scope="module")
def pool():
    pools = Pools()
    yield pools
    pools.close()


@pytest.mark.parametrize("compile_layers", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("plugin", ["fsdp", "zero1", "zero2", "ddp"])
def test_a_step_waits_for_nothing(pool, plugin: str, precision: str, recompute: bool, compile_layers: bool):
    layout, flags = Layout(plugin, 1), {"gradient_checkpoint": recompute, "compile": compile_layers}
    (found,) = pool(1).run(waiting_cases.steps_without_waiting, layout=layout, precision=precision, **flags)
    (looked_at,) = pool(1).run(waiting_cases.losses, layout=layout, precision=precision, **flags)
    assert found == pytest.approx(looked_at, rel=1e-3 if precision == "bf16" else 1e-6)


@pytest.mark.parametrize("plugin", ["zero2", "ddp", "fsdp"])
def test_compiled_layers_give_the_losses_of_written_ones(pool, plugin: str):
    compiled, written = (
        pool(1).run(waiting_cases.losses, layout=Layout(plugin, 1), precision="fp32", compile=choice)[0]
        for choice in (True, False)
    )
    assert compiled == pytest.approx(written, rel=1e-4)
