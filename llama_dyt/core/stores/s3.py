"""Object storage that speaks S3 (`--save_dir s3://bucket/runs/7`): Amazon's, or what AWS_ENDPOINT_URL names.

boto3 carries it: files in parts, of which one that fails is sent again alone; throttling and the server's faults backed
off, a bounded number of times; credentials, profile, region and endpoint from where all of Amazon's programs take them.
It is imported with the first request, so that nothing is slower for those who keep their runs on a disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.object_store import ObjectStore
from llama_dyt.core.s3_errors import code_of, in_words, means_expired
from llama_dyt.core.store_path import StorePath

PART_BYTES = 32 << 20
THREADS = 8
ATTEMPTS = 10
"""Of one request, where AWS_MAX_ATTEMPTS does not say: a minute of backing off, by halves of up to 20 s."""
_SECONDS = 60
_UNTOLD = ("400", "403", "301")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


class S3(ObjectStore):
    """Buckets; an address is s3://BUCKET/KEY. All of it may be called from threads, and after a fork."""

    name = "s3"

    def __init__(self) -> None:
        self._clients: dict[int, Any] = {}  # process → client: sockets do not survive a fork

    def at(self, address: str) -> StorePath:
        if find_spec("boto3") is None:
            raise ConfigurationError("s3:// needs the package boto3; run `pip install boto3`")
        bucket, key = _split(address)
        if not bucket or "//" in key or key.startswith("/"):
            raise ConfigurationError("is no address; give s3://BUCKET/FOLDER, without empty names")
        return super().at(address)

    def put(self, address: str, file: Path) -> None:
        bucket, key = _split(address)
        self._ask(address, lambda client: client.upload_file(str(file), bucket, key, Config=_in_parts()))

    def put_new(self, address: str, file: Path) -> bool:
        """One request, If-None-Match: where the server knows that condition, one of two alone is first."""
        bucket, key = _split(address)
        if self.list(address):
            return False
        content = file.read_bytes()

        def put(client: Any) -> bool:
            try:
                client.put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
            except Exception as error:
                if code_of(error) == "NotImplemented":
                    client.put_object(Bucket=bucket, Key=key, Body=content)
                elif code_of(error) not in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                    raise
            return True

        self._ask(address, put)
        # One whose answer was lost is sent again and finds itself there; a server may not know the condition.
        return self.read(address) == content

    def get(self, address: str, file: Path) -> None:
        bucket, key = _split(address)
        self._ask(address, lambda client: client.download_file(bucket, key, str(file), Config=_in_parts()))

    def list(self, address: str) -> dict[str, int]:
        bucket, key = _split(address)
        found: dict[str, int] = {}

        def gather(client: Any) -> None:
            found.clear()
            if key:  # of all keys that begin so, it is the first itself
                for entry in client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", ()):
                    if entry["Key"] == key:
                        found[address] = entry["Size"]
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{key}/" if key else "")
            for page in pages:
                for entry in page.get("Contents", ()):
                    if not entry["Key"].endswith("/"):  # consoles put empty objects for folders
                        found[f"s3://{bucket}/{entry['Key']}"] = entry["Size"]

        self._ask(address, gather)
        return found

    def mark(self, address: str) -> str:
        bucket, key = _split(address)
        found = self._ask(address, lambda client: client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1))
        return next((entry["ETag"] for entry in found.get("Contents", ()) if entry["Key"] == key), "")

    def delete(self, address: str) -> None:
        bucket, key = _split(address)
        self._ask(address, lambda client: client.delete_object(Bucket=bucket, Key=key))

    def why_not_writable(self, place: StorePath) -> str | None:
        probe = f"{place.address}/.probe-{os.getpid()}-{os.urandom(4).hex()}"
        bucket, key = _split(probe)
        try:
            self.list(probe)
            self._ask(probe, lambda client: client.put_object(Bucket=bucket, Key=key, Body=b""))
            self.delete(probe)
        except OSError as error:
            return str(error)
        return None

    def forget_unfinished(self, address: str, is_ours: Callable[[str], bool]) -> None:
        """Parts of files that killed processes did not finish are kept, and paid for, until somebody aborts them. A
        server that cannot list them keeps them: nothing that was asked for depends on it."""
        bucket, key = _split(address)

        def pages(client: Any) -> Iterator[dict[str, Any]]:
            try:
                yield from client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=f"{key}/")
            except Exception as error:
                if code_of(error) not in ("NotImplemented", "501"):
                    raise

        def abort(client: Any) -> None:
            for page in pages(client):
                for upload in page.get("Uploads", ()):
                    if not is_ours(upload["Key"].removeprefix(f"{key}/").partition("/")[0]):
                        continue
                    client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])

        self._ask(address, abort)

    def _ask(self, address: str, action: Any) -> Any:
        """The result of an action of a client.

        Raises:
            FileNotFoundError: there is nothing under the address.
            OSError: whatever else went wrong, in one line without any secret.
        """
        try:
            try:
                return self._once(address, action)
            except Exception as error:
                if not means_expired(error):
                    raise
            # They may have been renewed in their file, or by the program that gives them.
            self._clients.pop(os.getpid(), None)
            return self._once(address, action)
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # this machine's disk
            raise in_words(error, address) from None

    def _once(self, address: str, action: Any) -> Any:
        client = self._client()
        try:
            return action(client)
        except Exception as error:
            if code_of(error) in _UNTOLD:  # the answer to a HEAD has no words: ask something that has
                bucket, key = _split(address)
                client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
            raise

    def _client(self) -> Any:
        process = os.getpid()
        if process not in self._clients:
            self._clients[process] = _make_client()
        return self._clients[process]


def _in_parts() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=2 * PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=THREADS)


def _make_client() -> Any:
    import boto3.session
    from botocore.config import Config

    session = boto3.session.Session()
    own = next(filter(None, map(os.environ.get, _ENDPOINTS)), None) is not None
    settings: dict[str, Any] = {"connect_timeout": 10, "read_timeout": _SECONDS, "max_pool_connections": 2 * THREADS}
    retries: dict[str, Any] = {} if os.environ.get("AWS_RETRY_MODE") else {"mode": "standard"}
    if not os.environ.get("AWS_MAX_ATTEMPTS"):
        retries["total_max_attempts"] = ATTEMPTS
    if own:  # other makers' servers have no name a bucket, and not all know the newer checksums
        settings["s3"] = {"addressing_style": "path"}
        for name in ("request_checksum_calculation", "response_checksum_validation"):
            if not os.environ.get(f"AWS_{name.upper()}"):
                settings[name] = "when_required"
    region = session.region_name or os.environ.get("AWS_REGION") or ("us-east-1" if own else None)
    return session.client("s3", region_name=region, config=Config(retries=retries, **settings))


def _split(address: str) -> tuple[str, str]:
    """Bucket and key."""
    bucket, _, key = address.removeprefix("s3://").rstrip("/").partition("/")
    return bucket, key


STORE = S3()
