"""Dynamic Tanh folded for inference (`convert.py --fold_dyt`): `python benchmarks/folded.py --help`.

Sides: the model as its folder loads without this package ("as saved"), with this package's kernels ("kernels"), and
with the weights of its norms folded ("folded"). Each is timed over a prompt and over one token behind it, in turns, in
inference mode; first of all it is seen that all give the same logits. Ratios are of times of one round. Results go to
a dated JSON file in benchmarks/results/.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

from common import arguments, keep_large_buffers, ratio_of_pairs, write_report

DTYPES = ("fp32", "bf16")
LIMIT = 1e-5
"""Largest difference of logits in fp32, as a share of the largest logit."""


def make_sides(config_name: str, overrides: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(name → model in fp32, what folding saves)."""
    import torch

    from llama_dyt.convert.fold import fold
    from llama_dyt.convert.weights import Stored, Weights
    from llama_dyt.models import build_config, build_model, empty_model

    config = build_config(config_name, **overrides)
    trained = build_model(config, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.dim() == 1 and parameter.numel() > 1:  # as training leaves a norm's weight: not 1
                parameter.mul_(torch.rand(parameter.shape, generator=generator) + 0.5)
    tensors = trained.state_dict()
    stored = {name: Stored(tuple(tensor.shape), tensor.dtype, name) for name, tensor in tensors.items()}
    folded = fold(Weights(config, stored, lambda name: tensors[name].clone()))
    light = empty_model(folded.weights.config).to_empty(device="cpu").eval()
    light.load_state_dict({name: folded.weights.read(name) for name in folded.weights.stored})
    saved = {"parameters saved": folded.num_saved, "norms folded": folded.sites}
    return {"as saved": trained, "kernels": copy.deepcopy(trained), "folded": light}, saved


def choose_kernels(side: str) -> None:
    """The kernels are one switch for all layers of the process."""
    from llama_dyt.norms.kernels.operator import forward_op, suits
    from llama_dyt.norms.layers.dynamic_tanh import use_kernel

    use_kernel(*((forward_op, suits) if side == "kernels" else (None, None)))


def jobs_of(model: Any, tokens: Any) -> dict[str, Callable[[], Any]]:
    """What is timed: the prompt as a whole, and one token more."""
    past = model(tokens, use_cache=True).past_key_values

    def one_token() -> Any:
        logits = model(tokens[:, -1:], past_key_values=past, use_cache=True).logits
        past.crop(-1)
        return logits

    return {"prompt": lambda: model(tokens, use_cache=False).logits, "token": one_token}


def check_numbers(sides: dict[str, Any], tokens: Any) -> float:
    """Raises SystemExit where the sides do not say the same: a speed would mean nothing."""
    logits = {}
    for side, model in sides.items():
        choose_kernels(side)
        logits[side] = model(tokens, use_cache=False).logits
    largest = logits["as saved"].abs().amax()
    difference = max((other - logits["as saved"]).abs().amax() for other in logits.values()) / largest
    if not difference <= LIMIT:
        raise SystemExit(f"logits differ by {difference:.1e} of the largest")
    return difference.item()


def measure(sides: dict[str, Any], tokens: Any, dtype: str, device: str, rounds: int) -> list[dict[str, Any]]:
    import torch

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    calls = {}
    for side, model in sides.items():
        choose_kernels(side)
        for what, call in jobs_of(model.to(device, kind), tokens.to(device)).items():
            calls[side, what] = call
    rows, order = [], list(calls)
    for number in range(-1, rounds):  # round -1 warms up
        for side, what in order:
            choose_kernels(side)
            if device == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            calls[side, what]()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
            rows.append({"side": side, "what": what, "dtype": dtype, "round": number, "seconds": seconds})
        order = order[1:] + order[:1]
    return [row for row in rows if row["round"] >= 0]


def seconds_of(rows: list[dict[str, Any]], side: str, what: str) -> list[float]:
    return [row["seconds"] for row in rows if (row["side"], row["what"]) == (side, what)]


def summarise(rows: list[dict[str, Any]], dtype: str) -> dict[str, Any]:
    print(f"\n| {dtype} | prompt, ms | token, ms |\n| --- | --- | --- |")
    for side in dict.fromkeys(row["side"] for row in rows):
        medians = [1e3 * statistics.median(seconds_of(rows, side, what)) for what in ("prompt", "token")]
        print(f"| {side} | {medians[0]:.2f} | {medians[1]:.3f} |")
    return {
        f"{dtype} {what}: folded / {other}": ratio_of_pairs(
            seconds_of(rows, "folded", what), seconds_of(rows, other, what)
        )
        for what in ("prompt", "token")
        for other in ("as saved", "kernels")
    }


def main() -> None:
    parser = arguments(
        __doc__,
        config=("15m", "size"),
        layers=(0, "layers in place of the size's own; 0 keeps them"),
        length=(256, "tokens of the prompt"),
        rounds=(21, "how often each side is measured"),
        device=("", "cpu or cuda; cuda if there is one"),
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: fp32 bf16")
    chosen = parser.parse_args()
    keep_large_buffers()

    import torch

    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    sides, saved = make_sides(chosen.config, {"num_hidden_layers": chosen.layers} if chosen.layers else {})
    config = sides["folded"].config
    tokens = torch.randint(config.vocab_size, (1, chosen.length), generator=torch.Generator().manual_seed(0))
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        summary: dict[str, Any] = {**saved, "bytes saved in fp32": 4 * saved["parameters saved"]}
        summary["largest difference of logits, as a share"] = f"{check_numbers(sides, tokens):.1e}"
        for dtype in chosen.dtypes:
            found = measure(sides, tokens, dtype, device, chosen.rounds)
            summary |= summarise(found, dtype)
            rows += found
    print()
    write_report(
        f"folded-{device}", chosen.results, rows, summary, threads=torch.get_num_threads(), length=chosen.length
    )


if __name__ == "__main__":
    main()
