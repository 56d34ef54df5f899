"""Files that web servers give out (`https://host/file.jsonl.zst`): there to be read, and nothing else.

A file is fetched in one stream. One that breaks off is taken up at the byte where it broke, if the server can and the
file is still the same; throttling (429), faults (5xx) and silence are waited for, a bounded number of times.
"""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from llama_dyt.core.errors import ConfigurationError, StoreError
from llama_dyt.core.object_store import ObjectStore
from llama_dyt.core.store_path import StorePath

ATTEMPTS = 10
"""Of one fetch since it last came on: a minute and a half of backing off, by halves of up to 20 s."""
LOOKS = 4
"""Attempts where only a file's size is asked for, before a run; a few seconds."""
_FIRST_SECONDS = 0.5
_MOST_SECONDS = 20.0
_SILENT_SECONDS = 60.0
_BLOCK = 1 << 20
_NO_HEAD = (400, 401, 403, 405, 501)  # what servers say who give a file but no word about it
_READ_ONLY = "web servers only give files out; name a folder, or an address of a store that takes files (s3://…)"

R = TypeVar("R")


@dataclass(frozen=True)
class WebFile(StorePath):
    """A place on a web server, whose name has nothing of a query (`?signature=…`)."""

    @property
    def name(self) -> str:
        return PurePosixPath(urlsplit(self.address).path).name


