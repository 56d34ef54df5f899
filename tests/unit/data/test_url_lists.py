"""Lists of addresses: the records of the files they name, places in them, and what is wrong told by list and line."""

import json

import pytest
from corpora import write_jsonl
from loading import token_batches

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.core.store import at, store_of
from llama_dyt.core.stores import web
from llama_dyt.data.formats.format import format_of
from llama_dyt.data.formats.hub import lists_in
from llama_dyt.data.formats.sources import ReadOptions
from llama_dyt.data.opening import LoaderOptions, check_data, files_in_words, open_data, open_sources, open_text
from llama_dyt.data.order.mixture_file import read_mixture
from llama_dyt.data.preparing.parts import bad_records, cut_parts, read_part
from tests.hub_server import Hub, serving
from tests.servers import Faulty, listening

TEXTS = [f"document {number} " + "word " * (number % 9) for number in range(240)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A web server with three files, and lists of them in a folder like a clone of RedPajama-Data-1T."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(web, "_FIRST_SECONDS", 0.01)
    write_jsonl(tmp_path / "web/v1/arxiv/a.jsonl", TEXTS[:80], id=[1])
    write_jsonl(tmp_path / "web/v1/book/b.jsonl.zst", TEXTS[80:160])
    write_jsonl(tmp_path / "web/v1/book/c 3.jsonl.gz", TEXTS[160:], url="x")
    with serving(Hub({}, web=tmp_path / "web")) as hub:
        there = f"{hub.url}/web/v1"
        lists = {"arxiv": f"{there}/arxiv/a.jsonl\n", "book": f"\n# books\n{there}/book/b.jsonl.zst?moved\r\n"}
        lists["book"] += f"{there}/book/c%203.jsonl.gz"
        (tmp_path / "clone/urls").mkdir(parents=True)
        for name, text in lists.items():
            (tmp_path / f"clone/urls/{name}.txt").write_text(text)
        (tmp_path / "clone/README.md").write_text("no data")
        yield hub, tmp_path / "clone"


def texts_of(source, position=None):
    return [values[0] for values, _ in source.iterate(position)]


def read(dataset, **options):
    return open_text(str(dataset), ReadOptions(**options))


def test_records_and_every_place_in_them(here):
    hub, clone = here
    records = list(read(clone).iterate())
    assert [values[0] for values, _ in records] == TEXTS
    assert {place["file"] for _, place in records} == {"arxiv/a.jsonl", "book/b.jsonl.zst", "book/c 3.jsonl.gz"}
    for number in (0, 79, 80, 120, 159, 160, 239):
        position = json.loads(json.dumps(records[number][1]))
        assert texts_of(read(clone), position) == TEXTS[number + 1 :]
    assert sorted(hub.sent) == ["v1/arxiv/a.jsonl", "v1/book/b.jsonl.zst", "v1/book/c 3.jsonl.gz"]
    assert all(hub.sent[name] == (hub.web / name).stat().st_size for name in hub.sent)  # once for all of this machine
    assert texts_of(read(clone, task="book")) == TEXTS[80:]
    assert texts_of(read(clone / "urls/arxiv.txt")) == TEXTS[:80]
    assert texts_of(read(f"{hub.url}/web/v1/book/b.jsonl.zst?moved")) == TEXTS[80:160]
    assert "3 files" in read(clone).in_words() and not read(clone).is_local


def test_steps_are_those_of_the_same_files_on_a_disk_and_gone_on_with(here, tokenizer):
    hub, clone = here
    there, here = (list(token_batches(str(name), tokenizer, 32, 4)) for name in (clone, hub.web))
    assert [step.position["tokens"] for step in there] == [step.position["tokens"] for step in here]
    half = len(there) // 2
    rest = list(token_batches(str(clone), tokenizer, 32, 4, state=json.loads(json.dumps(there[half].position))))
    for step, again in zip(here[half + 1 :], rest, strict=True):
        assert step.micro_batches[0]["input_ids"].equal(again.micro_batches[0]["input_ids"])


def test_a_share_fetches_its_files_alone(here):
    hub, clone = here
    assert texts_of(read(clone).share(1, 3)) == TEXTS[80:160]
    assert list(hub.sent) == ["v1/book/b.jsonl.zst"]
    with pytest.raises(DataError, match="has 3 files, and --stream_shares is 4"):
        read(clone).share(0, 4)


def test_what_breaks_off_or_fails_for_a_while_is_waited_for(here):
    hub, clone = here
    file = "v1/arxiv/a.jsonl"
    hub.faults += [("GET .*a.jsonl", fault) for fault in (503, "cut", "cut", 500)] + [("HEAD .*b.jsonl", 429)]
    assert texts_of(read(clone)) == TEXTS and not hub.faults
    size = (hub.web / file).stat().st_size
    begins = [begin for name, begin in hub.ranges if name == file]
    assert begins[0] == int(size * 2 / 3) < begins[1]  # each goes on where the one before broke off
    assert hub.sent[file] == size


def test_a_file_that_became_another_meanwhile_is_fetched_from_its_beginning(here, tmp_path):
    hub, clone = here
    hub.faults.append(("GET .*a.jsonl", "cut"))

    class Changing(list):
        def append(self, entry):  # of what was asked: the second request finds another file there
            super().append(entry)
            if [path for path in self if "a.jsonl" in path][1:]:
                write_jsonl(hub.web / "v1/arxiv/a.jsonl", TEXTS[:5])

    hub.asked = Changing()
    store_of(f"{hub.url}/x").get(f"{hub.url}/web/v1/arxiv/a.jsonl", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == (hub.web / "v1/arxiv/a.jsonl").read_bytes()


WRONG = {
    "ftp://h/a.jsonl": "urls/arxiv.txt, line 2: 'ftp://h/a.jsonl' is no address of a file",
    "two words": "urls/arxiv.txt, line 2: 'two words' is no address of a file .https://….; correct the list",
    "https:///a.jsonl\nfile:///etc/x.jsonl": "line 2: .*, and 1 more lines are none; correct the list",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_line_that_is_no_address_is_told_by_list_and_line(here, line):
    _, clone = here
    with open(clone / "urls/arxiv.txt", "a") as stream:
        stream.write(line)
    (problem,) = check_data(str(clone))
    assert "\n" not in problem
    with pytest.raises(DataError, match=WRONG[line]):
        open_data(clone)


def test_what_the_server_does_not_have_is_told_by_list_and_line(here, monkeypatch):
    hub, clone = here
    (hub.web / "v1/book/b.jsonl.zst").unlink()
    (problem,) = check_data(str(clone))  # it is the first of its list
    expected = f"urls/book.txt, line 3: {hub.url}/web/v1/book/b.jsonl.zst?moved: the server has no such file"
    assert expected in problem and "take the line out" in problem and "\n" not in problem
    with pytest.raises(DataError, match="urls/book.txt, line 3: .* is not there; take the line out"):
        texts_of(read(clone))
    with pytest.raises(DataError, match="^[^\n]*urls/book.txt, line 3: [^\n]*$"):
        read(clone).sized_files()
    monkeypatch.setattr(web, "LOOKS", 2)
    hub.faults += [("arxiv", 500)] * 2 + [("arxiv", 403)] * 2
    (problem,) = check_data(str(clone / "urls/arxiv.txt"))
    assert "line 1" in problem and "the server failed (500), for longer than was waited" in problem
    (problem,) = check_data(str(clone / "urls/arxiv.txt"))
    assert "line 1" in problem and "the server refuses it (403)" in problem


def test_what_is_no_list_of_data_is_one_line(here, tmp_path, monkeypatch):
    hub, clone = here
    monkeypatch.setattr(web, "LOOKS", 1)
    (tmp_path / "pages.txt").write_text(f"{hub.url}/web/page.html\n{hub.url}/web/x.tar")
    (tmp_path / "twice.txt").write_text(f"{hub.url}/web/a.jsonl\n{hub.url}/web/a.jsonl.gz")
    for dataset, expected, task in (
        (tmp_path / "pages.txt", "names no .jsonl.* file .found page.html, x.tar", None),
        (tmp_path / "twice.txt", "the same data twice", None),
        (clone, "has no part 'c4'; choose with --task_name one of: arxiv, book", "c4"),
        ("http://", "is no address; give https://HOST/FILE", None),
        ("http://127.0.0.1:9/a.jsonl", "the server does not answer .Connection refused.", None),
        (f"{hub.url}/web/urls.txt", "the server has no such file", None),
        (f"{hub.url}/web/a.jsonl", "the server has no such file", None),
    ):
        found = check_data(str(dataset), ReadOptions(task=task))
        assert len(found) == 1 and "\n" not in found[0], found
        with pytest.raises(DataError, match=expected):
            raise DataError(str(found[0]))
    with pytest.raises(OSError, match="web servers only give files out"):
        store_of(hub.url).write_text(at(f"{hub.url}/x"), "")
    assert "only give" in store_of(hub.url).why_not_writable(at(hub.url))
    with pytest.raises(ConfigurationError, match="is no address"):
        at("https://", "save_dir")


def test_a_server_that_knows_no_head_or_redirects_elsewhere(tmp_path):
    class Own(Faulty):
        def do_HEAD(self):
            self.send_error(405)

        def do_GET(self):
            moved = self.path == "/elsewhere"
            self.send_response(302 if moved else 206 if self.headers.get("Range") else 200)
            self.send_header("Location", "ftp://127.0.0.1/x")
            self.send_header("Content-Range", "bytes 0-0/4")
            self.send_header("Content-Length", "1" if self.headers.get("Range") else "4")
            self.end_headers()
            self.wfile.write(b"abcd"[: 1 if self.headers.get("Range") else 4])

    with listening(Own) as url:
        assert store_of(url).list(f"{url}/x") == {f"{url}/x": 4}
        store_of(url).get(f"{url}/x", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == b"abcd"
        with pytest.raises(OSError, match=f"^{url}/elsewhere: is redirected to what is no web server$"):
            store_of(url).get(f"{url}/elsewhere", tmp_path / "file")


def test_a_mixture_weighs_lists_by_their_names(here, tokenizer, tmp_path):
    _, clone = here
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text("sources:\n  a: {path: clone, task: arxiv}\n  b: {path: clone, task: book, weight: 2}\n")
    assert check_data(str(mixture)) == []
    words = files_in_words(str(mixture), ReadOptions())
    assert (
        [line.split(":")[0] for line in words] == ["a", "b"] and "1 file," in words[0] + "," and "2 files" in words[1]
    )
    first, second = open_sources(str(mixture), tokenizer, LoaderOptions())
    assert texts_of(first.data) == TEXTS[:80] and texts_of(second.data) == TEXTS[80:]
    mixture.write_text("sources:\n  a: {path: clone, task: c4}\n  b: {path: clone, task: 5}\n")
    found = check_data(str(mixture))
    assert any("has no part 'c4'" in problem for problem in found) and any("5 is no name" in one for one in found)


def test_parts_of_listed_files_that_are_prepared(here):
    _, clone = here
    source = read(clone)
    assert all(file.size is None for file in source.files)
    parts = cut_parts(source.sized_files(), 1500)
    options = ReadOptions()
    found = [[text for text, _ in read_part(part, None, options, bad_records(options))] for part in parts]
    assert sum(found, []) == TEXTS and len(parts) > 4


def test_which_names_mean_lists(here, tmp_path):
    hub, clone = here
    (tmp_path / "mixture.yaml").write_text("sources:\n  a: {path: clone/urls/arxiv.txt, weight: 2}\n  b: clone\n")
    first, _ = read_mixture(tmp_path / "mixture.yaml").sources
    for name in (clone, clone / "urls/arxiv.txt", hub.url, first.path):
        assert format_of(str(name)).name == "urls"
    (tmp_path / "notes.txt").write_text("see https://example.org")
    assert format_of(str(tmp_path / "notes.txt")).name != "urls"
    write_jsonl(clone / "own.jsonl", TEXTS[:3])  # data beside the lists are what is meant
    assert texts_of(read(clone)) == TEXTS[:3]
    assert lists_in(["README.md", "R.py", "urls.txt", "urls/a.txt", "urls/b.txt"]) == ["urls/a.txt", "urls/b.txt"]
    assert lists_in(["urls/a.txt", "data/a.parquet"]) == []
