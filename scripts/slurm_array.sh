#!/bin/bash
# A grid on SLURM without any extra: each task of the array is a sweep of the same folder, and they share its
# cells, each run once (ganlab sweep --help). Needs a folder that all nodes see.
#
#   sbatch --array=0-7 --gres=gpu:1 --cpus-per-task=4 --time=4:00:00 scripts/slurm_array.sh grid=NAME
#
# Five minutes before the time is over, or when the task is preempted, the cells are told to save, the task is
# queued again and they go on; after `scancel` they save, and it is not. What failed is listed and left alone;
# once the array is through, `ganlab sweep grid=... retry=failed` runs it again. GANLAB names another command,
# as "python -m ganlab". Ask for no more CPUs than a node has: SLURM would wait for one for ever.
#SBATCH --job-name=ganlab
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.out

task=${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-}}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
${GANLAB:-ganlab} sweep retry=never "$@" &
sweep=$!
again=
# SIGTERM: cancelled; or preempted, and SLURM queues the task again, unless its rule is to cancel such tasks
trap 'again=1; kill -USR1 $sweep 2>/dev/null' USR1
trap 'kill -TERM $sweep 2>/dev/null; scontrol show job -o "$task" | grep -q " PreemptTime=[0-9]" && again=1' TERM

wait "$sweep"
code=$?
while kill -0 "$sweep" 2>/dev/null; do # a trap ends `wait` before the sweep ends
  wait "$sweep"
  code=$?
done

if [ -n "$again" ] && [ "$code" -gt 128 ] && [ -n "$task" ]; then
  scontrol requeue "$task"
fi
exit "$code"
