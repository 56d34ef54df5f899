"""Adam's betas and eps are what the flags say, whatever stands around it."""

import pytest

from tests.distributed import adam_cases
from tests.distributed.small_run import Layout

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("plugin", ["ddp", "zero2", "gemini", "fsdp"])
def test_adams_betas_and_eps_are_those_of_the_flags(pool, plugin: str):
    flags = {"adam_beta1": 0.8, "adam_beta2": 0.99, "adam_eps": 1e-6}
    (given,) = pool(1).run(adam_cases.hyperparameters, layout=Layout(plugin, 1), **flags)
    (left_out,) = pool(1).run(adam_cases.hyperparameters, layout=Layout(plugin, 1))
    assert set(given) == {((0.8, 0.99), 1e-6)}
    assert set(left_out) == {((0.9, 0.95), 1e-8)}
