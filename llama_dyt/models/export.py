"""Makes a saved model's folder load without this package.

Its own file because it reads the package's sources, which the model classes must not: a copy of them that came out
of such a folder has no package around it. transformers copies a class's own file and its siblings only, and these
sources lie in two packages; so they are copied here into one flat folder, their imports rewritten to siblings.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

MODELING_MODULE = "llama_dyt.models.modeling_llama_dyt"

AUTO_MAP = {
    "AutoConfig": "configuration_llama_dyt.LlamaDytConfig",
    "AutoModel": "modeling_llama_dyt.LlamaDytModel",
    "AutoModelForCausalLM": "modeling_llama_dyt.LlamaDytForCausalLM",
}

# An import from this package, by the full name of a module: what may stand in an exported file.
_OWN_IMPORT = re.compile(r"^from (llama_dyt\.(?:models|norms)\.(\w+)) import", flags=re.MULTILINE)


def modeling_sources() -> dict[str, str]:
    """File name → text of every file an exported folder needs, imports between them made relative.

    Raises:
        RuntimeError: one of them imports something else of this package, which would not be in the folder.
    """
    sources: dict[str, str] = {}
    waiting = [MODELING_MODULE]
    while waiting:
        module = waiting.pop()
        path = Path(importlib.util.find_spec(module).origin)
        if path.name in sources:
            continue
        text = path.read_text(encoding="utf-8")
        waiting += [name for name, _ in _OWN_IMPORT.findall(text)]
        text = _OWN_IMPORT.sub(r"from .\2 import", text)
        if re.search(r"^\s*(from|import) llama_dyt\b", text, flags=re.MULTILINE):
            raise RuntimeError(f"{path} is exported with models but imports from llama_dyt other than models and norms")
        sources[path.name] = text
    return sources


def export_modeling_files(folder: str | Path) -> None:
    """Write the modeling files into `folder` and name them in its config.json.

    Args:
        folder: a saved model: it has a config.json.
    """
    folder = Path(folder)
    for name, text in modeling_sources().items():
        (folder / name).write_text(text, encoding="utf-8")
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    if config.get("auto_map") != AUTO_MAP:
        config["auto_map"] = AUTO_MAP
        config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
