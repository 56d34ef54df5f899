"""A model of the HuggingFace hub as a folder of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem

CONFIG_AND_TOKENIZER = ("*.json", "*.model", "tokenizer*")
WEIGHTS = ("*.safetensors",)


def hub_folder(name: str, patterns: Sequence[str], flag: str, remedy: str = "give a local HF folder") -> Path:
    """The hub's snapshot of a repository, fetched where it is not in the cache.

    The hub's own client does it: with the token of `hf auth login` or HF_TOKEN, a bar for each file, and going on in
    the middle of a file where an earlier try was cut short.

    Args:
        patterns: names of the files that are wanted.
        flag: what the name was given by, for messages.

    Raises:
        ConfigurationError: there is none of that name, it is closed, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except GatedRepoError:
        reason = "it needs permission: ask for it on its hub page, and run `hf auth login`"
        raise ConfigurationError(Problem(flag, name, reason, f"or {remedy}")) from None
    except RepositoryNotFoundError:
        reason = "no such folder, and none of that name on the hub (or it is private: run `hf auth login`)"
        raise ConfigurationError(Problem(flag, name, reason, remedy)) from None
    except Exception as error:  # the hub's client lets those of whichever HTTP library it uses through
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        reason = f"no such folder, and the hub did not give it ({reason})"
        raise ConfigurationError(Problem(flag, name, reason, remedy)) from None
