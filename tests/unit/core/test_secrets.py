"""What counts as a secret, and that nothing of it is left."""

import io
import os
import stat
import sys

import pytest

from llama_dyt.core import files
from llama_dyt.core.secrets import is_secret_name, keep_out_of_output, redact, redacted

SECRET = "s3cr3t-0f-the-night"


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "WANDB_API_KEY", "AWS_SESSION_TOKEN", "hf-token"]
    + ["DB_PASSWORD", "password", "OPENAI_APIKEY", "GOOGLE_CREDENTIALS", "MLFLOW_TRACKING_PASSWORD", "SSH_PRIVATE_KEY"],
)
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["generate_tokens", "tokens_seen", "max_new_tokens", "pad_token", "eos_token", "tokenizer", "HF_TOKEN_PATH", "lr"]
    + ["SSH_AUTH_SOCK", "author", "num_attention_heads", "AWS_SHARED_CREDENTIALS_FILE", "tokens_per_second", "monkey"],
)
def test_other_names(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "text, left",
    [
        (f"https://me:{SECRET}@host:80/x?y=1", "https://***@host:80/x?y=1"),
        (f"failed: s3://{SECRET}@bucket/key, twice", "failed: s3://***@bucket/key, twice"),
        (f"https://h/x?X-Amz-Signature={SECRET}&a=1", "https://h/x?X-Amz-Signature=***&a=1"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
        (f"token is {SECRET}!", "token is ***!"),
        ("hf_" + "a" * 34, "***"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("mail me@host, 3 @ 4, https://host/a@b", "mail me@host, 3 @ 4, https://host/a@b"),
    ],
)
def test_a_text_loses_them_and_nothing_else(text, left):
    assert redact(text, {"MY_TOKEN": SECRET}) == left


def test_one_within_another_leaves_nothing():
    env = {"A_TOKEN": SECRET, "B_TOKEN": f"{SECRET}-and-more"}
    assert redact(f"<{SECRET}-and-more>", env) == "<***>"


def test_short_values_are_not_looked_for():
    assert redact("lr 1e-3, step 12", {"A_TOKEN": "1", "B_SECRET": "step"}) == "lr 1e-3, step 12"


def test_values_of_all_kinds():
    given = {"lr": 0.1, "hub_token": SECRET, "paths": (f"a://u:{SECRET}@h",), "deep": {"api_key": SECRET}, "none": None}
    assert redacted(given) == {
        "lr": 0.1,
        "hub_token": "***",
        "paths": ("a://***@h",),
        "deep": {"api_key": "***"},
        "none": None,
    }


def test_what_is_printed(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    keep_out_of_output()
    print("token", SECRET, "end")
    sys.stderr.writelines([f"{SECRET}\n", "x\n"])
    assert out.getvalue() == "token *** end\n" and err.getvalue() == "***\nx\n" and not sys.stderr.isatty()


def test_files_have_the_permissions_that_their_owner_wants(tmp_path):
    before = os.umask(0o077)
    try:
        files.write_text(tmp_path / "a.txt", "x")
        with files.made_whole(tmp_path / "folder") as aside:
            aside.mkdir()
            (aside / "b").write_text("x")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"a.txt": 0o600, "folder": 0o700, "b": 0o600}
