"""Builds a C file of this package for the processor at hand, once, and loads it.

It knows compilers, caches and threads and nothing of what the C computes. A binary shipped with the package would have
to suit every processor; a compiler makes the fastest one for this one in a second.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from contextlib import nullcontext
from pathlib import Path

from llama_dyt.core import files

COMPILERS = ("cc", "gcc", "clang")
# No thread jumps: gcc otherwise turns two clamps in a row into twice the comparisons. Errno and traps are nobody's
# concern here and would keep loops from being vectorised; nan, inf and signed zeros keep their meaning.
FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-fopenmp-simd")
FLAGS += ("-fno-math-errno", "-fno-trapping-math", "-fno-thread-jumps")
LIMIT_SECONDS = 120

_OPENMP = re.compile(r"(/\S*lib(?:gomp|iomp|omp)[^/\s]*\.so\S*)")


class BuildError(Exception):
    """The C file could not be made into a library here; the text says why."""


def load_library(source: Path) -> ctypes.CDLL:
    """The library made from `source`, built now if this machine has none yet.

    It lies in $XDG_CACHE_HOME/llama_dyt (~/.cache/llama_dyt) under a name made from everything it depends on, so a
    changed source, compiler or processor gets another one. Many processes may ask at once: each builds aside and
    renames.

    Raises:
        BuildError: no compiler, no OpenMP threads of torch's, the compiler failed, or its result does not load.
    """
    compiler, openmp = find_compiler(), torchs_openmp()
    command = [compiler, *FLAGS, str(source), str(openmp)]
    key = hashlib.sha256()
    for part in (source.read_bytes(), version_of(compiler), processor(), " ".join(FLAGS), str(openmp)):
        key.update(part if isinstance(part, bytes) else part.encode())
        key.update(b"\0")
    name = f"{source.stem}-{key.hexdigest()[:24]}.so"
    try:
        cache = cache_folder()
        with nullcontext(cache) if cache else tempfile.TemporaryDirectory(prefix="llama_dyt-") as folder:
            library = Path(folder) / name
            if not library.is_file():
                build(command, library)
            return ctypes.CDLL(str(library))  # what is loaded needs its file no more
    except OSError as error:
        raise BuildError(f"the library made from {source.name} does not load: {error}") from error


def build(command: list[str], library: Path) -> None:
    """Run the compiler into a file that is `library` once it is whole."""
    try:
        with files.written_whole(library) as aside:
            ended = subprocess.run([*command, "-o", aside], capture_output=True, text=True, timeout=LIMIT_SECONDS)
            if ended.returncode:
                raise BuildError(f"{' '.join(command)} failed: {ended.stderr.strip()[-500:]}")
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{' '.join(command)} took more than {LIMIT_SECONDS} s") from error


def find_compiler() -> str:
    """$CC if it is set, else the first of COMPILERS on PATH.

    Raises:
        BuildError: there is none.
    """
    wanted = [os.environ["CC"]] if os.environ.get("CC") else COMPILERS
    for name in wanted:
        found = shutil.which(name)
        if found:
            return found
    raise BuildError(f"no C compiler: none of {', '.join(wanted)} is on PATH")


def version_of(compiler: str) -> str:
    try:
        ended = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler} does not run: {error}") from error
    return f"{os.path.realpath(compiler)} {ended.stdout}"


def processor() -> str:
    """What -march=native looks at: the architecture, and on Linux the first processor's model and features."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    names = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU")
    return platform.machine() + "".join(line for line in lines if line.startswith(names) and "MHz" not in line)


def torchs_openmp() -> Path:
    """The OpenMP library that torch has loaded: a second one would start threads of its own beside torch's.

    Raises:
        BuildError: this process has none.
    """
    try:
        found = _OPENMP.search(Path("/proc/self/maps").read_text(encoding="utf-8"))
    except OSError as error:
        raise BuildError(f"the libraries of this process cannot be listed: {error}") from error
    if not found:
        raise BuildError("this build of torch has loaded no OpenMP library")
    return Path(found.group(1))


def cache_folder() -> Path | None:
    """Where libraries are kept; None where the user's cache cannot be written."""
    folder = files.cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None
