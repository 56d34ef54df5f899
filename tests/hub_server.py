"""A HuggingFace hub on this machine, with as much of its protocol as the real clients ask for.

Repositories of models and datasets are folders. Information, trees by pages, files by redirects with the headers of
large files, ranges, tokens, gated and missing ones; and faults: 429, 5xx, cut connections. Uploads go into a dict.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.servers import Faulty, listening

TOKEN = "hf_tests_only"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_HERE = """
import importlib, os
os.environ["HF_HUB_OFFLINE"] = "0"
rank = "rank" + os.environ.get("SLURM_PROCID", "0")
os.environ["HF_TOKEN"] = rank
if "CACHES" in os.environ:
    os.environ["XDG_CACHE_HOME"] = os.path.join(os.environ["CACHES"], rank)
import datasets.config, huggingface_hub.constants
importlib.reload(huggingface_hub.constants)
importlib.reload(datasets.config)
"""
"""A module to import: a fork has imported the client already, which has read the environment then. The server tells
ranks by their tokens; where CACHES is a folder, each rank has a cache of its own, as if on a machine of its own."""
_LARGE = (".safetensors", ".bin", ".gz", ".zst", ".parquet")
_CUT_AFTER = 2 / 3


@dataclass
class Repository:
    """One of them.

    Attributes:
        folder: its files, of revision main.
        access: "open"; "closed", which without the token is as good as missing; "gated", which refuses everybody.
        revisions: other revision → its folder.
    """

    folder: Path
    access: str = "open"
    revisions: dict[str, Path] = field(default_factory=dict)


@dataclass
class Hub:
    """Everything of the server.

    Attributes:
        repositories: ("models" or "datasets", name) → Repository.
        faults: (regular expression found in "METHOD path", what becomes of the request), each for one request: a
            status, or "cut" for an answer that ends after two thirds.
        page: entries of a tree that are told at once.
        web: files that are given out under /web/, as by any web server; a place that ends in ?moved is redirected.
        url: its address.
        sent: file → bytes of it that were sent; sent_to: the same by the token of who asked.
        ranges: (file, first byte) of every request for a part of a file but its first.
        asked: path of every request.
        unknown: those of requests that it has no answer for.
        uploaded: file → content, in the repository that was made.
        made: what was asked for when it was.
    """

    repositories: dict[tuple[str, str], Repository]
    faults: list[tuple[str, int | str]] = field(default_factory=list)
    page: int = 3
    web: Path | None = None
    url: str = ""
    sent: dict[str, int] = field(default_factory=dict)
    sent_to: dict[str, dict[str, int]] = field(default_factory=dict)
    ranges: list[tuple[str, int]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    made: dict = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """For a program that is to use it; the client reads it when it is imported."""
        env = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        env |= {"no_proxy": "127.0.0.1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return env | ({"HF_TOKEN": token} if token else {})

    def fault_of(self, path: str) -> int | str | None:
        with self.lock:
            for number, (where, kind) in enumerate(self.faults):
                if re.search(where, path):
                    del self.faults[number]
                    return kind
        return None

    def count(self, name: str, num_bytes: int, token: str) -> None:
        with self.lock:
            self.sent[name] = self.sent.get(name, 0) + num_bytes
            to = self.sent_to.setdefault(token, {})
            to[name] = to.get(name, 0) + num_bytes


class _Handler(Faulty):
    hub: Hub

    def do_GET(self) -> None:
        self.hub.asked.append(self.path)
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        fault = self.hub.fault_of(f"{self.command} {path}")
        if isinstance(fault, int):
            return self.answer({"error": "a fault"}, fault, {"Retry-After": "1"} if fault == 429 else {})
        if path.startswith("/web/"):
            return self.from_web(path.removeprefix("/web/"), parts.query, fault)
        if path == "/api/whoami-v2":
            if not self.is_known():
                return self.answer({"error": "nobody"}, 401)
            return self.answer({"name": "someone", "type": "user", "orgs": []})
        if match := re.fullmatch(r"/lfs/(\w+)/([^/]+/[^/]+)/([^/]+)/(.+)", parts.path):
            found = self.hub.repositories[match[1], match[2]]
            return self.file(self.folder(found, unquote(match[3])) / match[4], match[4], fault)
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+?)(/(revision|tree|paths-info)/(.+))?", path):
            found = self.repository(match[1], match[2])
            if found is None:
                return None
            return self.about(match[1], match[2], found, match[4] or "revision", match[5] or "main", parts.query)
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.+)", path):
            kind = "datasets" if match[1] else "models"
            found = self.repository(kind, match[2])
            return None if found is None else self.resolve(kind, match[2], found, match[3], match[4], fault)
        self.hub.unknown.append(f"{self.command} {self.path}")
        return self.answer({"error": "nothing there"}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(self.path)
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+?)/paths-info/(.+)", path):
            found = self.repository(match[1], match[2])
            if found is None:
                return None
            is_json = "json" in self.headers.get("Content-Type", "")
            wanted = json.loads(body)["paths"] if is_json else parse_qs(body.decode())["paths"]
            folder = self.folder(found, match[3])
            return self.answer([self.entry(folder, folder / name) for name in wanted if (folder / name).exists()])
        if path == "/api/repos/create":
            self.hub.made = json.loads(body)
            owner = self.hub.made.get("organization", "someone")
            return self.answer({"url": f"{self.hub.url}/{owner}/{self.hub.made['name']}"})
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self.answer({"files": modes})
        if "/commit/" in path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.hub.uploaded[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"{self.hub.url}/someone/again/commit/{COMMIT}"
            return self.answer({"commitUrl": address, "commitOid": COMMIT, "success": True})
        return self.answer({})  # what checks a card's head

    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, kind: str, name: str) -> Repository | None:
        """That of a name; None where it was refused."""
        found = self.hub.repositories.get((kind, name))
        if found is None or (found.access == "closed" and not self.is_known()):
            self.answer({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        elif found.access == "gated":
            message = f"Access to {name} is restricted and you are not in the authorized list."
            self.answer({"error": message}, 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        else:
            return found
        return None

    @staticmethod
    def folder(found: Repository, revision: str) -> Path:
        return found.revisions.get(revision, found.folder)

    def about(self, kind: str, name: str, found: Repository, what: str, rest: str, query: str) -> None:
        if what == "revision":
            revision = rest
            if revision not in ("main", COMMIT) and revision not in found.revisions:
                return self.answer({"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
            folder = self.folder(found, revision)
            names = [{"rfilename": path.relative_to(folder).as_posix()} for path in _files(folder)]
            # Another revision has another commit, by which it is asked for from then on.
            commit = COMMIT if folder == found.folder else revision
            told = {"id": name, "sha": commit, "siblings": names, "tags": [], "private": False, "gated": False}
            return self.answer({**told, "lastModified": "2026-01-01T00:00:00.000Z", "cardData": {}})
        revision = next((other for other in found.revisions if rest.startswith(other)), rest.partition("/")[0])
        below = rest.removeprefix(revision).strip("/")
        folder = self.folder(found, revision)
        if below and not (folder / below).is_dir():
            return self.answer({"error": "no such entry"}, 404, {"X-Error-Code": "EntryNotFound"})
        asked = parse_qs(query)
        recursive = asked.get("recursive", ["False"])[0].lower() == "true"
        paths = sorted((folder / below).rglob("*") if recursive else (folder / below).iterdir())
        first = int(asked.get("cursor", ["0"])[0])
        more = {}
        if first + self.hub.page < len(paths):
            plain = re.sub(r"&?cursor=\d+", "", query)
            address = f"{self.hub.url}{urlsplit(self.path).path}?{plain}&cursor={first + self.hub.page}"
            more = {"Link": f'<{address}>; rel="next"'}
        return self.answer([self.entry(folder, path) for path in paths[first : first + self.hub.page]], 200, more)

    def entry(self, folder: Path, path: Path) -> dict:
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": COMMIT, "size": 0}
        size, digest = path.stat().st_size, _digest(path)
        told = {"type": "file", "path": name, "size": size, "oid": digest[:40]}
        return {**told, "lfs": {"oid": digest, "size": size, "pointerSize": 130}} if name.endswith(_LARGE) else told

    def resolve(
        self, kind: str, name: str, found: Repository, revision: str, file: str, fault: int | str | None
    ) -> None:
        path = self.folder(found, revision) / file
        if not path.is_file():
            return self.answer({"error": "no such entry"}, 404, {"X-Error-Code": "EntryNotFound"})
        if not file.endswith(_LARGE):
            return self.file(path, file, fault)
        headers = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(path.stat().st_size)}
        headers |= {"X-Linked-ETag": f'"{_digest(path)}"'}
        headers["Location"] = f"{self.hub.url}/lfs/{kind}/{name}/{quote(revision, safe='')}/{file}"
        return self.answer({}, 302, headers)

    def from_web(self, name: str, query: str, fault: int | str | None) -> None:
        path = self.hub.web / name
        if not path.is_file():
            return self.answer({}, 404)
        if query == "moved":
            return self.answer({}, 302, {"Location": f"{self.hub.url}/web/{quote(name)}"})
        return self.file(path, name, fault)

    def file(self, path: Path, name: str, fault: int | str | None) -> None:
        content = path.read_bytes()
        begin, end = 0, len(content)
        asked = self.headers.get("Range", "")
        if self.headers.get("If-Range") not in (None, f'"{_digest(path)}"'):
            asked = ""  # it is another one by now
        if found := re.match(r"bytes=(\d+)-(\d*)", asked):
            begin, end = int(found[1]), min(int(found[2]) + 1 if found[2] else end, end)
            if begin >= len(content):
                return self.answer({}, 416, {"Content-Range": f"bytes */{len(content)}"})
            if begin:
                self.hub.ranges.append((name, begin))
        self.send_response(206 if found else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_digest(path)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        if found:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        part = content[begin:end]
        if fault == "cut":
            part = part[: int(len(part) * _CUT_AFTER)]
        self.wfile.write(part)
        self.hub.count(name, len(part), self.headers.get("Authorization", "").removeprefix("Bearer "))
        if fault == "cut":
            self.hang_up()

    def answer(self, value: dict | list, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, content in (headers or {}).items():
            self.send_header(name, content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _files(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve it until the end."""

    with listening(type("Handler", (_Handler,), {"hub": hub})) as hub.url:
        yield hub
