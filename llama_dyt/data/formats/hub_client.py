"""Asking the Hugging Face hub: errors that come at once and in one line, and faults that may pass waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TypeVar

from llama_dyt.core.errors import DataError

PROBES = 4
LOCAL_REMEDY = "use local .jsonl or .parquet files (-d FOLDER) or `-d sample`"
_PROBE_SECONDS = 10

R = TypeVar("R")


def probe(
    name: str, *, repo_type: str = "dataset", revision: str | None = None, flag: str = "--tokenizer"
) -> list[str]:
    """Asks the hub which files a repository has: once, but for a hub that is there and throttles or fails.

    Args:
        flag: what a repository of type "model" was given by, for messages.

    Raises:
        DataError: the hub cannot be reached, or the repository is missing or closed.
    """
    remedy = LOCAL_REMEDY if repo_type == "dataset" else f"give {flag} a local folder or file"
    kind = "dataset" if repo_type == "dataset" else "tokenizer"
    with told(name, kind, remedy):
        info = _repository(name, repo_type, revision)
    return [sibling.rfilename for sibling in info.siblings or []]


@contextmanager
def told(name: str, kind: str, remedy: str) -> Iterator[None]:
    """What the hub's client raises as a DataError about a repository."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise DataError(
            f"'{name}' needs permission; ask for it on its hub page and run `hf auth login`", about=name, noun=kind
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"'{name}' is neither a local path nor on the hub (or it is private); check the name, or {remedy}",
            about=name,
            noun=kind,
        ) from error
    except HFValidationError as error:
        raise DataError(
            f"'{name}' is neither a local path nor a possible hub name; {remedy}", about=name, noun=kind
        ) from error
    except OfflineModeIsEnabled as error:
        raise DataError(
            f"'{name}' is no local path, and HF_HUB_OFFLINE forbids asking the hub; {remedy}", about=name, noun=kind
        ) from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"'{name}' is no local path, and the hub cannot be reached ({reason}); {remedy}", about=name, noun=kind
        ) from error


def _repository(name: str, repo_type: str, revision: str | None):
    """What the hub tells of it."""
    from huggingface_hub import HfApi

    return patiently(lambda: HfApi().repo_info(name, repo_type=repo_type, revision=revision, timeout=_PROBE_SECONDS))


def patiently(ask: Callable[[], R]) -> R:
    """What the hub answers; where it throttles, as many ranks at once see it do, or fails, it is waited for."""
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in count(1):
        try:
            return ask()
        except HfHubHTTPError as error:
            if attempt == PROBES or not may_pass(error):
                raise
            asked = error.response.headers.get("Retry-After", "")
            time.sleep(min(int(asked) if asked.isdigit() else 2**attempt, _PROBE_SECONDS))
    raise AssertionError


def may_pass(error: BaseException) -> bool:
    """Whether it comes of a hub that is there and throttles or fails for now."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status == 429 or status >= 500
    # Of files that the hub has just told of: asking for their place failed, which `datasets` takes for absence.
    if isinstance(error, FileNotFoundError) and "Unable to find 'hf://" in str(error):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and may_pass(cause)