class _MayPass(Exception):
    """What may be otherwise next time, in words; `seconds`: the server's own wish."""

    def __init__(self, reason: str, seconds: float | None = None):
        super().__init__(reason)
        self.seconds = seconds


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to web servers alone, and asks them what was asked first."""

    def redirect_request(self, request, *rest: Any):
        following = super().redirect_request(request, *rest)
        if following is not None:
            if urlsplit(following.full_url).scheme not in ("http", "https"):
                raise OSError("is redirected to what is no web server")
            following.method = request.get_method()
        return following


class Web(ObjectStore):
    """Addresses of http and https. Nothing can be listed there: a file is there or not."""

    name, aliases, order = "https", ("http",), 1

    def __init__(self) -> None:
        self._marks: dict[str, str] = {}  # of files just looked at

    def at(self, address: str) -> StorePath:
        try:
            there = urlsplit(address).hostname
        except ValueError:
            there = None
        if not there:
            raise ConfigurationError("is no address; give https://HOST/FILE")
        return WebFile(self, address)

    def list(self, address: str) -> dict[str, int]:
        try:
            answer = _patiently(address, LOOKS, lambda: _look(address))
        except FileNotFoundError:
            return {}
        size = _size_in(answer)
        if size is None:
            raise StoreError(f"{address}: the server does not say how long it is")
        self._marks[address] = _mark_in(answer)
        return {address: size}

    def mark(self, address: str) -> str:
        if address not in self._marks:
            self.list(address)
        return self._marks.pop(address, "")

    def get(self, address: str, file: Path) -> None:
        fetch = _Fetch(address, file)
        _patiently(address, ATTEMPTS, fetch.go_on, lambda: fetch.there)

    def put(self, address: str, file: Path) -> None:
        raise StoreError(f"{address}: {_READ_ONLY}")

    def delete(self, address: str) -> None:
        raise StoreError(f"{address}: {_READ_ONLY}")

    def why_not_writable(self, place: StorePath) -> str | None:
        return _READ_ONLY


class _Fetch:
    """A file on its way. `there`: bytes that came so far."""

    def __init__(self, address: str, file: Path):
        self._address, self._file, self._mark, self.there = address, file, "", 0
        file.write_bytes(b"")

    def go_on(self) -> None:
        """Raises _MayPass where it breaks off."""
        going_on = self.there > 0 and bool(self._mark) and not self._mark.startswith("W/")
        headers = {"Range": f"bytes={self.there}-", "If-Range": self._mark} if going_on else {}
        with closing(_open(self._address, "GET", headers)) as answer, open(self._file, "r+b") as out:
            if not (going_on and answer.status == 206 and _begins_at(answer) == self.there):
                self.there = 0  # all of it comes, as at first
            self._mark = _mark_in(answer)
            length = answer.headers.get("Content-Length")
            stop = self.there + int(length) if length is not None and length.isdigit() else None
            out.seek(self.there)
            out.truncate()
            try:
                while block := answer.read(_BLOCK):
                    out.write(block)
                    self.there += len(block)
            except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
                raise _MayPass(_in_words(error)) from None
        if stop is not None and self.there != stop:
            raise _MayPass("the connection broke off")


def _patiently(address: str, attempts: int, action: Callable[[], R], came: Callable[[], int] = lambda: 0) -> R:
    """What an action gives; one that may pass is tried again, and each time that more came is a new beginning.

    Raises:
        FileNotFoundError: the server says that there is no such file.
        StoreError: anything else, in one line that begins with the address.
        OSError: this machine's disk.
    """
    most, attempt = came(), 0
    for _ in count():
        try:
            return action()
        except _MayPass as error:
            attempt = 1 if came() > most else attempt + 1
            most = max(most, came())
            if attempt >= attempts:
                raise StoreError(f"{address}: {error}, for longer than was waited; try again later") from None
            time.sleep(min(error.seconds or _FIRST_SECONDS * 2 ** (attempt - 1), _MOST_SECONDS))
    raise AssertionError


def _open(address: str, method: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """The answer, of which the head was read.

    Raises:
        _MayPass: a fault of the server's or the network's.
        FileNotFoundError, StoreError: it will be the same next time.
    """
    headers = {"User-Agent": "llama_dyt", "Accept-Encoding": "identity", **headers}
    request = urllib.request.Request(address, headers=headers, method=method)
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=_SILENT_SECONDS)
    except urllib.error.HTTPError as error:
        with closing(error):
            status = error.code
            if status in (404, 410):
                raise FileNotFoundError(f"{address}: the server has no such file ({status})") from None
            if status in (408, 425, 429) or status >= 500:
                asked = error.headers.get("Retry-After") or ""
                what = "throttles" if status == 429 else "failed"
                raise _MayPass(f"the server {what} ({status})", float(asked) if asked.isdigit() else None) from None
            refused = _Refused(f"{address}: the server refuses it ({status})")
            refused.status = status
            raise refused from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise StoreError(
                f"{address}: the server has no certificate that is trusted; look at SSL_CERT_FILE"
            ) from None
        raise _MayPass(_in_words(error.reason)) from None
    except (http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise _MayPass(_in_words(error)) from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{address}: {error}") from None


class _Refused(StoreError):
    status: int


def _look(address: str) -> http.client.HTTPResponse:
    """The head of an answer about a file; of servers that know no HEAD that of its first byte."""
    try:
        answer = _open(address, "HEAD", {})
    except _Refused as error:
        if error.status not in _NO_HEAD:
            raise
        answer = _open(address, "GET", {"Range": "bytes=0-0"})
    answer.close()
    return answer


def _size_in(answer: http.client.HTTPResponse) -> int | None:
    told = answer.headers.get("Content-Range", "").rpartition("/")[2] if answer.status == 206 else None
    told = answer.headers.get("Content-Length", "") if told is None else told
    return int(told) if told.isdigit() else None


def _mark_in(answer: http.client.HTTPResponse) -> str:
    """What changes with the file: its tag, or when it was changed."""
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _begins_at(answer: http.client.HTTPResponse) -> int | None:
    begin = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(begin) if begin.isdigit() else None


def _in_words(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"the server was silent for {_SILENT_SECONDS:.0f} s"
    if isinstance(error, OSError) and error.strerror:
        return f"the server does not answer ({error.strerror})"
    return f"the connection broke off ({type(error).__name__})"


STORE = Web()
