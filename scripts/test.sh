#!/usr/bin/env bash
# Set-up with the development requirements, then the linter and the tests. What it is given goes to pytest:
#
#   bash scripts/test.sh                            everything
#   bash scripts/test.sh -m "not slow" tests/unit   a part of it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/common.sh

bash scripts/setup.sh --dev
use_environment "$PWD"
keep_large_buffers
ruff check .
exec python -m pytest "$@"
