"""A hub on this machine, with as much of its protocol as fetching and uploading a model takes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_tests_only"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One closed repository to fetch, and one to upload into.

    Attributes:
        url: its address.
        cut: files that are cut short the first time they are asked for.
        ranges: (file, first byte) of every request for the rest of a file.
        uploaded: file → content, in the repository that was made.
        made: what was asked for when it was.
    """

    def __init__(self, name: str, folder: Path, cut: tuple[str, ...] = ()) -> None:
        self.name, self.folder, self.cut = name, folder, {*cut}
        self.ranges: list[tuple[str, int]] = []
        self.uploaded: dict[str, bytes] = {}
        self.made: dict = {}
        self.url = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer({"error": "closed"}, 401)
            if self.path == "/api/whoami-v2":
                return self.answer({"name": "someone", "type": "user", "orgs": []})
            if re.match(rf"/api/models/{hub.name}(/revision/\w+)?(\?|$)", self.path):
                files = [{"rfilename": path.name} for path in sorted(hub.folder.iterdir())]
                return self.answer({"id": hub.name, "sha": COMMIT, "siblings": files})
            if re.match(rf"/api/models/{hub.name}/tree/", self.path):
                return self.answer(
                    [
                        {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": COMMIT}
                        for path in sorted(hub.folder.iterdir())
                    ]
                )
            if match := re.match(rf"/{hub.name}/resolve/\w+/([\w.-]+)", self.path):
                return self.file(match[1])
            return self.answer({"error": "nothing there"}, 404)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                hub.made = json.loads(body)
                return self.answer({"url": f"{hub.url}/{hub.made.get('organization', 'someone')}/{hub.made['name']}"})
            if "/preupload/" in self.path:
                files = json.loads(body)["files"]
                return self.answer(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            if "/commit/" in self.path:
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        hub.uploaded[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return self.answer(
                    {"commitUrl": f"{hub.url}/someone/again/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
                )
            return self.answer({})  # what checks a card's head

        def file(self, name: str) -> None:
            path = hub.folder / name
            if not path.is_file():
                return self.answer({"error": "nothing there"}, 404)
            content = path.read_bytes()
            begin = 0
            if found := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
                begin = int(found[1])
                hub.ranges.append((name, begin))
            self.send_response(206 if begin else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content) - begin))
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if name in hub.cut and not begin:
                hub.cut.remove(name)
                self.wfile.write(content[: len(content) * 2 // 3])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.wfile.write(content[begin:])

        def answer(self, value: dict | list, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
