#!/usr/bin/env bash
# Makes the virtual environment and installs the stack into it. Run it again whenever the requirements change: a stamp
# inside the environment says what was installed, so a second run with nothing new ends at once.
#
#   bash scripts/setup.sh [--dev] [--cuda] [--torch-index URL]
#
#   --dev              also what the tests need (requirements-dev.txt, and transformers' own tests)
#   --cuda             also the optional CUDA extras (requirements-cuda.txt), from wheels only
#   --torch-index URL  an extra package index to find torch on, e.g. PyTorch's own index of CPU builds
#   PYTHON=…           the Python to build on, 3.11 or 3.12 (default: the first such of python3, python3.12, python3.11)
#   VENV=…             where the environment goes (default: .venv in the repository)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

COLOSSALAI="colossalai==0.5.0"
VENV="${VENV:-.venv}"
NEEDED_GB=4 # the installed CPU stack takes 1.4 GB, its download and unpacking about as much again
SECONDS=0

say() { printf 'set-up: %s\n' "$*"; }
fail() {
  printf 'set-up failed: %s\n' "$*" >&2
  exit 1
}
usage() { sed -n '/^#   bash/,/^set -/p' scripts/setup.sh | sed -n 's/^#  \{0,1\}//p'; }

WANT_DEV=0 WANT_CUDA=0 TORCH_INDEX=""
while [ $# -gt 0 ]; do
  case "$1" in
    --dev) WANT_DEV=1 ;;
    --cuda) WANT_CUDA=1 ;;
    --torch-index)
      [ $# -ge 2 ] || fail "--torch-index needs the address of a package index"
      TORCH_INDEX="$2"
      shift
      ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) fail "unknown option '$1'; there are --dev, --cuda, --torch-index URL and --help" ;;
  esac
  shift
done

python_version() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

choose_python() {
  local candidate version seen=""
  if [ -n "${PYTHON:-}" ]; then
    version="$(python_version "$PYTHON")" || fail "PYTHON=$PYTHON does not run; name a Python 3.11 or 3.12"
    case "$version" in 3.11.* | 3.12.*) return ;; esac
    fail "PYTHON=$PYTHON is Python $version; this project needs 3.11 or 3.12"
  fi
  for candidate in python3 python3.12 python3.11; do
    version="$(python_version "$candidate")" || continue
    case "$version" in
      3.11.* | 3.12.*)
        PYTHON="$candidate"
        return
        ;;
    esac
    seen="$seen $candidate is $version;"
  done
  fail "no Python 3.11 or 3.12 found (${seen:- no python3 at all}); install one, or name it: PYTHON=/path/to/python3.11 bash scripts/setup.sh"
}

# What a stage was built from; a changed requirements file, Python or colossalai release changes it.
fingerprint() { # FILE…
  { cat "$@"; echo "$COLOSSALAI"; python_version "$VENV/bin/python"; } | sha256sum | cut -d' ' -f1
}
is_done() { # STAGE FILE…
  local stage="$1"
  shift
  [ -f "$VENV/.done-$stage" ] && [ "$(cat "$VENV/.done-$stage")" = "$(fingerprint "$@")" ]
}
mark_done() { # STAGE FILE…
  local stage="$1"
  shift
  fingerprint "$@" >"$VENV/.done-$stage"
}

# Why pip stopped, in one sentence for the person who has to do something about it.
explain_pip_failure() {
  local log="$1" missing
  missing="$(grep -oE 'No matching distribution found for .*' "$log" | head -n 1)" || true
  if grep -qE 'No space left on device|Errno 28' "$log"; then
    echo "no room left on disk while installing into $VENV (pip also needs room in ${TMPDIR:-/tmp}); free some and run this again"
  elif grep -qiE 'name resolution|Name or service not known|nodename nor servname|NewConnectionError|Failed to establish a new connection|Network is unreachable|ConnectTimeout|Cannot connect to proxy|Connection (refused|reset)|Read timed out' "$log"; then
    echo "the package index could not be reached (no network?); see $log, then run this again: what was downloaded is kept"
  elif [ -n "$missing" ]; then
    echo "$missing, for Python $(python_version "$VENV/bin/python") on $(uname -sm); see $log"
  else
    echo "pip stopped with an error; its last lines, from $log: $(tail -n 3 "$log" | tr '\n' ' ')"
  fi
}

