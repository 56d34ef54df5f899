"""The store s3:// against a real server, with a proxy before it that throttles, fails, cuts and forgets."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from llama_dyt.core import store_copies
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.store import MARKER, at, store_of
from llama_dyt.core.stores import s3 as module
from tests.s3_server import BUCKET, KEY, SECRET, Fault, of_both, use

pytest.importorskip("boto3", reason="needs boto3")
pytest.importorskip("moto", reason="needs moto[s3]")
RUN = f"s3://{BUCKET}/runs/7"
PART = 5 << 20  # the least that a server takes


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path):
    """The server, empty and without faults, as this process's environment names it."""
    monkeypatch.setattr(module, "PART_BYTES", PART)
    return use(s3_server, monkeypatch, tmp_path / "cache")


def written(path, content: bytes):
    path.write_bytes(content)
    return path


@of_both
def test_files_come_and_go_and_are_listed_by_folder(s3, tmp_path):
    store = module.STORE
    for key in ("runs/7/a", "runs/7/below/b", "runs/77/c"):
        store.put(f"s3://{BUCKET}/{key}", written(tmp_path / "file", key.encode()))
    assert store.list(RUN) == {f"{RUN}/a": 8, f"{RUN}/below/b": 14}
    assert store.list(f"{RUN}/a") == {f"{RUN}/a": 8}
    assert len(store.list(f"s3://{BUCKET}")) == 3
    assert (at(RUN) / "below").is_dir() and (at(RUN) / "a").is_file() and not at(f"s3://{BUCKET}/run").exists()
    assert (at(RUN) / "below/b").read_text() == "runs/7/below/b"
    store.delete(f"{RUN}/a")
    store.delete(f"{RUN}/a")
    with pytest.raises(FileNotFoundError):
        store.read(f"{RUN}/a")


@of_both
def test_a_file_that_is_there_is_not_put_anew_and_a_lost_answer_is_no_second_owner(s3, tmp_path):
    store, first, second = module.STORE, written(tmp_path / "1", b"first"), written(tmp_path / "2", b"second")
    s3.faults.append(Fault("PUT .*claim", "lost", times=1))  # the request is sent again, and finds itself
    assert store.put_new(f"{RUN}/.claim.1", first)
    assert s3.made == ["lost"]
    assert not store.put_new(f"{RUN}/.claim.1", second) and store.read(f"{RUN}/.claim.1") == b"first"


