"""`gsq weights`: fetches all pretrained weights that a recipe needs."""

from typing import Any

from gsq_lightning.cli.fit import GSQCommand, prepare_process
from gsq_lightning.cli.messages import one_line_errors
from gsq_lightning.pretrained.weights import recorded_files


class Objects(GSQCommand):
    """The objects of a config, without a Trainer."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None


def fetch_weights(arguments: list[str]) -> None:
    """Gets the pretrained networks of a recipe into the caches, and prints where their files lie.

    Args:
        arguments: as of `gsq fit`, without that word; what does not concern the model is ignored.

    Raises:
        SystemExit: with code 2 for bad input, and where a file is not to be had.
    """
    prepare_process()
    with one_line_errors("weights"):
        model = Objects("weights", arguments).model
        with recorded_files() as files:
            model.load_training_networks()
            model.load_metrics()
        for network, path in dict.fromkeys(files):  # a network may serve several
            print(f"  {network:<24}  {path}")
        if not files:
            print("  this recipe needs no pretrained weights")
