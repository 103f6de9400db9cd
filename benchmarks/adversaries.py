"""What a discriminator is worth: the same tokenizer trained without one, against NLD and against the projected one.

    python benchmarks/adversaries.py --root /data/tiny-imagenet-200 --steps 4000

Trains `tiny_imagenet.yaml` for each case and seed, validates it, and adds a row to a CSV file. Called again it goes on:
rows that are there are not run, a run that was interrupted is resumed. `--summary` prints means over the seeds.
Pictures lie beside the checkpoints.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

CASES = {
    "none": ["--model.discriminator", "null", "--model.discriminator_start_step", "0"],
    "NLD": [
        "--model.discriminator",
        json.dumps(
            {
                "class_path": "gsq_lightning.discriminators.PatchDiscriminator",
                "init_args": {"channels": 32, "num_layers": 2},
            }
        ),
    ],
    "projected": [],
}
METRICS = ("psnr", "ssim", "rfd_efficientnet", "codebook_usage")


def gsq(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "gsq_lightning", *arguments], check=True)


def run(case: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Trains and validates one tokenizer; its metrics by name."""
    folder = arguments.folder / f"{case}_{seed}"
    gsq(
        *("fit", "--config", "tiny_imagenet.yaml", "--data.root", str(arguments.root)),
        *("--seed_everything", str(seed), "--trainer.max_steps", str(arguments.steps)),
        *("--trainer.logger.save_dir", str(folder), "--trainer.logger.name", "run", *CASES[case]),
    )
    checkpoint = max(folder.glob("run/version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    gsq(
        *("validate", "--ckpt_path", str(checkpoint), "--data.root", str(arguments.root)),
        *("--model.metrics.names", "[psnr,ssim,rfd_efficientnet,codebook]"),
    )
    reports = checkpoint.parent.parent.rglob("metrics.json")
    return json.loads(max(reports, key=lambda path: path.stat().st_mtime).read_text())["metrics"]


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open())) if path.exists() else []


def summarize(rows: list[dict[str, str]]) -> None:
    """Means over the seeds, and their spread, as a table."""
    print(f"| discriminator | seeds | {' | '.join(METRICS)} |")
    print("|---" * (len(METRICS) + 2) + "|")
    for case in CASES:
        of_case = [row for row in rows if row["case"] == case]
        values = [[float(row[name]) for row in of_case] for name in METRICS]
        cells = [f"{statistics.mean(column):.4g} ± {statistics.pstdev(column):.2g}" for column in values if column]
        print(f"| {case} | {len(of_case)} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="what holds train and val")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/adversaries"), help="of the runs and of the CSV file")
    parser.add_argument("--summary", action="store_true", help="print what is there, and run nothing")
    arguments = parser.parse_args()

    path = arguments.folder / "adversaries.csv"
    for seed in [] if arguments.summary else arguments.seeds:
        for case in CASES:
            key = {"case": case, "seed": str(seed), "steps": str(arguments.steps)}
            if any(key.items() <= row.items() for row in rows_of(path)):
                continue
            metrics = run(case, seed, arguments)
            new = not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, [*key, *METRICS])
                if new:
                    writer.writeheader()
                writer.writerow({**key, **{name: metrics[name] for name in METRICS}})
    summarize(rows_of(path))


if __name__ == "__main__":
    main()
