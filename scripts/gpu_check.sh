#!/usr/bin/env bash
# What only a GPU can show, in under nine minutes: the GPU tests, then the benchmarks of the largest part of LLaMA-2 7B
# that fits the first GPU, in bf16 and in 8 bits, compiled and not, DyT and RMSNorm. Run it on a machine with an NVIDIA
# GPU after set-up.
#
#   bash scripts/gpu_check.sh [RESULTS]             RESULTS: folder for the JSON files (default: benchmarks/results)
#   bash scripts/gpu_check.sh --rehearse [RESULTS]  every part, tiny, on a CPU: shows that it runs, measures nothing
#
#   SECONDS_IN_ALL=…  (default 520; of a rehearsal 3600) parts that begin later are left out, and said to be
#   PLUGIN=…          of the steps (default fsdp)            PARTS="tests norms …"  only these (see the end)
#   LAYERS, BATCH and RECOMPUTE=… in place of what is chosen by the GPU's memory
# It ends with an error where a part failed, or where there is no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/common.sh

rehearse=""
if [ "${1:-}" = --rehearse ]; then
  rehearse=yes
  shift
fi
results="$(mkdir -p "${1:-benchmarks/results}" && cd "${1:-benchmarks/results}" && pwd)"
use_environment "$PWD"

if [ -n "$rehearse" ]; then
  export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
  gpu="a CPU, as a rehearsal" gib=""
else
  gpu="$(python -c 'import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "")')"
  if [ -z "$gpu" ]; then
    echo "error: nothing was checked: this machine shows no GPU to torch $(python -c 'import torch; print(torch.__version__)')" >&2
    exit 1
  fi
  gib="$(python -c 'import torch; print(torch.cuda.get_device_properties(0).total_memory // 2**30)')"
  export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
fi

# Weights, gradients and optimizer states take 16 bytes a parameter in bf16: 108 GB for all 32 layers of the 7B. Where that
# does not fit, fewer layers of the same width show the same shapes, and MFU compares; tokens a second do not.
if [ -n "$rehearse" ]; then
  model=(--config 15m --hidden_width 32 --num_heads 4 --num_key_value_heads 2 --intermediate_size 64 --max_length 32)
  model+=(--num_layers 2 --batch_size 1 --num_steps 3 --ignore_steps 1)
  layers=2
else
  if [ "$gib" -ge 130 ]; then
    layers=32 batch=1
  elif [ "$gib" -ge 70 ]; then
    layers=12 batch=2
  elif [ "$gib" -ge 36 ]; then
    layers=5 batch=2
  else
    layers=2 batch=1
  fi
  layers="${LAYERS:-$layers}"
  model=(--config llama2_7b --num_layers "$layers" --max_length 4096 --batch_size "${BATCH:-$batch}")
  model+=(--selective_checkpointing "${RECOMPUTE:-0}" --num_steps 10 --ignore_steps 4)
fi
model+=(--plugin "${PLUGIN:-fsdp}" --mixed_precision bf16)
eight=(--fp8)
[ -z "$rehearse" ] || eight+=(--fp8_emulate)
echo "== $gpu${gib:+, $gib GiB}: $layers of the 7B's 32 layers"

end=$((SECONDS + ${SECONDS_IN_ALL:-$([ -n "$rehearse" ] && echo 3600 || echo 520)}))
failed=()

part() { # NAME LIMIT-IN-SECONDS COMMAND…: run it unless time or PARTS leave it out; a failure does not stop the others
  local name="$1" limit="$2" left=$((end - SECONDS)) status=0 begin=$SECONDS
  shift 2
  case " ${PARTS:-$name} " in *" $name "*) ;; *) return 0 ;; esac
  if [ "$left" -lt 20 ]; then
    echo "== $name: left out, no time is left"
    failed+=("$name (no time)")
    return 0
  fi
  echo "== $name"
  [ -z "$rehearse" ] || limit=$left  # a CPU takes as long as it takes, to compile above all
  timeout --kill-after=10 "$((limit < left ? limit : left))" "$@" || status=$?
  [ "$status" = 0 ] || failed+=("$name ($([ "$status" = 124 ] && echo 'out of time' || echo "status $status"))")
  echo "== $name: $((SECONDS - begin)) s, status $status"
}

step() { # NAME FLAGS…: a breakdown of one kind of step
  local name="$1"
  shift
  part "$name" "${STEP_SECONDS:-90}" python benchmarks/breakdown.py --results "$results" --name "$name" -- "${model[@]}" "$@"
}

benchmark_file() { # NAME FLAGS-OF-A-REHEARSAL…: a benchmark that measures by itself
  local name="$1"
  shift
  [ -n "$rehearse" ] || set --
  part "$name" 60 python "benchmarks/$name.py" --results "$results" "$@"
}

workers=()
if [ -z "$rehearse" ] && python -c 'import xdist' 2>/dev/null; then workers=(-n 4); fi

part tests 150 python -m pytest -m gpu -q -rs "${workers[@]}" tests/gpu
step dyt-bf16 --compile --norm dyt
step rmsnorm-bf16 --compile --norm rmsnorm
step dyt-fp8 --compile --norm dyt "${eight[@]}"
benchmark_file norms --shapes 64x64 --dtypes fp32 --rounds 2
benchmark_file loss --tokens 64 --hidden 32 --vocabulary 512 --repeat 2
step dyt-bf16-eager --no-compile --norm dyt
if [ -n "$rehearse" ]; then
  part steps 120 python benchmarks/steps.py --results "$results" --peers bare rmsnorm --pairs 1 --warmup 1 \
    --batch_size 1 --max_length 16
else
  part steps 90 python benchmarks/steps.py --results "$results" --config 100m --mixed_precision bf16 \
    --batch_size 8 --max_length 1024 --plugin zero2
fi

echo "== $((SECONDS)) s in all; results in $results"
if [ "${#failed[@]}" -gt 0 ]; then
  echo "error: not all parts ended well: ${failed[*]}" >&2
  exit 1
fi
