"""Lightning's CLI over the generator, and gsq-lightning's tokens by class_path."""

from typing import NoReturn

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from gsq_lightning.cli.messages import fail, plain_message
from gsq_lightning.data import TokenDataModule
from token_generator.module import GeneratorModule
from token_generator.network import TokenShape


class Parser(LightningArgumentParser):
    """Prints errors of options in one line, without the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(plain_message(message))


class GeneratorCLI(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data", "model.shape", compute_fn=shape_of, apply_on="instantiate")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=lambda seed: int(seed or 0))


def shape_of(data: TokenDataModule) -> TokenShape:
    """Of the tokens, so that no config has to repeat it."""
    height, width = data.grid
    return TokenShape(data.num_groups, data.codebook_size, height, width, data.num_classes)


def main(args: ArgsType = None) -> GeneratorCLI:
    return GeneratorCLI(
        GeneratorModule,
        LightningDataModule,
        parser_class=Parser,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        args=args,
    )
