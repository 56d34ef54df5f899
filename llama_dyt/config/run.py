"""A whole run: the settings together, built from flags, turned into YAML and back.

Its own file because settings.py says what can be asked for and this says what one run asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from llama_dyt.config.benchmark import BenchmarkSettings
from llama_dyt.config.loss import LossSettings
from llama_dyt.config.options import KINDS, Kind, Option, options_of
from llama_dyt.config.precision import PrecisionSettings
from llama_dyt.config.settings import (
    BoosterSettings,
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
)
from llama_dyt.config.speed import SpeedSettings
from llama_dyt.config.suggest import unknown
from llama_dyt.config.validation import ValidationSettings
from llama_dyt.config.yaml_file import KIND_KEY, canonical_values, dump, load_mapping
from llama_dyt.errors import ConfigurationError

PATHS = (
    "config",
    "model_path",
    "tokenizer",
    "dataset",
    "validation_dataset",
    "save_dir",
    "load",
    "tensorboard_dir",
    "config_file",
    "json",
    "profile",
)
"""The flags that name, or may name, a file or folder."""

_NOT_OF_A_RUN = ("config_file", "dry_run", "dry_run_processes")


@dataclass(frozen=True)
class RunConfig:
    """A whole run. `kind` is the entry it belongs to; the rest is its flags, grouped."""

    kind: Kind = "pretrain"
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    validation: ValidationSettings = ValidationSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    booster: BoosterSettings = BoosterSettings()
    precision: PrecisionSettings = PrecisionSettings()
    speed: SpeedSettings = SpeedSettings()
    run: RunSettings = RunSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()

    @classmethod
    def build(cls, kind: Kind = "pretrain", **flags: Any) -> RunConfig:
        """The run of an entry with some flags given, by long name; the others take that entry's defaults.

        Raises:
            ConfigurationError: a flag the entry does not have, or a value of the wrong type; all of them at once.
        """
        values, problems = canonical_values(flags, all_options(kind), "", kind)
        if problems:
            raise ConfigurationError(problems)
        return cls.settled(kind, values)

    @classmethod
    def settled(cls, kind: Kind, values: dict[str, Any]) -> RunConfig:
        """The run with these converted values, and defaults that depend on what was given put in place."""
        values = dict(values)
        if kind == "finetune" or values.get("model_path") is not None:
            # The weights bring a size and a norm; asking for others must be explicit, so that it can be told apart.
            values.setdefault("config", None)
            values.setdefault("norm", None)
        for name in PATHS:
            # The shell does this for a command line, nobody for a YAML or for --save_dir=~/x.
            if isinstance(values.get(name), str):
                values[name] = os.path.expanduser(values[name])
        groups = {}
        for name, settings in groups_of().items():
            options = options_of(settings).values()
            groups[name] = settings(**{o.name: values.get(o.name, o.default[kind]) for o in options})
        return cls(kind=kind, **groups)

    def replace(self, **flags: Any) -> RunConfig:
        """A copy with some flags changed, by long name, taken as they are."""
        groups = {}
        for name, settings in groups_of().items():
            mine = {flag: flags.pop(flag) for flag in options_of(settings) if flag in flags}
            groups[name] = replace(getattr(self, name), **mine)
        if flags:
            raise TypeError(f"a run has no field {', '.join(flags)}")
        return replace(self, **groups)

    def flags(self) -> dict[str, Any]:
        """The value of every flag the entry has, by long name, in the order they are declared."""
        return {o.name: getattr(getattr(self, group), o.name) for group, o in grouped_options(self.kind)}

    def to_yaml(self) -> str:
        """Every flag of the entry as a YAML key, and `kind`. It can be read back, or given to --config_file.

        Left out are --config_file, which has been read into the rest, and --dry_run and its processes, which are no
        part of a run.
        """
        kept = {name: value for name, value in self.flags().items() if name not in _NOT_OF_A_RUN}
        return dump({KIND_KEY: self.kind, **kept})

    @classmethod
    def from_yaml(cls, source: str | Path, kind: Kind | None = None) -> RunConfig:
        """The run in a YAML text (str) or file (Path), such as the `config.yaml` of a --save_dir.

        Args:
            source: the YAML; keys it does not name take the entry's defaults.
            kind: the entry; None takes the YAML's own `kind`, or pretrain.

        Raises:
            ConfigurationError: it cannot be read, or a key or value is wrong; all problems at once.
        """
        mapping, where = load_mapping(source)
        kind = kind or mapping.get(KIND_KEY, "pretrain")
        if kind not in KINDS:
            raise ConfigurationError(f"{where}{KIND_KEY}: {unknown('entry', str(kind), KINDS)}")
        values, problems = canonical_values(mapping, all_options(kind), where, kind)
        if problems:
            raise ConfigurationError(problems)
        return cls.settled(kind, values)

    @property
    def step_limit(self) -> int | None:
        """Optimizer steps after which the run ends whatever data is left; None for no such limit."""
        return self.benchmark.num_steps if self.kind == "benchmark" else self.run.max_steps

    def sequences_per_step(self, world_size: int) -> int:
        """Sequences in one optimizer step of all ranks together."""
        ranks = self.booster.data_parallel_size(world_size)
        return self.data.batch_size * self.optimizer.gradient_accumulation_steps * ranks

    @property
    def micro_batches_a_step(self) -> int:
        """Micro batches of --mbs sequences that one rank sends through a pipeline in one optimizer step."""
        return self.data.batch_size * self.optimizer.gradient_accumulation_steps // self.booster.micro_batch_size

    def tokens_per_step(self, world_size: int) -> int:
        """Tokens in one optimizer step of all ranks together."""
        return self.sequences_per_step(world_size) * self.data.max_length


def groups_of() -> dict[str, type]:
    """The settings dataclasses of a run by the name of their field in `RunConfig`."""
    return {f.name: type(f.default) for f in fields(RunConfig) if f.name != "kind"}


def grouped_options(kind: Kind | None = None) -> Iterator[tuple[str, Option]]:
    """(group, option) of every flag the entry has, in order; of every flag there is, for None."""
    for group, settings in groups_of().items():
        for opt in options_of(settings).values():
            if kind is None or kind in opt.entries:
                yield group, opt


def all_options(kind: Kind | None = None) -> list[Option]:
    """Every flag the entry has, in order; every flag there is, for None."""
    return [opt for _, opt in grouped_options(kind)]