# One pip install: everything to a log, large downloads and the start of the unpacking to the screen. Where it fails,
# PIP_FAILURE says why.
PIP_PID=""
pip_install() { # pip's arguments
  local log="$VENV/setup.log" status=0 viewer
  touch "$VENV/.unfinished"
  # --no-compile: byte-compiling all of it takes longer than the download; check_stack compiles what runs import.
  PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/python" -m pip install --no-compile --no-input "$@" >"$log" 2>&1 &
  PIP_PID=$!
  # In the background too: only during `wait` does bash heed a signal at once.
  tail -n +1 -s 0.2 -f --pid="$PIP_PID" "$log" 2>/dev/null 9>&- | sed -unE \
    -e 's/^ *Downloading (.*\/)?([^/ ]+) \(([0-9.]+ (MB|GB))\).*/  downloading \2 (\3)/p' \
    -e 's/^Installing collected packages: .*/  unpacking/p' 9>&- &
  viewer=$!
  wait "$PIP_PID" || status=$?
  PIP_PID=""
  wait "$viewer" || true
  if [ "$status" -eq 0 ]; then
    rm "$VENV/.unfinished"
    return 0
  fi
  # Until pip begins to unpack, the environment is as it was; after that only a fresh one can be trusted.
  grep -q '^Installing collected packages' "$log" || rm -f "$VENV/.unfinished"
  PIP_FAILURE="$(explain_pip_failure "$log")"
  return 1
}

# transformers' own tests, which tests/suites runs on our models, out of its source distribution, whose checksum pip compares.
take_suites() {
  local log="$VENV/setup.log" aside="$VENV/transformers-source" status=0
  rm -rf "$aside" "$VENV/transformers-tests"
  # With the environment's own setuptools, and few tries: the tests can do without.
  PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/python" -m pip download --no-input --require-hashes --no-deps \
    --no-binary :all: --no-build-isolation --retries 1 --timeout 20 -d "$aside" -r requirements-suites.txt >"$log" 2>&1 &
  PIP_PID=$!
  wait "$PIP_PID" || status=$?
  PIP_PID=""
  if [ "$status" -ne 0 ]; then
    PIP_FAILURE="$(explain_pip_failure "$log")"
    rm -rf "$aside"
    return 1
  fi
  tar -xzf "$aside"/transformers-*.tar.gz -C "$aside" --strip-components=1 --wildcards '*/tests/*' &&
    mv "$aside/tests" "$VENV/transformers-tests" && rm -rf "$aside" && return
  PIP_FAILURE="transformers' source distribution has no tests folder, or there is no room for it"
  return 1
}

make_environment() {
  choose_python
  local have parent
  "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || fail \
    "$PYTHON has no venv module; on Debian or Ubuntu: apt-get install python3-venv (or python$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv)"
  if [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ ! -f "$VENV/.unfinished" ] && [ -n "$(ls -A "$VENV" 2>/dev/null)" ]; then
    fail "$VENV is there and is no virtual environment; move it away, or name another place: VENV=/path bash scripts/setup.sh"
  fi
  parent="$(dirname "$VENV")"
  mkdir -p "$parent" 2>/dev/null && [ -w "$parent" ] || fail "cannot write in $parent; name another place: VENV=/path bash scripts/setup.sh"
  have="$(df -Pk "$parent" | awk 'NR==2 {print int($4 / 1048576)}')"
  [ "$have" -ge "$NEEDED_GB" ] || fail \
    "$parent has $have GB free and set-up needs $NEEDED_GB GB (a CUDA build of torch more); free some, or name another place: VENV=/path bash scripts/setup.sh"
  say "making $VENV with Python $(python_version "$PYTHON")"
  # Not venv's own --clear: the mark of an unfinished set-up has to be there from the first file to the last.
  rm -rf "$VENV"
  mkdir "$VENV" && touch "$VENV/.unfinished" || fail "cannot write in $VENV; name another place: VENV=/path bash scripts/setup.sh"
  "$PYTHON" -m venv "$VENV" || fail "$PYTHON -m venv $VENV stopped with an error"
  rm "$VENV/.unfinished"
}

