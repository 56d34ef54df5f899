"""The engine's Adam optimizers over torch's fused kernels: the numbers of torch.optim.AdamW, whatever the gradients."""

from llama_dyt.boosters.engine.adam import fused_adam, register_adam_kernels

import pytest
import torch

HYPERPARAMETERS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
SHAPES = [(33, 7), (130,), (1,)]


@pytest.fixture(autouse=True)
def _adapted():
    register_adam_kernels()


def gradients(step: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(gradient) for gradient in gradients(-1)]


def torch_adamw(dtype: torch.dtype, divisor: float = 1.0, num_steps: int = 5) -> list[torch.nn.Parameter]:
    params = parameters()
    optimizer = torch.optim.AdamW(params, fused=True, **HYPERPARAMETERS)
    for step in range(num_steps):
        for param, gradient in zip(params, gradients(step, dtype)):
            param.grad = gradient.float() / divisor
        optimizer.step()
    return params


def give_gradients(params: list[torch.nn.Parameter], step: int, dtype: torch.dtype) -> None:
    """As Gemini does: `.grad` may be of another dtype than the data that is swapped in afterwards."""
    for param, gradient in zip(params, gradients(step, dtype)):
        master = param.data
        param.data = gradient
        param.grad = param.data
        param.data = master


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divisor", [1.0, 4.0, 3.7])
def test_hybrid_adam_equals_adamw_to_the_last_bit(dtype, divisor):
    from colossalai.nn.optimizer import HybridAdam

    params = parameters()
    optimizer = HybridAdam(params, **HYPERPARAMETERS)
    for step in range(5):
        give_gradients(params, step, dtype)
        optimizer.step(div_scale=divisor if divisor != 1.0 else -1)
    # The kernel divides by the fp32 divisor, as torch does above.
    expected = torch_adamw(dtype, float(torch.tensor(divisor)))
    assert all(torch.equal(param, reference) for param, reference in zip(params, expected))
    assert all(optimizer.state[param]["step"] == 5 for param in params)


def test_hybrid_adam_goes_on_from_moments_put_in():
    from colossalai.nn.optimizer import HybridAdam

    params = parameters()
    first = HybridAdam(params, **HYPERPARAMETERS)
    for step in range(3):
        give_gradients(params, step, torch.float32)
        first.step()
    second = HybridAdam(params, **HYPERPARAMETERS)
    for param in params:
        second.state[param].update({key: first.state[param][key].clone() for key in ("exp_avg", "exp_avg_sq")}, step=3)
    for step in (3, 4):
        give_gradients(params, step, torch.float32)
        second.step()
    assert all(torch.equal(param, reference) for param, reference in zip(params, torch_adamw(torch.float32)))


def test_cpu_adam_needs_no_compiler_and_equals_adamw():
    from colossalai.nn.optimizer import CPUAdam

    params = parameters()
    optimizer = CPUAdam(params, **HYPERPARAMETERS)
    for step in range(5):
        give_gradients(params, step, torch.float32)
        optimizer.step()
    assert all(torch.equal(param, reference) for param, reference in zip(params, torch_adamw(torch.float32)))


def test_fused_adam_needs_no_compiler_and_equals_adamw():
    from colossalai.nn.optimizer import FusedAdam

    params = parameters()
    optimizer = FusedAdam(params, **HYPERPARAMETERS)
    for step in range(5):
        give_gradients(params, step, torch.float32)
        optimizer.step()
    assert all(torch.equal(param, reference) for param, reference in zip(params, torch_adamw(torch.float32)))


def test_many_tensors_go_in_several_launches(monkeypatch):
    whole = [param.data for param in torch_adamw(torch.bfloat16, num_steps=1)]
    monkeypatch.setattr("llama_dyt.boosters.engine.adam._ELEMENTS_A_LAUNCH", 100)
    params = [param.data for param in parameters()]
    moments = [[torch.zeros_like(param) for param in params] for _ in range(2)]
    options = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    fused_adam(params, gradients(0, torch.bfloat16), *moments, [1, 1, 1], **options)
    assert all(torch.equal(param, reference) for param, reference in zip(params, whole))


def test_adam_without_bias_correction_is_refused():
    from colossalai.nn.optimizer import HybridAdam

    params = parameters()
    optimizer = HybridAdam(params, bias_correction=False)
    give_gradients(params, 0, torch.float32)
    with pytest.raises(NotImplementedError, match="bias correction"):
        optimizer.step()


def test_a_divisor_on_the_device_is_the_number_it_holds_and_what_is_not_finite_is_left_out():
    options = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    results = []
    for divisor, found in ((2.5, None), (torch.tensor(2.5, dtype=torch.float64), torch.tensor(False))):
        torch.manual_seed(0)
        tensors = [[torch.randn(7, 5), torch.randn(3)] for _ in range(2)]
        moments = [[torch.zeros(7, 5), torch.zeros(3)] for _ in range(2)]
        fused_adam(*tensors, *moments, [3, 4], div_scale=divisor, found_inf=found, **options)
        results.append([*tensors[0], *moments[0], *moments[1]])
        before = [tensor.clone() for tensor in results[-1]]
        fused_adam(*tensors, *moments, [4, 5], div_scale=divisor, found_inf=torch.tensor(True), **options)
        assert all(torch.equal(a, b) for a, b in zip(before, results[-1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
