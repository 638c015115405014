#!/usr/bin/env bash
# Sixteen workers fill one cache. sbatch scripts/recipes/slurm_array.sh harvest.toml
#SBATCH --job-name=harvest
#SBATCH --array=1-16
#SBATCH --cpus-per-task=2
#SBATCH --mem=2G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the limit: time to finish the requests in flight and to commit.
#SBATCH --signal=B:TERM@120
set -uo pipefail

config=$1
harvest run "$config" --slice "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" &
worker=$!
# Slurm signals this shell; the worker must hear of it. The first `wait` ends with the signal, the second with the worker.
trap 'kill -TERM "$worker"' TERM
wait "$worker"
status=$?
if kill -0 "$worker" 2> /dev/null; then
    wait "$worker"
    status=$?
fi
# 3: stopped early with everything committed. The same task goes on where it was. After 1 there is something to mend first.
if [ "$status" -eq 3 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$status"