def test_of_many_that_claim_at_once_one_is_first(s3, tmp_path, monkeypatch):
    store, address = module.STORE, f"{RUN}/.claim.1"
    monkeypatch.setattr(store, "list", lambda address: {})  # all look before any puts
    contents = [written(tmp_path / str(number), f"run {number}".encode()) for number in range(6)]
    won = []
    threads = [
        threading.Thread(target=lambda file=file: won.append(file.name) if store.put_new(address, file) else None)
        for file in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.read(address).decode() == f"run {won[0]}"


@pytest.mark.parametrize(
    ("s3_server", "kind"),
    [("moto", kind) for kind in ("slow_down", "internal_error", "cut", "slow")] + [("s3rver", "cut")],
    indirect=["s3_server"],
)
def test_a_large_file_is_sent_in_parts_and_a_part_that_fails_alone_again(s3, tmp_path, kind):
    content = os.urandom(3 * PART + 12345)
    s3.faults.append(Fault(r"PUT .*partNumber=2", kind, times=1))
    module.STORE.put(f"{RUN}/weights", written(tmp_path / "file", content))
    assert s3.made == [kind]
    sent = sum(taken for method, path, taken, _ in s3.asked if "partNumber" in path)
    assert sent <= len(content) + PART + 4096, "only the part that failed was sent again"
    s3.faults += [Fault(r"GET .*weights", "half" if kind == "cut" else kind, times=2)]
    module.STORE.get(f"{RUN}/weights", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


def test_what_killed_processes_did_not_finish_is_aborted_in_folders_of_ours(s3, tmp_path):
    client = module.STORE._client()
    for key in ("runs/7/step_00000004/model/weights", "runs/7/tb/events", "runs/8/step_00000004/x"):
        client.create_multipart_upload(Bucket=BUCKET, Key=key)
    module.STORE.write_text(at(RUN) / "step_00000004/half", "")
    said = []
    module.STORE.clear(at(RUN), lambda name: name.startswith("step_"), lambda folder: False, said.append)
    left = [upload["Key"] for upload in client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]]
    assert left == ["runs/7/tb/events", "runs/8/step_00000004/x"] and len(said) == 1 and not module.STORE.list(RUN)


def test_a_server_that_cannot_list_what_was_not_finished_keeps_it(s3):
    s3.faults.append(Fault("GET .*uploads", "not_known"))
    module.STORE.write_text(at(RUN) / "step_00000004/half", "")
    module.STORE.clear(at(RUN), lambda name: name.startswith("step_"), lambda folder: False, print)
    assert "not_known" in s3.made and not module.STORE.list(RUN)


EXPECTED = {
    "expired": "the credentials have expired; renew them",
    "denied": "no permission for it",
    "unknown_key": "the server does not know the access key",
    "wrong_secret": "the secret key is not the access key's",
    "other_region": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "slow_down": "the server throttles, for longer than was waited",
    "internal_error": "the server failed (InternalError), for longer than was waited",
    "cut": "does not answer; look at AWS_ENDPOINT_URL and at the network",
}


def test_what_lasts_is_one_line_without_a_secret_and_leaves_nothing(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setattr(module.STORE, "_clients", {})
    module.STORE.put(f"{RUN}/weights", written(tmp_path / "file", b"weights"))
    for kind, expected in EXPECTED.items():
        s3.faults[:] = [Fault("", kind)]
        for act, file in ((module.STORE.put, "file"), (module.STORE.get, "back")):
            with pytest.raises(OSError) as caught:
                act(f"{RUN}/weights", tmp_path / file)
            message = str(caught.value)
            assert message.startswith(f"{RUN}/weights: ") and expected in message and "\n" not in message, kind
            assert SECRET not in message and KEY not in message, kind
            assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["file"], kind


def test_credentials_that_are_renewed_in_their_file_are_taken_up(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(module.STORE, "_clients", {})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = written(tmp_path / "credentials", b"[default]\naws_access_key_id = OLD\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    module.STORE.list(RUN)
    file.write_text("[default]\naws_access_key_id = NEW\naws_secret_access_key = y\n")
    s3.faults.append(Fault("", "expired", times=1))
    module.STORE.list(RUN)
    assert module.STORE._client()._get_credentials().access_key == "NEW"


@pytest.mark.parametrize(
    ("changes", "address", "expected"),
    [
        ({}, "s3://no-such-bucket-here/7", "there is no bucket 'no-such-bucket-here'"),
        ({"AWS_ENDPOINT_URL": "http://me:hidden@127.0.0.1:9"}, RUN, "the server http://127.0.0.1:9 does not answer"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, RUN, "there are no credentials; set AWS_PROFILE"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, RUN, "half of the credentials is missing"),
        ({"AWS_PROFILE": "nobody"}, RUN, "AWS_PROFILE names a profile that is in none"),
    ],
)
def test_what_cannot_be_written_is_told_before_a_run(s3, monkeypatch, changes, address, expected):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(module.STORE, "_clients", {})
    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    reason = store_of(address).why_not_writable(at(address))
    assert reason is not None and expected in reason and "hidden" not in reason, reason


@of_both
def test_looking_whether_a_folder_can_be_written_leaves_nothing(s3):
    assert module.STORE.why_not_writable(at(RUN)) is None and module.STORE.list(RUN) == {}
    s3.faults.append(Fault("PUT", "denied"))
    assert "no permission" in module.STORE.why_not_writable(at(RUN))


@pytest.mark.parametrize("address", ["s3://", "s3:///x", "s3://bucket//x"])
def test_an_address_that_is_none_is_told_with_its_flag(address):
    with pytest.raises(ConfigurationError, match="--load s3://.*: is no address; give s3://BUCKET/FOLDER"):
        at(address, "load")


def test_without_its_package_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigurationError, match="--save_dir s3://b/x: s3:// needs the package boto3; run `pip install"
    ):
        at("s3://b/x")


def test_nothing_of_it_is_imported_before_it_is_asked():
    code = "import sys, llama_dyt.core.store as s; s.at('s3://b/x'); print([m for m in sys.modules if 'boto' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_copies_stay_within_their_bound_and_those_in_use_stay(s3, monkeypatch):
    monkeypatch.setattr("llama_dyt.core.object_store._used", [])
    for run in ("1", "2", "3"):
        module.STORE.write_text(at(f"s3://{BUCKET}/{run}/step_1/weights"), run * 1000)
    monkeypatch.setenv(store_copies.BOUND_VARIABLE, "0.0000025")
    homes = []
    for run in ("1", "2", "3"):
        place = at(f"s3://{BUCKET}/{run}/step_1")
        copy = module.STORE.local(place)
        assert (copy / "weights").read_text() == run * 1000
        homes.append(copy.parent)
        if run == "2":  # the process that read the first is gone
            from llama_dyt.core import object_store

            object_store._used.pop(0).close()
    assert [home.exists() for home in homes] == [False, True, True]
    monkeypatch.setenv(store_copies.BOUND_VARIABLE, "much")
    with pytest.raises(OSError, match="LLAMA_DYT_CACHE_GB=much is no size"):
        module.STORE.local(at(f"s3://{BUCKET}/1/step_1"))


@of_both
def test_a_checkpoint_is_there_when_its_marker_is(s3):
    staging = module.STORE.stage(at(RUN) / "step_1", "0a")
    staging.begin(print)
    (staging.folder("model") / "weights").write_bytes(b"w")
    staging.hand_over()
    assert not (at(RUN) / "step_1" / MARKER).is_file()
    staging.publish("{}", print)
    puts = [path for method, path, *_ in s3.asked if method == "PUT"]
    assert puts[-1].split("?")[0].endswith(MARKER)
