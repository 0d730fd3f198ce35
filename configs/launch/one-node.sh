#!/usr/bin/env bash
# Train on several GPUs of one machine; without GPUs, in as many processes on its cores.
#
#   configs/launch/one-node.sh 8 --config configs/medalpaca-13b.toml --base models/llama-13b --output runs/13b \
#       --resume auto
#
# First how many processes (GPUs), then what train.py is to get. With --resume auto the same line begins a run and goes
# on with it. From the environment:
#
#   RESTARTS   how often torchrun starts all processes anew when one dies; 0. Needs --resume auto
#   PYTHON     the interpreter; the one in .venv if there is one
#   TORCH_ELASTIC_SHUTDOWN_TIMEOUT   seconds from Ctrl-C or SIGTERM to SIGKILL, in which the step in hand must end and
#              the checkpoint be written; 600, where torchrun's own 30 would kill a large model's save
#   OMP_NUM_THREADS   threads of each process; torchrun's choice is 1, right for GPUs
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 PROCESSES TRAIN-ARGUMENTS..." >&2
    exit 2
fi
processes=$1
shift

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}

exec "$python" -m torch.distributed.run \
    --standalone --nproc-per-node "$processes" --max-restarts "${RESTARTS:-0}" \
    "$root/train.py" "$@"
