"""What is printed and written of where ranks stood."""

from __future__ import annotations

from llama_dyt.core import accounts, stacks
from llama_dyt.core.accounts import Account


def account(rank: int, **changes) -> Account:
    told = {"step": 41, "phase": "backward", "seconds": 2.0, "whole": f"stack {rank}\n"}
    return Account(rank, "node1", 100 + rank, **{**told, **changes})


def test_ranks_that_stood_alike_share_a_line_and_the_one_that_failed_comes_first(tmp_path, capsys):
    waiting = [account(rank, collective="all_reduce #57 of default_pg", seconds=rank) for rank in range(7)]
    accounts.tell_all("rank 7 is gone", [*waiting, account(7, fate="gone", phase="optimizer")], tmp_path)
    title, failed, others = capsys.readouterr().err.splitlines()
    (file,) = (tmp_path / "failures").iterdir()
    assert title == f"where each rank stood (all of it: {file}):"
    assert failed == "  rank 7: gone; step 41, optimizer for 2.0 s"
    assert others == "  ranks 0-6: step 41, backward for 6.0 s, in all_reduce #57 of default_pg"
    whole = file.read_text(encoding="utf-8")
    parts = ["rank 7 is gone", "=== rank 7, process 107 on node1: gone; step 41", "=== rank 0, process 100"]
    assert sorted(map(whole.index, parts)) == list(map(whole.index, parts))
    assert all(f"stack {rank}\n" in whole for rank in range(8))


def test_a_thousand_ranks_that_all_stood_elsewhere_do_not_fill_the_screen(tmp_path, capsys):
    accounts.tell_all("why", [account(rank, step=rank + 1) for rank in range(1000)], None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 20 and lines[-1] == "  and 988 lines more"


def test_where_a_message_says_all_one_line_is_added_and_no_file(tmp_path, capsys):
    alike = [account(0, phase="save", fate="raised"), account(1, phase="save", short="writer.py:9 save")]
    accounts.tell_all("the disk is full", alike, tmp_path, plain=True)
    assert capsys.readouterr().err == "  all ranks: step 41, save\n"
    accounts.tell_all("no such file", [account(rank, step=0, phase="start") for rank in range(2)], tmp_path, plain=True)
    assert capsys.readouterr().err == "" and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_leaves_the_screen_its_lines(tmp_path, capsys):
    (tmp_path / "failures").write_text("in the way")
    accounts.tell_all("why", [account(0), account(1, fate="gone")], tmp_path)
    assert capsys.readouterr().err.splitlines()[0] == "where each rank stood:"


def test_secrets_do_not_come_into_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    accounts.tell_all("the key 0123456789abcdef", [account(0), account(1, fate="gone")], tmp_path)
    (file,) = (tmp_path / "failures").iterdir()
    assert "0123456789abcdef" not in file.read_text(encoding="utf-8")


def test_what_the_main_thread_ended_with_tells_where_it_was():
    def train() -> None:
        raise ValueError("not this rank's day")

    try:
        train()
    except ValueError as error:
        doing = stacks.doing(error)
    assert doing.short.endswith(" train") and doing.collective == ""
