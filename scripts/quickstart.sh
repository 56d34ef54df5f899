#!/usr/bin/env bash
# Set-up and the main job in one command: pretrains a small DyT LLaMA on real text through a Colossal-AI booster on this
# machine's CPU or GPU, then lets it write a few lines.
#
#   bash scripts/quickstart.sh [--fresh | --resume] [pretrain.py's own flags]
#
#   --fresh     start anew; an earlier run is moved aside, not deleted
#   --resume    go on from the newest checkpoint of the earlier run
#   NPROC=…     processes (default: 1)
#   SAVE_DIR=…  where the run goes (default: runs/quickstart)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/common.sh

CONFIG_FILE=configs/quickstart.yaml
SAVE_DIR="${SAVE_DIR:-runs/quickstart}"
NPROC="${NPROC:-1}"

CHOICE=""
ARGUMENTS=()
for argument in "$@"; do
  case "$argument" in
    --fresh | --resume)
      if [ -n "$CHOICE" ] && [ "$CHOICE" != "$argument" ]; then
        echo "error: --fresh and --resume exclude each other; give one" >&2
        exit 2
      fi
      CHOICE="$argument"
      ;;
    --help | -h)
      sed -n '/^# Set-up/,/^set -/p' scripts/quickstart.sh | sed -n 's/^#  \{0,1\}//p'
      exit 0
      ;;
    -o | -o?* | --save_dir | --save_dir=* | -f | -f?* | --load | --load=*)
      echo "error: $argument belongs to pretrain.py; here say SAVE_DIR=… bash scripts/quickstart.sh, and --fresh or --resume" >&2
      exit 2
      ;;
    *) ARGUMENTS+=("$argument") ;;
  esac
done

# An earlier run is continued or put aside because the user said so, never by accident.
if compgen -G "$SAVE_DIR/*" >/dev/null; then
  newest="$(compgen -G "$SAVE_DIR/step_*" | sort | tail -n 1 || true)"
  if [ -z "$CHOICE" ]; then
    echo "There is a run in $SAVE_DIR already${newest:+, its newest checkpoint ${newest##*/}}."
    if [ -t 0 ] && [ -t 1 ]; then
      read -r -p "Resume it (r), start anew and move it aside (f), or leave it (any other key)? " answer
      case "$answer" in
        r | R) CHOICE=--resume ;;
        f | F) CHOICE=--fresh ;;
        *) exit 0 ;;
      esac
    else
      echo "error: say what to do with it: bash scripts/quickstart.sh --resume, or bash scripts/quickstart.sh --fresh" >&2
      exit 2
    fi
  fi
  if [ "$CHOICE" = --fresh ]; then
    aside="$SAVE_DIR.$(date +%Y%m%d-%H%M%S)"
    mv "$SAVE_DIR" "$aside"
    echo "moved the earlier run to $aside"
  fi
elif [ "$CHOICE" = --resume ]; then
  echo "error: --resume, but there is no run in $SAVE_DIR; leave --resume out to start one" >&2
  exit 2
fi

bash scripts/setup.sh
use_environment "$PWD"

ARGUMENTS=(--config_file "$CONFIG_FILE" --save_dir "$SAVE_DIR" --tensorboard_dir "$SAVE_DIR/tensorboard" ${ARGUMENTS[@]+"${ARGUMENTS[@]}"})
[ "$CHOICE" != --resume ] || ARGUMENTS+=(--load auto)
if [ "$(count_gpus)" = 0 ]; then
  keep_large_buffers
  share_cores "$NPROC"
fi
LAUNCH=(torchrun --standalone --nproc_per_node "$NPROC")
[ "$NPROC" != 1 ] || LAUNCH=(python)
run_with_signals "${LAUNCH[@]}" pretrain.py "${ARGUMENTS[@]}" || {
  status=$?
  case "$(python scripts/run_status.py "$SAVE_DIR" || true)" in
    *'"state": "stopped"'*) echo "  here that is  SAVE_DIR=$(printf %q "$SAVE_DIR") bash scripts/quickstart.sh --resume" ;;
  esac
  exit "$status"
}

echo
echo "Lines it writes by itself after each prompt (python generate.py --model_path $SAVE_DIR --prompt …):"
run_with_signals python generate.py --model_path "$SAVE_DIR" --max_new_tokens 48 --temperature 0.7 \
  --prompt "def " --prompt "class " --prompt "The "
