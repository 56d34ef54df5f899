"""report.html: what it keeps of a long run, that nothing breaks out of it or reaches out, how a browser takes it."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import compare
from llama_dyt.config.run import RunConfig
from llama_dyt.core import console
from llama_dyt.core.errors import DataError
from llama_dyt.training.report.page import embedded, page
from llama_dyt.training.report.reading import read_run
from llama_dyt.training.report.run_data import RunData
from llama_dyt.training.report.series import Series, Table
from llama_dyt.training.trackers.tracker import Sample, Tracked
from llama_dyt.training.trackers.trackers import Trackers

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BREAKS_OUT = "</script><script>document.title='taken'</script><!--"
PARTS = ("input_layernorm", "ffn_norm")
EXPERTS = [f"{layer}.{expert}" for layer in range(32) for expert in range(8)]
SITES = [*(f"model.layers.{layer}.{part}" for layer in range(32) for part in PARTS), "model.norm"]


def record(step, **more):
    return {"step": step, "loss": 2 + 8 * math.exp(-step / 300), "lr": 1e-3, "tokens_per_second": 10.0, **more}


def long_run(steps=10_000, name="long"):
    """As an 8x7B's for 10,000 steps: 19 figures, 65 norms and 256 experts looked at every tenth step, two validation
    sets, a mixture."""
    run = RunData(name, {"title": "a run"}, {"lr": 1e-3, "hub_token": "not to be seen"})
    for step in range(1, steps + 1):
        more = {f"figure_{number}": math.sin(step * (number + 1)) for number in range(12)}
        more["sources"] = {"wiki/tokens": 3 * step, "code/tokens": step, "wiki/documents": step}
        more |= {"router_entropy": 2 - step / 1e5, "expert_load_most": 3.0 - step / 1e5, "expert_load_least": 0.0}
        if step % 10 == 1:
            more["expert_load"] = {name: place * step / 1e6 for place, name in enumerate(EXPERTS)}
            looked_at = {site: math.cos(step + place) for place, site in enumerate(SITES)}
            more |= {"alpha": looked_at, "saturation": looked_at}
        if step == 6_000:
            more["events"] = [{"kind": "spike", "text": BREAKS_OUT}, "a text alone"]
        run.add(record(step, **more) | ({"loss": 99.5} if step == 6_000 else {}))
        if step % 250 == 0:
            run.add({"step": step, "validation_loss": {"wiki": 2.0 + 1 / step, "c4": 2.5}, "validation_seconds": 1.0})
    run.add({"step": steps, "samples": [{"prompt": BREAKS_OUT, "text": BREAKS_OUT, "expected": None}]})
    run.add_events([{"step": 500, "kind": "resumed", "text": "goes on", "time": "2026-01-01T00:00:00"}])
    return run


@pytest.fixture(scope="module")
def long_page():
    return page([long_run().to_json()])


def test_a_series_keeps_extremes_and_ends_in_bounded_room():
    series = Series(limit=100)
    for step in range(1, 100_001):
        series.add(step, 7.0 if step == 31_415 else -7.0 if step == 27_182 else math.sin(step))
    steps, values = series.points()
    assert len(steps) <= 102 and steps[0] == 1 and steps[-1] == 100_000 and steps == sorted(set(steps))
    assert max(values) == 7.0 and steps[values.index(7.0)] == 31_415 and steps[values.index(min(values))] == 27_182


def test_a_run_that_goes_back_has_its_newest_course_alone_and_what_is_not_finite_is_left_out():
    series = Series()
    for step, value in ((1, 1.0), (2, 2.0), (3, float("nan")), (4, 4.0), (2, 20.0), (3, 30.0)):
        series.add(step, value)
    assert series.points() == ([1, 2, 3], [1.0, 20.0, 30.0])


def test_a_table_thins_by_steps_and_keeps_the_largest():
    table = Table(limit=10)
    for step in range(1, 1001):
        table.add(step, {"a": 5.0 if step == 333 else 0.1, **({"late": 1.0} if step > 900 else {})})
    steps, rows = table.rows()
    assert len(steps) <= 10 and max(rows["a"]) == 5.0 and rows["late"][0] is None and rows["late"][-1] == 1.0
    gaps = [after - before for before, after in zip(steps, steps[1:])]
    assert max(gaps) <= 3 * min(gaps), "columns stand for stretches of about one length"


def test_a_page_of_ten_thousand_steps_is_small_and_whole(long_page):
    assert len(long_page.encode()) < 2_000_000
    (run,) = embedded(long_page)
    assert max(run["lines"]["loss"][1]) == 99.5 and run["lines"]["sources/wiki"][1][-1] == 0.75
    of_norms = {(kind, f"model.layers.*.{part}") for kind in ("alpha", "saturation") for part in PARTS}
    assert {(one["kind"], one["group"]) for one in run["maps"]} == {*of_norms, ("expert_load", "*.*")}
    loads = run["maps"][0]
    assert loads["kind"] == "expert_load" and loads["names"] == EXPERTS and len(loads["steps"]) <= 160
    assert loads["newest"] == [9991, [float(f"{place * 9991 / 1e6:.6g}") for place in range(256)]]
    assert {event["kind"] for event in run["events"]} == {"spike", "event", "resumed"}


def test_nothing_in_it_breaks_out_reaches_out_or_is_a_secret(long_page):
    assert long_page.count("<script") == 2 and BREAKS_OUT not in long_page and "not to be seen" not in long_page
    reaching = r"""(?:src|href)=(?!"data:)|url\(|@import|fetch\(|XMLHttp|import\(|https?://(?!www\.w3\.org/2000/svg)"""
    assert re.findall(reaching, long_page) == []
    assert "default-src 'none'" in long_page


def trackers_of(folder, start_step=0):
    run = RunConfig.build("pretrain", tensorboard_dir=None, tracker_run_name="mine")
    trackers = Trackers.of_run(Tracked(run, folder, start_step, 10, "test", "a title", 100), first=True)
    trackers.open()
    return trackers


def test_a_run_writes_it_at_every_save_and_goes_on_with_it(tmp_path):
    first = trackers_of(tmp_path)
    for step in (1, 2, 3):
        first.log(record(step))
    assert not (tmp_path / "report.html").exists()
    first.log_event(3, "saved", "checkpoint")
    first.saved(3)
    (run,) = embedded((tmp_path / "report.html").read_text())
    assert run["lines"]["loss"][0] == [1, 2, 3] and run["about"]["state"] == "running"
    first.log(record(4))
    first.close()  # without `finish`: it failed
    assert embedded((tmp_path / "report.html").read_text())[0]["about"]["state"] == "failed"
    again = trackers_of(tmp_path, start_step=3)
    again.log_event(3, "resumed", "goes on from step 3")
    again.log(record(4, loss_scale=2.0))
    again.log_samples(4, [Sample("a", "b")], 0.1)
    again.finish()
    again.close()
    console.bar_stands(False)
    (run,) = embedded((tmp_path / "report.html").read_text())
    assert run["lines"]["loss"][0] == [1, 2, 3, 4] and run["about"]["state"] == "ended" and run["name"] == "mine"
    assert [event["kind"] for event in run["events"]] == ["saved", "resumed"]
    assert dict(again.results())["report"] == tmp_path / "report.html"
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_a_run_that_logged_nothing_has_none(tmp_path):
    trackers_of(tmp_path).close()
    console.bar_stands(False)
    assert not (tmp_path / "report.html").exists()


def two_runs(folder):
    for name, norm in (("dyt", "dyt"), ("rms", "rmsnorm")):
        (folder / name / "run").mkdir(parents=True)
        lines = [json.dumps(record(step)) for step in range(1, 30)] + ['{"step": 30, "lo']
        (folder / name / "run/metrics.jsonl").write_text("\n".join(lines))
        (folder / name / "run/config.yaml").write_text(f"kind: pretrain\nnorm: {norm}\nlr: 0.001\n")
    return [str(folder / name / "run") for name in ("dyt", "rms")]


def test_runs_beside_each_other_and_one_alone(tmp_path, capsys):
    folders = two_runs(tmp_path)
    compare.main([*folders, "--output", str(tmp_path / "both.html")])
    runs = embedded((tmp_path / "both.html").read_text())
    assert [run["name"] for run in runs] == ["dyt/run", "rms/run"] and runs[1]["config"]["norm"] == "rmsnorm"
    compare.main([folders[0] + "/"])
    assert len(embedded(Path(folders[0], "report.html").read_text())) == 1
    assert capsys.readouterr().out.splitlines()[1] == f"report  {folders[0]}/report.html"


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(DataError, match=r"no metrics.jsonl with records in it; give the --save_dir of a run"):
        read_run(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        compare.main([*two_runs(tmp_path), "-o", str(tmp_path / "file/x.html")])


LOOKS = """
const all = (chosen) => [...document.querySelectorAll(chosen)];
addEventListener("load", () => setTimeout(() => {
  const told = [], figure = document.querySelector("figure"), svg = figure.querySelector("svg");
  const box = svg.getBoundingClientRect(), says = figure.querySelector(".says");
  told.push("title " + document.title, "wide " + (document.documentElement.scrollWidth > innerWidth + 1));
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width * 0.6, clientY: box.top + 20 }));
  told.push("hover " + says.textContent);
  svg.dispatchEvent(new KeyboardEvent("keydown", { key: "Home" }));
  told.push("key " + says.textContent);
  const loads = all("figure").find((one) => one.textContent.includes("at step 9,991"));
  const canvas = loads.querySelector("canvas"), cells = canvas.getBoundingClientRect();
  const last = { clientX: cells.left + cells.width * 0.99, clientY: cells.top + 1 };
  canvas.dispatchEvent(new PointerEvent("pointermove", last));
  loads.querySelector("summary").click();
  told.push("load " + loads.querySelector(".says").textContent, "cells " + canvas.width + "x" + canvas.height);
  const before = svg.querySelector("path").getAttribute("d");
  document.getElementById("log").click();
  told.push("log " + (before !== svg.querySelector("path").getAttribute("d")));
  const smoothing = document.getElementById("smoothing");
  smoothing.value = 0;
  smoothing.dispatchEvent(new Event("input"));
  told.push("paths " + svg.querySelectorAll("path").length);
  figure.querySelector("summary").click();
  setTimeout(() => {
    told.push("loads " + loads.querySelectorAll("tbody td").length);
    told.push("rows " + figure.querySelectorAll("tbody tr").length, "figures " + all("figure").length);
    told.push("canvases " + all("canvas").length);
    told.push("labelled " + all("svg, canvas").every((one) => one.getAttribute("aria-label")));
    const lines = told.map((text) => Object.assign(document.createElement("pre"), { textContent: text }));
    document.body.replaceChildren(...lines);
  }, 200);
}, 100));
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 500])
def test_in_a_browser(long_page, tmp_path, width):
    file = tmp_path / "report.html"
    file.write_text(long_page.replace("</body>", f"<script>{LOOKS}</script></body>"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    command += ["--virtual-time-budget=20000", file.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert "CONSOLE" not in ended.stderr, ended.stderr
    told = dict(line.split(" ", 1) for line in re.findall(r"<pre>([^<]*)</pre>", ended.stdout))
    assert told["title"] == "long – run report" and told["wide"] == "false", "nothing is wider than the screen"
    assert re.match(r"step [56],\d+: training [\d.]+ \(smoothed [\d.]+\) · validation wiki 2\.\d+", told["hover"])
    assert told["key"].startswith("step 1: training 9.9")
    assert told["log"] == "true" and told["paths"] == "3" and int(told["rows"]) > 20 and told["labelled"] == "true"
    assert told["canvases"] == "6" and int(told["figures"]) == 24
    assert told["load"] == "layer 0, expert 7: 0.069937" and told["cells"] == "8x32" and told["loads"] == "256"
