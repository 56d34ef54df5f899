"""Snapshots of what lies on a GPU: copied straight into memory that outlives the process, and back to the same bits."""

import os
from pathlib import Path

import pytest
import torch

from llama_dyt.training.snapshots.slot import Slot, fingerprint_of
from tests.cli.conftest import corpus  # noqa: F401
from tests.cli.entries import Command
from tests.cli.test_snapshots import course, flags_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


def test_a_slot_is_pinned_and_holds_what_the_device_had(tmp_path):
    folder = Path("/dev/shm") if os.path.isdir("/dev/shm") else tmp_path
    slot = Slot(folder, 99_999, 0, 2**24)
    try:
        assert slot.pin() and slot.memory.is_pinned()
        numbers = torch.randn(2**22, device="cuda")
        slot.memory.view(torch.float32).copy_(numbers, non_blocking=True)
        torch.cuda.synchronize()
        assert torch.equal(slot.memory.view(torch.float32), numbers.cpu())
        assert fingerprint_of(slot.memory)[1]
    finally:
        (folder / "rank99999.0").unlink()


@pytest.mark.parametrize("plugin", ["zero2", "fsdp", "gemini"])
def test_a_killed_run_goes_on_from_the_snapshot_on_a_gpu(corpus, tmp_path, plugin):  # noqa: F811
    through = tmp_path / "through"
    through.mkdir()
    (through / "killed").touch()
    undisturbed = Command("pretrain", flags_of(corpus, through, plugin=plugin), through).run()
    assert undisturbed.status == 0, undisturbed.stderr
    flags = flags_of(corpus, tmp_path, plugin=plugin)
    assert Command("pretrain", flags, tmp_path).run().status != 0
    again = Command("pretrain", flags, tmp_path).run()
    assert again.status == 0, again.stderr
    assert "resumed from the snapshot in memory, step 6, 2 steps lost" in again.stderr
    # A GPU's sums need not be the same twice.
    assert [line[0] for line in course(tmp_path)] == [line[0] for line in course(through)]
    losses = [line[1] for line in course(through)]
    assert [line[1] for line in course(tmp_path)] == pytest.approx(losses, abs=2e-2)
