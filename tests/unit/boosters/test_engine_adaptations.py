"""What is done to the engine at import and at launch: enough that it runs, and nothing that anybody else can see."""

from llama_dyt.boosters.engine.host import HostAccelerator, HostStream, peak_resident_bytes, reset_peak_resident_bytes

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import forks

ROOT = Path(__file__).parents[3]

ONE_PROCESS_RUN = """
from llama_dyt.core.environment import ProcessEnvironment
from llama_dyt.launch.process_group import launch

launch(seed=0, environment=ProcessEnvironment())
from llama_dyt.boosters.boosted import Boosted
from llama_dyt.boosters.strategy import STRATEGIES
from llama_dyt.models import empty_model
from llama_dyt.training.optimizer import parameter_groups
from tests.distributed import small_run

for plugin in STRATEGIES.names():
    run = small_run.run_config(small_run.Layout(plugin, 1), "bf16")
    model = empty_model(small_run.model_config())
    boosted = Boosted(run, model, parameter_groups(model, 0.1, decay_all=True), small_run.weights(model))
    batches = small_run.batches(run, 0, 1)
    for _ in range(2):
        boosted.forward_backward(next(batches))
        boosted.optimizer_step()
print("done")
"""


def run(program: str) -> subprocess.CompletedProcess:
    """In an interpreter of its own: what it imports, and how it ends, is what the test is about."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_a_good_run_prints_nothing_of_the_engines_and_no_traceback():
    finished = run(ONE_PROCESS_RUN)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "done\n"
    assert finished.stderr == ""


def test_the_engine_runs_where_its_unused_packages_cannot_be_imported():
    block = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("peft", "galore_torch", "bitsandbytes"):
            raise ModuleNotFoundError(name)

import transformers.utils.import_utils  # which looks for them itself, by their specs
sys.meta_path.insert(0, Blocked())
import llama_dyt.boosters
assert not {"peft", "galore_torch", "bitsandbytes"} & set(sys.modules), "stand-ins left behind"
"""
    finished = run(block + ONE_PROCESS_RUN)
    assert finished.returncode == 0, finished.stderr


AFTER_IMPORTING = """
import llama_dyt.boosters.strategies.gemini.plugin, llama_dyt.boosters.engine.host
from colossalai.accelerator import CpuAccelerator, get_accelerator
from colossalai.kernel.kernel_loader import CPUAdamLoader
assert not type(get_accelerator()).__module__.startswith('llama_dyt')
assert all(e.__module__.startswith('colossalai') for e in CPUAdamLoader.REGISTRY)
assert CpuAccelerator
"""


def test_importing_the_boosters_changes_nothing_of_the_engine():
    finished = forks.run(["-c", AFTER_IMPORTING])
    assert finished.returncode == 0, finished.stderr


THE_COMPILER_CALLED = """
import sys, torch
import llama_dyt.boosters
assert 'torch._inductor.compile_fx' not in sys.modules
assert (torch.compile.__module__, torch.compile.__code__.co_filename) == ('torch', torch.__file__)
from colossalai.shardformer.layer.attn import _rescale_out_lse
torch.compiler.set_stance('force_eager')
out, lse = torch.zeros(2, 4, 3), torch.zeros(2, 4, 1)
assert _rescale_out_lse(out, torch.ones(2, 4, 3), lse, lse)[0].shape == out.shape
"""


def test_the_compiler_is_not_imported_with_the_engine_and_is_there_when_called():
    """In a fork, which has imported all that an entry does besides."""
    finished = forks.run(["-c", THE_COMPILER_CALLED])
    assert finished.returncode == 0, finished.stderr


MESSAGES = """
from llama_dyt.boosters.engine.compat import apply_compat
apply_compat()
import inspect
looks = []
upstream = inspect.stack
inspect.stack = lambda *args: looks.append(1) or upstream(*args)
from colossalai.logging import get_dist_logger
logger = get_dist_logger()
logger.debug("a word")
logger.set_level("DEBUG")
unheard = len(looks)
logger.debug("a word")
print(unheard, len(looks))
"""


def test_the_engine_looks_for_its_callers_only_where_somebody_listens():
    finished = forks.run(["-c", MESSAGES])
    assert finished.stdout.split()[-2:] == ["0", "1"], finished.stderr


def test_the_host_accelerator_answers_what_training_asks():
    accelerator = HostAccelerator()
    assert accelerator.get_current_device() == torch.device("cpu")
    assert accelerator.current_device() == 0
    stream = accelerator.Stream()
    stream.wait_stream(accelerator.current_stream())
    event = accelerator.Event()
    event.record(stream)
    event.wait()
    with accelerator.stream(stream):
        accelerator.synchronize()
    assert stream.query()
    assert isinstance(accelerator.default_stream(), HostStream)
    accelerator.manual_seed(3)
    state = accelerator.get_rng_state()
    drawn = torch.rand(2)
    accelerator.set_rng_state(state)
    assert torch.equal(torch.rand(2), drawn)
    assert 0 < accelerator.memory_allocated() <= accelerator.max_memory_allocated() * 1.05


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can start a new peak")
def test_peak_memory_starts_anew():
    reset_peak_resident_bytes()
    before = peak_resident_bytes()
    # Not a tensor's memory: the tests run with glibc told to keep what is freed.
    with mmap.mmap(-1, 200_000_000) as region:
        for page in range(0, len(region), mmap.PAGESIZE):
            region[page] = 1
    assert peak_resident_bytes() > before + 150e6
    reset_peak_resident_bytes()
    assert peak_resident_bytes() < before + 100e6
