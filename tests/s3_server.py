"""A server that speaks S3 on this machine, in a process of its own, and before it a proxy that makes faults: moto's, or
s3rver (npm) for a second opinion, which checks signatures and knows neither conditions nor lists of unfinished uploads.

with serving() as s3:                       # s3.url; AWS_ENDPOINT_URL and credentials in `s3.environment`
    s3.faults.append(Fault("PUT", "slow_down", times=2))
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Faulty, listening

KEY = "AKIATESTSONLYTESTSON"
SECRET = "a-secret-of-the-tests-that-nothing-may-show"
BUCKET = "runs-of-tests"

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until who started it is gone
"""
GEAR = Path(__file__).parent / "gear" / "s3rver"
ANSWERS = {
    "slow_down": (503, "SlowDown"),
    "internal_error": (500, "InternalError"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
    "unknown_key": (403, "InvalidAccessKeyId"),
    "wrong_secret": (403, "SignatureDoesNotMatch"),
    "other_region": (301, "PermanentRedirect"),
    "not_known": (501, "NotImplemented"),
}


@dataclass
class Fault:
    """What becomes of the next requests that look so.

    Attributes:
        where: found in "METHOD /bucket/key?query" as a regular expression.
        kind: one of ANSWERS; "cut" closes instead of answering, "lost" too, once the server did what was asked;
            "half" closes in the middle of the answer; "slow" waits before it.
        times: of how many requests; None for all.
    """

    where: str
    kind: str
    times: int | None = None
    seconds: float = 0.5


@dataclass
class S3Server:
    """Attributes:
    url: of the proxy.
    key, secret: the credentials that it knows.
    faults: those still to be made, the first that fits a request is.
    asked: (method, path and query, bytes of the request, bytes of the answer) of every request, in order.
    """

    url: str = ""
    key: str = KEY
    secret: str = SECRET
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str, int, int]] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    client: Any = None

    @property
    def environment(self) -> dict[str, str]:
        """For the programs that are to use it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_MAX_ATTEMPTS": "4",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def fault_of(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times != 0 and re.search(fault.where, request):
                    if fault.times is not None:
                        fault.times -= 1
                    self.made.append(fault.kind)
                    return fault
        return None


def use(server: S3Server, monkeypatch, cache: Path) -> S3Server:
    """Have this process and its children ask a server, which is made empty and without faults, and nobody else."""
    from llama_dyt.core.stores.s3 import STORE

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    # Making a client takes a fifth of a second: one serves all tests that change nothing of the environment.
    monkeypatch.setattr(STORE, "_clients", {os.getpid(): server.client} if server.client else {})
    server.faults.clear()
    for address in STORE.list(f"s3://{BUCKET}"):
        STORE.delete(address)
    server.client = STORE._client()
    server.asked.clear()
    server.made.clear()
    return server


of_both = pytest.mark.parametrize("s3_server", ["moto", "s3rver"], indirect=True)
"""A test of each server, of those that are here, for who asks for `s3` of `conftest.py`'s `s3_server`."""


@contextmanager
def serving_here(name: str) -> Iterator[S3Server]:
    """`serving`, in a test, which is skipped where that server is not."""
    if name == "s3rver" and (reason := why_no_s3rver()):
        pytest.skip(reason)
    with serving(name) as server:
        yield server


def why_no_s3rver() -> str | None:
    """Why that server cannot be had here; None where it can."""
    return None if _s3rver().is_dir() and shutil.which("node") else "no s3rver; run scripts/test_gear.sh s3rver"


def _s3rver() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    lock = hashlib.sha256((GEAR / "package-lock.json").read_bytes()).hexdigest()[:16]
    return cache / "llama_dyt" / "gear" / f"s3rver-{lock}"


@contextmanager
def serving(name: str = "moto") -> Iterator[S3Server]:
    """A server with one empty bucket, BUCKET."""
    with tempfile.TemporaryDirectory() as folder, _started(name, folder) as process:
        try:
            port = int(next(line for line in iter(process.stdout.readline, b"") if line.strip().isdigit()))
            with proxied("127.0.0.1", port) as s3:
                if name == "s3rver":
                    s3.key = s3.secret = "S3RVER"  # the one pair that it knows
                else:
                    assert _ask("127.0.0.1", port, "PUT", f"/{BUCKET}", {}, b"")[0] == 200
                yield s3
        finally:
            process.kill()


def _started(name: str, folder: str) -> subprocess.Popen:
    command, env = [sys.executable, "-W", "ignore", "-c", SERVER], dict(os.environ)
    if name == "s3rver":  # whose continuation tokens are encrypted by an old cipher
        command = ["node", "--openssl-legacy-provider", str(GEAR / "serve.js"), folder, BUCKET]
        env["NODE_PATH"] = str(_s3rver() / "node_modules")
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _ask(host: str, port: int, method: str, path: str, headers: dict, body: bytes):
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()


@contextmanager
def proxied(host: str, port: int) -> Iterator[S3Server]:
    """A server behind a proxy that makes faults."""
    s3 = S3Server()

    class Handler(Faulty):
        def do_GET(self) -> None:
            body = self.body()
            fault = s3.fault_of(f"{self.command} {self.path}")
            kind = fault.kind if fault else None
            if kind in ANSWERS:
                status, code = ANSWERS[kind]
                text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{KEY} {SECRET}</Message></Error>"
                told = [("Content-Type", "application/xml"), ("x-amz-bucket-region", "eu-west-1")]
                return self.answer(status, told, text.encode(), len(body))
            if kind == "cut":
                return self.hang_up()
            if kind == "slow":
                time.sleep(fault.seconds)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            status, given, content = _ask(host, port, self.command, self.path, headers, body)
            if kind == "lost":
                return self.hang_up()
            self.answer(status, given, content, len(body), half=kind == "half")

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        def body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                del self.headers["Transfer-Encoding"]
                self.headers["Content-Length"] = str(sum(map(len, parts)))
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def answer(self, status: int, headers: list, content: bytes, taken: int, half: bool = False) -> None:
            s3.asked.append((self.command, self.path, taken, len(content)))
            self.send_response_only(status)
            length = str(len(content))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                elif name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if half else content)
            if half:
                self.hang_up()

    with listening(Handler) as s3.url:
        yield s3
