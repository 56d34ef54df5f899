"""The settings of 8-bit matrix products, and what is wrong with them.

The plugin, the device and the precision of the rest together decide whether they are possible.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llama_dyt.boosters.strategy import STRATEGIES, able
from llama_dyt.config.options import option
from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem


@dataclass(frozen=True)
class PrecisionSettings:
    """Matrix products of the decoder layers in 8-bit floats (fp8)."""

    fp8: str | None = option(
        None,
        "Multiply matrices of the decoder layers' linears in 8 bits, forward and backward, with --mixed_precision bf16 "
        "for all else. tensorwise (what --fp8 alone means): one scale a tensor; rowwise: one a row, closer and a "
        "little slower. Needs a GPU with compute capability 8.9 or more.",
        choices=("tensorwise", "rowwise"),
        bare="tensorwise",
    )
    fp8_keep_layers: int = option(
        0, "Decoder layers at each end that --fp8 leaves in the working precision.", at_least=0, metavar="LAYERS"
    )
    fp8_emulate: bool = option(
        False,
        "Round to 8 bits as --fp8 does and multiply in fp32, on any device: shows what 8 bits do to the loss, and is "
        "slower than without.",
    )


def precision_problems(run: RunConfig, device: str | None) -> Iterator[Problem]:
    """Problems of --fp8; what GPU there is, is looked at where torch is loaded.

    Args:
        device: "cuda" or "cpu"; None leaves out what depends on it.
    """
    settings, booster = run.precision, run.booster
    if settings.fp8 is None:
        for name, value in (("fp8_emulate", settings.fp8_emulate), ("fp8_keep_layers", settings.fp8_keep_layers)):
            if value:
                reason, remedy = "has no effect without --fp8", "add that, or leave it out"
                text = f"--{name} {reason}; {remedy}"
                yield Problem(name, value, reason, remedy, also=("fp8",), text=text)
        return
    if booster.mixed_precision != "bf16" and not settings.fp8_emulate:
        reason, remedy = "8-bit products give bf16", "take bf16"
        yield Problem(
            "mixed_precision",
            booster.mixed_precision,
            reason,
            remedy,
            also=("fp8",),
            text=f"--fp8 {settings.fp8} with --mixed_precision {booster.mixed_precision}: {reason}; {remedy}",
        )
    if device is None:
        return
    if not STRATEGIES.get(booster.plugin).capability.float8:
        yield Problem(
            "fp8",
            settings.fp8,
            f"--plugin {booster.plugin} takes the linear layers apart or keeps their parameters elsewhere",
            f"leave it out, or take --plugin {' or '.join(able('float8'))}",
            also=("plugin",),
            local=True,
        )
    if device.split(":")[0] == "cpu" and not settings.fp8_emulate:
        yield Problem(
            "fp8",
            settings.fp8,
            "a CPU has no 8-bit matrix products",
            "leave it out, or add --fp8_emulate to see what they do to the loss",
            local=True,
        )
