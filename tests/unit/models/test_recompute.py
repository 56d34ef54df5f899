"""Which layers recompute their activations."""

import pytest
from model_cases import tiny_model

from llama_dyt.models import recompute_activations, recomputed_layers


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0, []),
        (1, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (1 / 2, [1, 3, 5, 7, 9]),
        (1 / 3, [2, 5, 8]),
        (2 / 3, [1, 3, 4, 6, 7, 9]),
        (1 / 4, [2, 6]),
        (0.05, []),
        (0.06, [9]),
    ],
)
def test_layers_are_those_of_the_authors_rule(share, expected):
    assert [layer + 1 for layer in recomputed_layers(9, share)] == expected


@pytest.mark.parametrize("num_layers", [1, 6, 32, 80])
@pytest.mark.parametrize("share", [0.0, 1 / 7, 0.3, 1 / 3, 0.5, 5 / 8, 0.9, 1.0])
def test_the_rule_as_it_is_told(num_layers, share):
    """A layer is taken when its number times the share reaches the next half-integer."""
    taken, cut = [], 0.5
    for number in range(1, num_layers + 1):
        if number * share >= cut - 1e-9:
            cut += 1
            taken.append(number - 1)
    assert recomputed_layers(num_layers, share) == taken
    assert abs(len(taken) - share * num_layers) <= 0.5 + 1e-9


def test_only_the_chosen_layers_are_told_to():
    model = tiny_model(num_hidden_layers=4)
    recompute_activations(model, 0)
    assert not any(layer.gradient_checkpointing for layer in model.model.layers)
    recompute_activations(model, 0.5)
    assert [layer.gradient_checkpointing for layer in model.model.layers] == [True, False, True, False]
