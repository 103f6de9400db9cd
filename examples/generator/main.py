"""The generator's command: python examples/generator/main.py fit --config examples/generator/photographs.yaml"""

from gsq_lightning.cli.messages import one_line_errors
from token_generator.cli import main

if __name__ == "__main__":
    with one_line_errors("fit"):  # wrong input, and signals after which a run goes on, without pages of frames
        main()
