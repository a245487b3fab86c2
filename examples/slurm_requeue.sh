#!/bin/bash
# Slurm: train within a time limit, and queue again until the run is done.
#
#   sbatch examples/slurm_requeue.sh my.jsonl
#
# Two minutes before the limit, and on preemption, Slurm sends SIGTERM. `lorafit train` finishes its
# step, saves and ends with exit code 75; the job then queues itself again, and the same command
# continues the run from its newest whole checkpoint. Any other exit code ends the job.
#SBATCH --job-name=lorafit
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=lorafit-%j.log

set -u
DATA="${1:?give a data file: sbatch examples/slurm_requeue.sh my.jsonl}"
RUN_DIR="${RUN_DIR:-$SLURM_SUBMIT_DIR/outputs/phi2}"

# The batch shell gets the signal (B:) and passes it on. The training runs in the background, since
# bash handles no signal while it waits for a command in the foreground.
training=
stopping=0
trap 'stopping=1; [ -z "$training" ] || kill -TERM "$training"' TERM
lorafit train --preset "${PRESET:-balanced}" --data "$DATA" --output-dir "$RUN_DIR" &
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
