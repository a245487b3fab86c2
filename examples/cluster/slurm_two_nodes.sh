#!/bin/bash
# Slurm: train on two nodes of eight GPUs, and queue again until the run is done.
#
#   sbatch examples/cluster/slurm_two_nodes.sh my.jsonl
#
# One launcher a node starts a process a GPU. Two minutes before the limit Slurm signals this
# script, which passes SIGTERM on: the step is finished and saved, and the job ends with 75 and
# queues itself again. Data, base model and run folder must be on a file system of all nodes.
#SBATCH --job-name=lorafit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=lorafit-%j.log

set -u
DATA="${1:?give a data file: sbatch examples/cluster/slurm_two_nodes.sh my.jsonl}"
RUN_DIR="${RUN_DIR:-$SLURM_SUBMIT_DIR/outputs/phi2}"
MAIN="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export DATA RUN_DIR MAIN PRESET="${PRESET:-balanced}"

training=
stopping=0
trap 'stopping=1; [ -z "$training" ] || kill -TERM "$training"' TERM
# $SLURM_NODEID is only known inside the task of each node, hence the single quotes.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=0 bash -c 'exec lorafit train \
    --preset "$PRESET" --data "$DATA" --output-dir "$RUN_DIR" \
    --num-processes "$SLURM_GPUS_ON_NODE" \
    --num-machines "$SLURM_NNODES" --machine-rank "$SLURM_NODEID" \
    --main-process-ip "$MAIN" --main-process-port "${PORT:-29500}"' &
training=$!
# A signal may have come before there was anyone to pass it on to.
[ "$stopping" -eq 0 ] || kill -TERM "$training"

# A signal ends `wait` early, with more than 128: wait once more for the training's own exit code.
wait "$training"
code=$?
if [ "$stopping" -eq 1 ] && [ "$code" -gt 128 ]; then
    wait "$training"
    code=$?
fi

if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
