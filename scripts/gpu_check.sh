#!/usr/bin/env bash
# What only a GPU can show: the GPU tests, then the benchmarks of the size that fits this card. Run it on a machine with
# an NVIDIA GPU after set-up; what it is given goes to benchmark.py. It ends with an error where there is no GPU.
#
#   bash scripts/gpu_check.sh [--num_steps 10 …]     CONFIG, BATCH, LENGTH as in scripts/benchmark_7B
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/common.sh

use_environment "$PWD"
gpu="$(python -c 'import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "")')"
if [ -z "$gpu" ]; then
  echo "error: nothing was checked: this machine shows no GPU to torch $(python -c 'import torch; print(torch.__version__)')" >&2
  exit 1
fi
echo "== tests on $gpu"
python -m pytest -m gpu -rs tests
for plugin in gemini zero2; do
  echo "== $plugin"
  CONFIG="${CONFIG:-1.4b}" NPROC="${NPROC:-$(count_gpus)}" bash "scripts/benchmark_7B/$plugin.sh" "$@"
done