# Imports what a run imports: proves the stack complete, and leaves its byte code behind, which makes every later start
# some 8 seconds quicker (and would not be written where PYTHONDONTWRITEBYTECODE is set).
check_stack() {
  local log="$VENV/setup.log"
  env -u PYTHONDONTWRITEBYTECODE "$VENV/bin/python" -W ignore scripts/check_stack.py >"$log" 2>&1 ||
    fail "the installed stack does not import: $(tail -n 1 "$log"); see $log"
  say "$(tail -n 1 "$log")"
}

# Colossal-AI's command, with host files read as people write them, and found outside of the activated environment too.
put_our_command() {
  local file="$VENV/bin/colossalai"
  printf '%s\n' "#!$(cd "$VENV" && pwd)/bin/python" "import sys" "sys.path.append('$PWD')" \
    "from llama_dyt.launch.colossalai_run import main" "main()" >"$file.new"
  chmod +x "$file.new"
  mv "$file.new" "$file"
}

# Two set-ups of one environment at once would spoil it.
if command -v flock >/dev/null; then
  mkdir -p "$(dirname "$VENV")" 2>/dev/null || true
  exec 9>"$VENV.lock" || fail "cannot write $VENV.lock; name another place: VENV=/path bash scripts/setup.sh"
  flock -n 9 || { say "waiting for another set-up of $VENV to end"; flock 9; }
fi
# (A background pip ignores the terminal's Ctrl-C, so it is ended by hand.)
interrupted() {
  [ -z "$PIP_PID" ] || kill "$PIP_PID" 2>/dev/null || true
  say "interrupted; run it again and it starts over where it has to" >&2
  exit 130
}
trap interrupted INT TERM

WORKED=0
if [ -f "$VENV/.unfinished" ]; then
  say "the last set-up of $VENV was cut short while installing; making it anew"
  make_environment
elif ! "$VENV/bin/python" -c '' 2>/dev/null; then
  make_environment
elif [ -n "${PYTHON:-}" ] && [ "$(python_version "$PYTHON")" != "$(python_version "$VENV/bin/python")" ]; then
  say "$VENV holds Python $(python_version "$VENV/bin/python") and PYTHON=$PYTHON is another"
  make_environment
fi

if ! is_done base requirements.txt; then
  say "installing requirements.txt"
  rm -f "$VENV"/.done-*
  pip_install -r requirements.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} || fail "$PIP_FAILURE"
  say "installing $COLOSSALAI without its own pins"
  pip_install --no-deps "$COLOSSALAI" || fail "$PIP_FAILURE"
  say "checking that the stack imports"
  check_stack
  mark_done base requirements.txt
  WORKED=1
fi
# So that `import llama_dyt` works from any folder. Editable: what is imported is this repository, as it stands. The
# environment's own setuptools builds it, so no package index is asked.
if [ "$("$VENV/bin/python" -I -c 'import importlib.util as u; s = u.find_spec("llama_dyt"); print(s.origin if s else "")')" != "$PWD/llama_dyt/__init__.py" ]; then
  say "installing llama_dyt, editable"
  pip_install --no-deps --no-build-isolation --no-index -e . || fail "$PIP_FAILURE"
  WORKED=1
fi
if [ "$WANT_DEV" = 1 ] && ! is_done dev requirements.txt requirements-dev.txt; then
  say "installing requirements-dev.txt"
  pip_install -r requirements-dev.txt || fail "$PIP_FAILURE"
  mark_done dev requirements.txt requirements-dev.txt
  WORKED=1
fi
if [ "$WANT_DEV" = 1 ] && ! is_done suites requirements-suites.txt; then
  say "taking transformers' own tests from its source distribution"
  if take_suites; then
    mark_done suites requirements-suites.txt
  else
    say "left out transformers' own tests (tests/suites skips): $PIP_FAILURE"
  fi
  WORKED=1
fi
if [ "$WANT_CUDA" = 1 ] && ! is_done cuda requirements.txt requirements-cuda.txt; then
  while read -r package; do
    say "installing $package"
    # --no-deps: what these need is installed already, and their own pins must not move torch.
    pip_install --no-deps --only-binary :all: "$package" </dev/null || say "left out $package (optional): $PIP_FAILURE"
  done < <(sed -E 's/[[:space:]]*#.*//; /^$/d' requirements-cuda.txt)
  mark_done cuda requirements.txt requirements-cuda.txt
  WORKED=1
fi

put_our_command

if [ "$WORKED" = 1 ]; then
  say "ready in $SECONDS s; use it with: source $VENV/bin/activate"
else
  say "$VENV is up to date"
fi
