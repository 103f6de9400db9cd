"""`gsq fit --init_from X`: weights of another training in, steps and optimizers fresh."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from gsq_lightning.cli.source import find_tokenizer
from gsq_lightning.errors import InputError, how_many, require
from gsq_lightning.pretrained.export import Weights
from gsq_lightning.pretrained.initial import DISCRIMINATOR, Taken, read_initial, start_from


@dataclass(frozen=True)
class InitOptions:
    """What is taken of `--init_from`.

    Args:
        weights: which weights of a checkpoint: "ema" for averaged ones where it has them, or "raw".
        discriminator: whether the discriminator is taken; by default where the file has one.
        include: patterns of names that are taken, such as [encoder.*,quantizer.*].
        exclude: patterns of names that are left out, such as [quantizer.*].
    """

    weights: Weights = "ema"
    discriminator: bool | None = None
    include: Sequence[str] = field(default_factory=lambda: ["*"])
    exclude: Sequence[str] = field(default_factory=list)


def check_options(source: str | None, options: InitOptions, trained: str, resumes: bool) -> None:
    """Raises InputError for options without effect, and for a frozen encoder that would be a random one.

    Args:
        source: of `--init_from`.
        options: beside it.
        trained: of the model.
        resumes: whether training resumes from a checkpoint.
    """
    require(
        source is not None or options == InitOptions(),
        "--init options have no effect without --init_from, the weights to start from",
    )
    require(
        trained == "all" or source is not None or resumes,
        f"model.trained is {trained}: encoder and codebook would stay random; give their weights with --init_from",
    )


def initialize(module: Any, source: str, options: InitOptions) -> Taken:
    """Puts the weights of `source` into the networks of a TokenizerModule, and says so in one line.

    Args:
        module: before its training.
        source: as of `find_tokenizer`, or a repository of the Hugging Face Hub.
        options: what is taken.

    Raises:
        InputError: where it cannot be read, or does not fit.
    """
    initial = read_initial(find_tokenizer(source) or source, options.weights)
    discriminator = module.discriminator
    if options.discriminator:
        require(discriminator is not None, "--init.discriminator is true, and this training has no discriminator")
        require(
            initial.has_discriminator,
            f"{initial.place} holds no discriminator; without --init.discriminator it starts fresh",
        )
    takes_it = options.discriminator is not False and initial.has_discriminator
    tokenizer = module.tokenizer
    try:
        taken = start_from(
            initial,
            tokenizer,
            tokenizer.config,
            discriminator if takes_it else None,
            options.include,
            options.exclude,
        )
    except InputError as error:
        hint = "; --init.exclude [quantizer.*] or the like leaves some out"
        if DISCRIMINATOR in str(error):
            hint += ", --init.discriminator false the discriminator"
        raise InputError(f"{error}{hint if 'do not fit' in str(error) else ''}") from error
    frozen = [name for name in taken.fresh if module.trained == "decoder" and name.startswith(("encoder", "quantizer"))]
    tensors = how_many(len(frozen), "tensor")
    require(not frozen, f"model.trained is decoder, and {tensors} of encoder and codebook would stay random")
    rank_zero_info(f"init_from: {taken}")
    if discriminator is not None and not takes_it:
        rank_zero_info("init_from: the discriminator starts fresh")
    return taken
