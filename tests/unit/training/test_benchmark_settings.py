from llama_dyt.config.check import collect_problems
from llama_dyt.config.cli import read


def problems(*words: str) -> list[str]:
    run, found = read("benchmark", words)
    return found + collect_problems(run, 1, "cpu")


def test_places_that_cannot_be_written_are_told_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("x")
    assert problems("--json", str(tmp_path), "--profile", str(tmp_path / "file")) == [
        f"--json {tmp_path}: it is a folder; give a file that can be written",
        f"--profile {tmp_path / 'file'}: it is a file; give a folder that can be written",
    ]
    assert problems("--json", str(tmp_path / "new" / "result.json"), "--profile", str(tmp_path / "new")) == []


def test_a_flag_with_a_bare_value_can_stand_alone_or_take_one():
    assert read("benchmark", [])[0].benchmark.profile is None
    assert read("benchmark", ["--profile"])[0].benchmark.profile == "profile"
    assert read("benchmark", ["--profile", "traces", "-s", "3"])[0].benchmark.profile == "traces"
    assert read("benchmark", ["--profile", "-s", "3"])[0].benchmark.profile == "profile"


def test_something_must_be_left_to_measure():
    (problem,) = problems("-s", "2", "-i", "2")
    assert problem.startswith("--ignore_steps 2 leaves none of --num_steps 2")
