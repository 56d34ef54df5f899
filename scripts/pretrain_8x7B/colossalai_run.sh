#!/usr/bin/env bash
# Pretrains Mixtral 8x7B with Dynamic Tanh by `colossalai run`, started on one machine for all of hosts.txt: by
# configs/mixtral_8x7b.yaml, with the experts of a layer on eight GPUs. A second start goes on from the newest checkpoint.
#
#   bash colossalai_run.sh [flags of pretrain.py]    hosts.txt, NPROC and MASTER_PORT: see ../launch_common.sh
#   CONFIG_FILE=…  another recipe
# The repository, its .venv and what the recipe's paths name lie where all machines have them. What it will need:
#   python pretrain.py --config_file configs/mixtral_8x7b.yaml --dry_run --dry_run_processes 32
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../launch_common.sh"

if [ "${#HOSTS[@]}" != 0 ]; then HOSTS=(--hostfile "$PWD/hosts.txt"); fi
cd "$REPOSITORY" # where the recipe's paths begin
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
launch pretrain.py --config_file "${CONFIG_FILE:-configs/mixtral_8x7b.yaml}" --load auto "$@"
