"""Host files are read as people write them, or refused line by line."""

import pytest

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.launch.hosts import Hosts, read_hosts


def test_comments_blank_lines_slots_and_any_line_ends_are_read(tmp_path):
    file = tmp_path / "hosts"
    file.write_bytes(
        "\ufeff# the cluster\r\nnode-1.lan slots=8  # master\r\n\r\n   \t\n10.0.0.2 slots=8\nnode3".encode()
    )
    assert read_hosts(str(file)) == Hosts(["node-1.lan", "10.0.0.2", "node3"], 8)
    file.write_text("localhost\n")
    assert read_hosts(str(file)) == Hosts(["localhost"], None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no host in it"),
        ("# all commented out\n", "no host in it"),
        ("a\nb\na\n", "line 3: a stands in line 1 already"),
        ("a\nnode[1-4]\n", "line 2: 'node[1-4]' is no host name"),
        ("a gpus=8\n", "line 1: 'gpus=8' is not understood"),
        ("a slots=0\n", "line 1: 'slots=0' is not understood"),
        ("a slots=8\nb slots=4\n", "slots=8 in line 1, slots=4 in line 2"),
        ("a,b\n", "line 1: 'a,b' is no host name"),
    ],
)
def test_what_is_no_host_file_is_refused_with_the_line(tmp_path, text, told):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        read_hosts(str(tmp_path / "hosts"))
    assert told in str(refused.value) and len(refused.value.problems) == 1


def test_a_host_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        read_hosts(str(tmp_path / "absent"))
    (tmp_path / "hosts").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="no text in UTF-8"):
        read_hosts(str(tmp_path / "hosts"))
