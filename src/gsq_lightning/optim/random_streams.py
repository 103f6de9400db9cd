"""The random streams of training: each batch has its own, so that there is no state to keep."""

import random

import numpy as np
import torch


def seed_streams(seed: int, batch: int, rank: int) -> None:
    """Sets Python's, NumPy's and torch's streams, those of all devices too, to what this batch draws from.

    What is drawn depends on (seed, batch, rank) alone, as the order and crops of images do on (seed, epoch, image): a
    run that resumes at any batch goes on with the same draws, whatever happened before.

    Args:
        seed: of the run.
        batch: number of the training batch since the run began.
        rank: which process this is.
    """
    for_torch, for_numpy, for_python = np.random.SeedSequence((seed, batch, rank)).generate_state(3, np.uint64).tolist()
    torch.manual_seed(for_torch >> 1)
    np.random.seed(for_numpy % 2**32)
    random.seed(for_python)
