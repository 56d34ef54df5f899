"""benchmarks/folded.py sees that a folded model says the same, and says what folding saves."""

from __future__ import annotations

import json
import os

from tests.forks import ROOT, run


def test_what_folding_saves_is_measured_beside_what_it_changes(tmp_path):
    flags = {"layers": 2, "length": 16, "rounds": 2, "dtypes": "fp32", "device": "cpu", "results": tmp_path}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    buffers = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}  # else it starts anew
    ended = run([str(ROOT / "benchmarks/folded.py"), *words], env={**os.environ, **buffers})
    assert ended.returncode == 0, ended.stderr
    (file,) = tmp_path.iterdir()
    report = json.loads(file.read_text(encoding="utf-8"))
    summary = report["summary"]
    assert summary["parameters saved"] == 5 * 288 and summary["norms folded"] == 5
    assert float(summary["largest difference of logits, as a share"]) < 1e-5
    for what in ("prompt", "token"):
        for other in ("as saved", "kernels"):
            assert summary[f"fp32 {what}: folded / {other}"]["pairs"] == 2
            assert f"fp32 {what}: folded / {other}: " in ended.stdout
    assert len(report["rows"]) == 2 * 2 * 3
