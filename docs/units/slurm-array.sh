#!/bin/bash
# Eight shards of one job, then their merge:
#   array=$(sbatch --parsable slurm-array.sh)
#   sbatch --dependency=afterok:"$array" --kill-on-invalid-dep=yes slurm-merge.sh
#SBATCH --job-name=articles
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=articles-%a.log
# A minute before the limit the step gets SIGTERM, which saves; limits.deadline should end it in peace before.
#SBATCH --signal=TERM@60

code=0
srun nanovllm run articles.yaml --shard "${SLURM_ARRAY_TASK_ID}/8" --set limits.deadline=3h50m --progress plain ||
  code=$?

# Deadline or SIGTERM: the time is over, not the work. The same command continues in the next allotment.
if [[ $code == 5 || $code == 143 ]] && ((${SLURM_RESTART_COUNT:-0} < 20)); then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
# Anything but 0 keeps the merge from starting (afterok).
exit "$code"
