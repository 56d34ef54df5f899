#!/usr/bin/env bash
# Pretrains Mixtral 8x7B with Dynamic Tanh by torchrun, started on every machine with the same words: by
# configs/mixtral_8x7b.yaml, with the experts of a layer on eight GPUs. A second start goes on from the newest checkpoint.
#
#   NODES=4 MASTER=node1 bash torchrun.sh [flags of pretrain.py]    on four machines, of which node1 is reached by all
#   bash torchrun.sh                                                on this machine alone
#   NPROC=…        processes a machine (default: one a GPU)         CONFIG_FILE=…  another recipe
#   MASTER_PORT=…  port of the rendezvous (default: 29500)
# The repository, its .venv and what the recipe's paths name lie where all machines have them. What it will need:
#   python pretrain.py --config_file configs/mixtral_8x7b.yaml --dry_run --dry_run_processes 32
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../launch_common.sh"

NODES="${NODES:-1}" MASTER_PORT="${MASTER_PORT:-29500}"
if [ "$NODES" = 1 ]; then
  MEETING=(--standalone)
else
  : "${MASTER:?give a machine that all of them reach: NODES=$NODES MASTER=node1 bash torchrun.sh}"
  MEETING=(--nnodes "$NODES" --rdzv_id "$MASTER_PORT" --rdzv_backend c10d --rdzv_endpoint "$MASTER:$MASTER_PORT")
fi
cd "$REPOSITORY" # where the recipe's paths begin
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
exec torchrun "${MEETING[@]}" --nproc_per_node "$NPROC" \
  pretrain.py --config_file "${CONFIG_FILE:-configs/mixtral_8x7b.yaml}" --load auto "$@"
