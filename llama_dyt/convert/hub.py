"""The HuggingFace hub: fetching what is to be converted, and putting there what came of it."""

from __future__ import annotations

from pathlib import Path

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.models.hub_folder import CONFIG_AND_TOKENIZER, WEIGHTS, hub_folder

_OLDER = ("*.bin", "*.jinja", "README.md")
_OTHERS = ("*.pth", "params.json", "*.pt", "*.yml", "latest")


def fetch(name: str) -> Path:
    """A repository of the hub as a folder: safetensors where it has them, else what else can be read.

    Raises:
        ConfigurationError: the hub does not give it.
    """
    folder = hub_folder(name, (*CONFIG_AND_TOKENIZER, *WEIGHTS, "*.jinja", "README.md"), "input_path", "give a folder")
    if any(folder.rglob("*.safetensors")):
        return folder
    return hub_folder(name, (*CONFIG_AND_TOKENIZER, *_OLDER, *_OTHERS), "input_path", "give a folder")


def why_no_push(name: str) -> Problem | None:
    """What keeps a model from being put on the hub, found before hours of work; None where nothing does."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        return Problem("push_to_hub", name, str(error).splitlines()[0], "give a name as OWNER/MODEL")
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError:
        return Problem("push_to_hub", name, "nobody is logged in", "run `hf auth login`, or set HF_TOKEN")
    except Exception as error:  # the hub's client lets those of whichever HTTP library it uses through
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Problem(
            "push_to_hub", name, f"the hub cannot be asked ({reason})", "convert without it, and upload later"
        )
    return None


def push(folder: Path, name: str) -> str:
    """Upload a folder, into a repository that is made private where there is none; returns its address.

    Raises:
        ConfigurationError: the hub refuses it, or is gone; the folder is whole all the same.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(name, private=True, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Converted by llama_dyt")
    except Exception as error:  # as above
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = f"the converted model is in {folder}: upload it with `hf upload {name} {folder}`"
        raise ConfigurationError(Problem("push_to_hub", name, f"the hub did not take it ({reason})", remedy)) from error
    return address
