#!/usr/bin/env bash
# Set-up with the development requirements, then the linter and the tests. What it is given goes to pytest:
#
#   bash scripts/test.sh                            everything
#   bash scripts/test.sh -m "not slow" tests/unit   a part of it
#   bash scripts/test.sh -n 0 tests/unit            in one process, as a debugger wants it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/common.sh

bash scripts/setup.sh --dev
use_environment "$PWD"
keep_large_buffers
ruff check .
# Three files at a time, on two processors since some wait, the longest first (tests/conftest.py).
# Threads that wait by spinning would take the other files' cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
