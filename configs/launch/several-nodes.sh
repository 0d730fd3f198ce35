#!/usr/bin/env bash
# Train on several machines: start this once on each of them, with the same arguments.
#
#   configs/launch/several-nodes.sh 4 8 node1:29400 first --config configs/medalpaca-13b.toml \
#       --base models/llama-13b --output /shared/runs/13b --resume auto
#
#   4              machines; they wait for each other
#   8              processes (GPUs) on each
#   node1:29400    where they meet: the name of one of these machines, as all of them know it, and a free port there.
#                  Its torchrun keeps the common store, so the run ends with that machine
#   first          any name for this run; machines that give another do not meet
#   then           what train.py is to get. --output must be on a disk that all machines see; base and data may lie on
#                  each machine's own, under the same path
#
# From the environment, beside what one-node.sh explains (RESTARTS, PYTHON, TORCH_ELASTIC_SHUTDOWN_TIMEOUT):
#
#   LOCAL_ADDR           this machine's own name or address, if the others do not know it by its hostname
#   GLOO_SOCKET_IFNAME   the network interface for small messages, if the first one found is the wrong one: ens3, ib0
#   NCCL_SOCKET_IFNAME   the same for NCCL, which moves the gradients
set -euo pipefail

if [[ $# -lt 5 || ! $1 =~ ^[1-9][0-9]*$ || ! $2 =~ ^[1-9][0-9]*$ || $3 != *:* ]]; then
    echo "usage: $0 MACHINES PROCESSES-ON-EACH HOST:PORT NAME TRAIN-ARGUMENTS..." >&2
    exit 2
fi
machines=$1 processes=$2 meeting=$3 name=$4
shift 4

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}

exec "$python" -m torch.distributed.run \
    --nnodes "$machines" --nproc-per-node "$processes" --max-restarts "${RESTARTS:-0}" \
    --rdzv-backend c10d --rdzv-endpoint "$meeting" --rdzv-id "$name" ${LOCAL_ADDR:+--local-addr "$LOCAL_ADDR"} \
    "$root/train.py" "$@"
