"""A checkpoint format in one file of a user's own, read and written: config.json and NumPy's weights.npz, in fp32."""

from contextlib import contextmanager
from functools import partial

import numpy
import torch

from llama_dyt.convert.source import SOURCES, Opened
from llama_dyt.convert.target import TARGETS
from llama_dyt.convert.weights import Stored, Weights
from llama_dyt.models import build_config, empty_model, save_config


class Npz:
    name, in_words, files, order = "npz", "a model in my own form", "config.json and weights.npz", 20
    takes_config = divided = False
    dtype = "fp32"

    def matches(self, path):
        return (path / "weights.npz").is_file()

    @contextmanager
    def open(self, path, config):
        with numpy.load(path / "weights.npz") as arrays:
            shapes = {name: array.shape for name, array in arrays.items()}
            stored = {name: Stored(shape, torch.float32, f"weights.npz: {name}") for name, shape in shapes.items()}
            weights = Weights(build_config(path), stored, lambda name: torch.from_numpy(arrays[name]))
            yield Opened(weights, partial(self.logits, path))

    def problems(self, weights, num_shards):
        return []

    def write(self, job, folder):
        save_config(job.weights.config, folder)
        numpy.savez(folder / "weights.npz", **{name: job.weights.read(name).numpy() for name in job.weights.stored})
        return {}

    @torch.no_grad()
    def logits(self, folder, input_ids, dtype):
        model = empty_model(build_config(folder)).to_empty(device="cpu")
        with numpy.load(folder / "weights.npz") as arrays:
            model.load_state_dict({name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()})
        return model.float().eval()(input_ids, use_cache=False).logits[0]


SOURCES.register(Npz())
TARGETS.register(Npz())
