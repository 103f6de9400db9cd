"""Groups and initialization, in minutes: what grouping does to a small codebook, on the bundled photographs.

    python benchmarks/groups.py

A small f8 GSQ-VAE with D = 16 and V = 512 is trained on random crops for G = 1, 2, 4, 8, 16, and for G = 1 from uniform
codes without normalization, the setting that GSQ replaces (the paper's Table 1). More groups also mean more bits: the
table says how many. Each row is one run from one seed.
"""

import argparse
import functools
import logging
import time
import warnings
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer, seed_everything

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, TokenizerModule
from gsq_lightning.data import PhotographsDataModule
from gsq_lightning.metrics import ReconstructionMetrics
from gsq_lightning.quantizers.spherical import Initialization, Normalization

LATENT_CHANNELS = 16
CODEBOOK_SIZE = 512


class Case(NamedTuple):
    num_groups: int
    init: Initialization
    normalization: Normalization


CASES = [
    Case(1, "uniform", "none"),
    Case(1, "sphere", "l2"),
    Case(2, "sphere", "l2"),
    Case(4, "sphere", "l2"),
    Case(8, "sphere", "none"),  # the paper omits ℓ2 for d ≤ 2
    Case(16, "uniform", "none"),  # d = 1, whose sphere has two points
]


def run(case: Case, steps: int, seed: int) -> dict[str, float]:
    """Trains and validates one tokenizer; its metrics by name."""
    seed_everything(seed, workers=True, verbose=False)
    quantizer = GroupedSphericalQuantizer(
        LATENT_CHANNELS, CODEBOOK_SIZE, case.num_groups, case.normalization, case.init
    )
    tokenizer = GSQTokenizer(
        quantizer, channel_multipliers=(1, 2, 4, 8), base_channels=16, encoder_blocks=1, decoder_blocks=1, norm_groups=8
    )
    module = TokenizerModule(
        tokenizer,
        metrics=ReconstructionMetrics(["psnr", "codebook"]),
        tokenizer_optimizer=functools.partial(
            torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.05, fused=True
        ),
        ema_decay=0.98,
    )
    data = PhotographsDataModule(global_batch_size=16, crops_per_epoch=16 * steps, seed=seed)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    return {name.removeprefix("val/"): float(value) for name, value in trainer.callback_metrics.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="training steps of sixteen 64² crops")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    print("| G×d | init | lookup | bits per pixel | PSNR, dB | codes used | perplexity | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        start = time.perf_counter()
        values = run(case, arguments.steps, arguments.seed)
        print(
            f"| {case.num_groups}×{LATENT_CHANNELS // case.num_groups} | {case.init} | {case.normalization} "
            f"| {values['bits_per_pixel']:.3f} | {values['psnr']:.2f} | {values['codebook_usage']:.1%} "
            f"| {values['codebook_perplexity']:.1f} | {time.perf_counter() - start:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
