#!/bin/bash
# A grid on SLURM without any extra: each task of the array is a sweep of the same folder, and they share its
# cells, each run once (ganlab sweep --help). Needs a folder that all nodes see.
#
#   sbatch --array=0-7 --gres=gpu:1 --time=4:00:00 scripts/slurm_array.sh grid=sngan_fig1_cifar
#
# Five minutes before the time is over, or when the task is preempted, the cells are told to save, the task is
# queued again and they go on. What failed is listed and left alone; once the array is through,
# `ganlab sweep grid=... retry=failed` runs it again. GANLAB names another command, as "python -m ganlab".
#SBATCH --job-name=ganlab
#SBATCH --cpus-per-task=4
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.out

${GANLAB:-ganlab} sweep retry=never "$@" &
sweep=$!
told=
for name in USR1 TERM; do
  trap "told=$name; kill -$name $sweep 2>/dev/null" "$name"
done

wait "$sweep"
code=$?
while kill -0 "$sweep" 2>/dev/null; do # a trap ends `wait` before the sweep ends
  wait "$sweep"
  code=$?
done

if [ -n "$told" ] && [ "$code" -gt 128 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
