"""Held-out bits per image of the depth head against independent heads, over several seeds, as a table.

    python examples/generator/compare_heads.py --config examples/generator/photographs.yaml --data.root tokens

Arguments are those of `main.py fit` and those below. Both heads see the same batches for the same number of steps, not
masked, as masked generators have no bits per image. A run that is finished is not made again, and one that was
interrupted goes on. Without arguments of `main.py fit`, the table is of the runs that are there.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from gsq_lightning.cli.messages import one_line_errors
from gsq_lightning.errors import require
from gsq_lightning.files import write_whole
from token_generator.cli import main as command

HEADS = ("independent", "depth")


def main(arguments: list[str] | None = None) -> str:
    """Trains what is missing. Returns, and prints, the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/heads"), help="of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--independent_layers", type=int, help="layers of the other, so that it has as many parameters")
    given, options = parser.parse_known_args(arguments)
    more = [] if given.independent_layers is None else [f"--model.layers={given.independent_layers}"]
    of_head = {"independent": [*options, *more], "depth": options}
    found: dict[str, list[dict[str, Any]]] = {head: [] for head in HEADS}
    for seed in range(given.seeds):
        for head in HEADS:
            found[head].append(result(head, seed, given.folder, of_head[head]))
    table = table_of(found)
    print(table, flush=True)
    return table


def result(head: str, seed: int, folder: Path, options: list[str]) -> dict[str, Any]:
    """Bits per image on the held-out tokens after the last step, and the number of parameters.

    Raises InputError where the run is there with other options.
    """
    run = folder / f"{head}_{seed}"
    if not (run / "result.json").is_file():
        last = run / "checkpoints" / "last.ckpt"
        logger = {"save_dir": folder, "name": run.name, "version": ""}
        cli = command(
            [
                "fit",
                *options,
                f"--model.head={head}",
                "--model.masked=false",
                f"--seed_everything={seed}",
                "--trainer.logger=gsq_lightning.runs.RunLogger",
                *(f"--trainer.logger.{name}={value}" for name, value in logger.items()),
                *([f"--ckpt_path={last}"] if last.is_file() else []),
            ]
        )
        (values,) = cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
        measured = {
            "bits_per_image": values["val/bits_per_image"],
            "parameters": sum(parameter.numel() for parameter in cli.model.parameters()),
            "steps": cli.trainer.global_step,
            "options": options,
        }
        write_whole(run / "result.json", (json.dumps(measured) + "\n").encode())
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    require(
        not options or content["options"] == options,
        f"{run} is of other options: {' '.join(content['options'])}; give those, or another --folder",
    )
    return content


def table_of(found: dict[str, list[dict[str, Any]]]) -> str:
    """Lines of a Markdown table: each seed, mean and standard deviation over them, and the difference in percent."""
    seeds = range(len(found[HEADS[0]]))
    lines = [
        f"| head | parameters | steps | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | deviation |",
        f"|---|{'---:|' * (len(seeds) + 4)}",
    ]
    means = {}
    for head, results in found.items():
        bits = [one["bits_per_image"] for one in results]
        means[head] = statistics.mean(bits)
        spread = statistics.stdev(bits) if len(bits) > 1 else 0.0
        cells = [f"{results[0]['parameters']:,}", f"{results[0]['steps']:,}", *(f"{one:.1f}" for one in bits)]
        lines.append(f"| {head} | {' | '.join(cells)} | {means[head]:.1f} | {spread:.1f} |")
    change = 100 * (means["depth"] / means["independent"] - 1)
    return "\n".join([*lines, "", f"depth against independent: {change:+.1f} % bits per held-out image"])


if __name__ == "__main__":
    with one_line_errors("fit"):
        main()
