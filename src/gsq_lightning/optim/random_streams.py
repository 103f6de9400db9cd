"""Random number generators of training are seeded for each batch, so that there is no state to save."""

import random

import numpy as np
import torch


def seed_streams(seed: int, batch: int, rank: int) -> None:
    """Seeds Python's, NumPy's and torch's generators, on all devices, for one batch.

    What is drawn depends on (seed, batch, rank) alone, as the order and crops of images do on (seed, epoch, image): a
    resumed run draws the same numbers at each batch.

    Args:
        seed: of the run.
        batch: number of the training batch since the run began.
        rank: which process this is.
    """
    for_torch, for_numpy, for_python = np.random.SeedSequence((seed, batch, rank)).generate_state(3, np.uint64).tolist()
    torch.manual_seed(for_torch >> 1)
    np.random.seed(for_numpy % 2**32)
    random.seed(for_python)
