"""What a shell of another machine makes of an environment and a folder that `colossalai run` pastes into its line."""

import shlex
import subprocess

import pytest

from llama_dyt.launch.shell_line import escaped, handing_over, pasted, secrets_of

ODD = ["$(touch pwned)", "`touch pwned`", 'a"; touch pwned; "', "a\\", "$HOME", "it's", "a  b", "!x", "*", "ü"]


@pytest.mark.parametrize("value", ODD)
def test_a_value_is_read_as_it_is(value, tmp_path):
    line = " ".join(f'{name}="{kept}"' for name, kept in pasted({"GIVEN": value}).items())  # as the engine writes it
    command = f"export {line} && printenv GIVEN"
    read = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert read.stdout == f"{value}\n" and list(tmp_path.iterdir()) == []


def test_what_is_secret_no_name_or_a_machines_own_is_left_out():
    env = {"HF_TOKEN": "s" * 9, "PROXY": "http://me:pass@host", "BASH_FUNC_x%%": "() { :; }"}
    env |= {"SSH_CLIENT": "1", "A": "b"}
    assert pasted(env) == {"A": "b"} and set(secrets_of(env)) == {"HF_TOKEN", "PROXY"}
    assert list(pasted({})) == ["PATH"], "an export of nothing prints everything"


@pytest.mark.parametrize("name", ["plain", "with space", "a$(touch pwned)b", "it's;", "a`b`", 'q"q', "a&b"])
def test_a_folder_is_gone_to_as_it_is(name, tmp_path):
    (tmp_path / name).mkdir()
    line = escaped(str(tmp_path / name)).replace(" ", "\\ ")  # as fabric does
    seen = subprocess.run(["sh", "-c", f"cd {line} && pwd"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert seen.stdout == f"{tmp_path / name}\n" and [path.name for path in tmp_path.iterdir()] == [name]


class Shell:
    """A connection to this machine's shell."""

    def run(self, command, in_stream, **options):
        given = in_stream.read() if in_stream else ""
        ended = subprocess.run(["sh", "-c", command], input=given, capture_output=True, text=True, check=True)
        return command, ended.stdout


@pytest.mark.parametrize("value", [*ODD, " spaces around "])
def test_secrets_come_by_standard_input_and_not_in_the_line(value):
    secrets = {"A_TOKEN": value, "B_TOKEN": "second-one"}
    command, told = handing_over(Shell, secrets)().run(f"printenv A_TOKEN B_TOKEN {shlex.quote('A_TOKEN')}; cat")
    assert told == f"{value}\nsecond-one\n{value}\n" and "second-one" not in command and value not in command.split()


def test_without_secrets_the_line_is_as_it_was():
    assert handing_over(Shell, {})().run("echo x") == ("echo x", "x\n")
