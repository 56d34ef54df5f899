from llama_dyt.models import build_config, build_model
from llama_dyt.training.optimizer import parameter_groups


def tiny_model(norm):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return build_model(build_config("15m", norm=norm, vocab_size=11, **sizes), seed=0)


def test_reproduction_mode_decays_alphas_and_the_embedding_scale_too():
    model = tiny_model("dyt")
    (group,) = parameter_groups(model, 0.1, decay_all=True)
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == len(list(model.parameters()))


def test_excluding_leaves_one_dimensional_parameters_alone():
    model = tiny_model("dyt")
    decaying, resting = parameter_groups(model, 0.1, decay_all=False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert resting["weight_decay"] == 0.0
    assert {names[id(p)].rsplit(".", 1)[-1] for p in resting["params"]} == {"alpha", "weight", "scale"}
    assert all(p.dim() == 2 for p in decaying["params"])
    assert len(decaying["params"]) + len(resting["params"]) == len(names)
