"""Options to flags, YAML and help: `options` declares one, `run` gathers those of all owners, `cli` reads them.

Imports nothing but the standard library (YAML where a file is read), so that `--help` and errors come at once.
"""

from llama_dyt.config.options import KINDS, Kind
from llama_dyt.config.run import Owned, RunConfig, declare

__all__ = ["KINDS", "Kind", "Owned", "RunConfig", "declare"]
