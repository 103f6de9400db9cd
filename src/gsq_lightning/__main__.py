"""Entry point of the `gsq` command: answers at once where no torch is needed, and imports the rest on demand."""

import argparse
import io
import sys

from gsq_lightning.cli.help import first_page, unknown_option, unknown_word
from gsq_lightning.cli.messages import fail

SUBCOMMANDS = {
    "fit": "train a tokenizer: gsq fit --config f8.yaml --data.root /data/imagenet",
    "validate": "metrics of a checkpoint: gsq validate --ckpt_path last.ckpt --data.root /data/imagenet",
    "test": "the same metrics, logged as test",
    "predict": "turn images into token shards: gsq predict --ckpt_path last.ckpt --data.root /data/imagenet",
    "evaluate": "metrics of images made elsewhere: gsq evaluate --real originals --fake reconstructions",
    "compare": "reports side by side: gsq compare a.ckpt b.ckpt --paper --plot rd.png",
    "export": "write a checkpoint's tokenizer as a folder for from_pretrained: gsq export last.ckpt my-tokenizer",
    "convert": "the same for a checkpoint of GSQ's authors: gsq convert checkpoint.pt my-tokenizer",
    "plan": "what a recipe takes on so many GPUs: gsq plan --config f16.yaml --gpus 64 --device h100",
    "weights": "download all pretrained weights that a recipe needs: gsq weights --config f8.yaml",
}


def main(args: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        args: as on the command line, without the program's name; by default those of this process.
    """
    arguments = sys.argv[1:] if args is None else args
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files, arrows and the like, in any encoding
    command, rest = (arguments[0] if arguments else "--help"), list(arguments[1:])
    if command.startswith("-"):
        _top_level_parser().parse_args([command])
        return
    if command not in SUBCOMMANDS:
        fail(unknown_word(command, list(SUBCOMMANDS)))
    if command in ("fit", "validate", "test", "predict", "weights", "evaluate"):
        if rest in (["--help"], ["-h"]):
            print(first_page(command), end="")
            raise SystemExit(0)
        if command != "evaluate" and (unknown := unknown_option(rest)):
            fail(unknown)
        if "--help" in rest[:-1] and rest[rest.index("--help") + 1] == "all":
            del rest[rest.index("--help") + 1]
        arguments = [command, *rest]
    if arguments[0] == "weights":
        from gsq_lightning.cli.weights import fetch_weights

        fetch_weights(arguments[1:])
    elif arguments[0] == "plan":
        from gsq_lightning.cli.plan import plan

        plan(arguments[1:])
    elif arguments[0] == "evaluate":
        from gsq_lightning.cli.evaluate import evaluate

        evaluate(arguments[1:])
    elif arguments[0] in ("export", "convert"):
        from gsq_lightning.cli import export

        (export.export if arguments[0] == "export" else export.convert)(arguments[1:])
    elif arguments[0] == "compare":
        from gsq_lightning.cli.compare import compare

        compare(arguments[1:])
    else:
        from gsq_lightning.cli.fit import main as run

        run(arguments)


def _top_level_parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    width = max(map(len, SUBCOMMANDS))
    parser = argparse.ArgumentParser(
        prog="gsq",
        description="Image tokenizers with Grouped Spherical Quantization.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<{width}}  {meaning}" for name, meaning in SUBCOMMANDS.items())
        + "\n\n'gsq COMMAND --help' lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gsq-lightning {version('gsq-lightning')}")
    parser.add_argument("command", choices=SUBCOMMANDS, metavar="command", help="one of those below")
    return parser


if __name__ == "__main__":
    main()
