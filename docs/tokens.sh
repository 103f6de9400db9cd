#!/bin/bash
# Tokens by a SLURM array, each job for itself:   sbatch docs/tokens.sh --data.root /data/imagenet
# What follows the script's name goes to `gsq predict`. CKPT=runs/f16 sbatch … takes another tokenizer.
#SBATCH --job-name=gsq-tokens
#SBATCH --array=0-15
#SBATCH --gpus=1
#SBATCH --cpus-per-task=12
#SBATCH --time=04:00:00
#SBATCH --requeue                # the same job writes what is missing
#SBATCH --output=slurm-%A-%a.out
set -euo pipefail

export OMP_NUM_THREADS=1         # workers use one core each

gsq predict \
  --ckpt_path "${CKPT:-runs/f8}" \
  --tokens.split train \
  --tokens.part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
  --data.num_workers "$((SLURM_CPUS_PER_TASK - 1))" \
  "$@"
