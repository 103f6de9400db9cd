"""The generator's command: Lightning's CLI over the generator and gsq-lightning's tokens.

python examples/generator/main.py fit --config examples/generator/photographs.yaml --data.root tokens
"""

from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from token_generator import GeneratorModule, TokenShape


class GeneratorCLI(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data", "model.shape", compute_fn=shape_of, apply_on="instantiate")


def shape_of(data: Any) -> TokenShape:
    """Of the tokens of a `TokenDataModule`, so that no config has to repeat it."""
    height, width = data.grid
    return TokenShape(data.num_groups, data.codebook_size, height, width, data.num_classes)


def main(args: ArgsType = None) -> GeneratorCLI:
    return GeneratorCLI(
        GeneratorModule,
        LightningDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        args=args,
    )


if __name__ == "__main__":
    main()
