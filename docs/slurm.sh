#!/bin/bash
# Trains on several machines under SLURM:   sbatch docs/slurm.sh --data.root /data/imagenet
# What follows the script's name goes to `gsq fit`. CONFIG=f8.yaml sbatch … takes another recipe.
#SBATCH --job-name=gsq
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8      # one task for each GPU; Lightning starts none by itself here
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12       # workers, and the training process
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@300     # five minutes before the end: checkpoint and requeue
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail

export OMP_NUM_THREADS=1         # workers use one core each

# cpus-per-task once more: from SLURM 22.05 on srun does not take it from sbatch, and tasks may get one core each
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" gsq fit \
  --config "${CONFIG:-f16.yaml}" \
  --trainer.num_nodes "$SLURM_NNODES" \
  --trainer.devices "$SLURM_NTASKS_PER_NODE" \
  --data.num_workers "$((SLURM_CPUS_PER_TASK - 1))" \
  "$@"
