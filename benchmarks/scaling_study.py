"""The paper's comparisons as one grid: in miniature on a CPU, at full size on ImageNet.

    python benchmarks/scaling_study.py --root /data/tiny-imagenet-200 --studies groups adversary --steps 2000
    python benchmarks/scaling_study.py --root /data/imagenet --studies groups --full
    python benchmarks/scaling_study.py --summary --plot studies.png

Each case is trained once per seed by `gsq fit`, validated by `gsq validate` over the whole validation split, and added
to `study.csv`. Run it again to resume: rows that are there are not run again, and an interrupted training resumes. The
miniature is `tiny_imagenet.yaml` with the settings below; `--full` is the recipe and overlay of the paper's row.
`--summary` prints means ± standard deviations over the seeds, and the rank correlation with the paper's rFID.
Arguments after `--` go to `gsq fit`, before those of a case.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = ("psnr", "ssim", "rfd_efficientnet", "rkd_efficientnet", "codebook_usage", "codebook_perplexity")
AXES = ("psnr", "rfd_efficientnet", "codebook_usage", "codebook_perplexity")  # of the plot, over bits per pixel
FULL_SIZE_FID = "rfid"
RANKED = {FULL_SIZE_FID: 1, "rfd_efficientnet": 1, "psnr": -1}  # times the sign, less is better


class Case(NamedTuple):
    """One row of a study.

    Attributes:
        name: in tables.
        options: of `gsq fit --config tiny_imagenet.yaml`, the miniature.
        configs: recipe and overlay of the full size, or empty where the paper has no such row.
        rfid: the paper's, whose order the miniature's is compared with, or None.
    """

    name: str
    options: tuple[str, ...]
    configs: tuple[str, ...] = ()
    rfid: float | None = None


def settings(**values: object) -> tuple[str, ...]:
    """Options of `gsq fit` below `model`; a double underscore stands for a dot."""
    texts = {name.replace("__", "."): "null" if value is None else str(value) for name, value in values.items()}
    return tuple(text for name, value in texts.items() for text in (f"--model.{name}", value))


def quantizer(**values: object) -> tuple[str, ...]:
    """Options for the quantizer of the tokenizer."""
    return settings(**{f"tokenizer__quantizer__{name}": value for name, value in values.items()})


def full(overlay: str, recipe: str = "f8") -> tuple[str, ...]:
    return (f"{recipe}.yaml", f"ablations/{overlay}.yaml")


VAE = settings(discriminator=None, discriminator_start_step=0)
PATCH = settings(
    discriminator="PatchDiscriminator", discriminator__channels=32, discriminator__num_layers=2
)  # NLD at the size of 64² images


def start(init: str, normalization: str, overlay: str, rfid: float) -> Case:
    shape = quantizer(latent_channels=8, num_groups=1, codebook_size=8192, init=init, normalization=normalization)
    return Case(f"{init}, {normalization}", VAE + shape, full(overlay), rfid)


def grouped(num_groups: int, codebook_size: int, latent_channels: int, *paper: object) -> Case:
    # the paper leaves ℓ2 out for d of 1 and 2; a sphere in one dimension is two points
    dimension = latent_channels // num_groups
    shape = quantizer(
        latent_channels=latent_channels,
        num_groups=num_groups,
        codebook_size=codebook_size,
        normalization="none" if dimension <= 2 else "l2",
        init="uniform" if dimension == 1 else "sphere",
    )
    overlay, rfid = paper or ((), None)
    return Case(f"{num_groups}×{dimension}, V = {codebook_size}", VAE + shape, overlay, rfid)


def adversary(words: str, overlay: str, rfid: float, discriminator: tuple[str, ...]) -> Case:
    losses = {"N": "non_saturating", "H": "hinge", "V": "vanilla"}
    pair = words.split()[1]
    chosen = settings(adversarial_loss=losses[pair[0]], discriminator_loss=losses[pair[2]])
    return Case(words, (*discriminator, *chosen), full(overlay), rfid)


def perceptual(weight: float, overlay: str, rfid: float) -> Case:
    """In miniature EfficientNet's features in place of LPIPS, at 1/50 of its weight."""
    return Case(f"perceptual {weight:g}", VAE + settings(loss_weights__perceptual=weight / 50), full(overlay), rfid)


STUDIES: dict[str, tuple[Case, ...]] = {
    "initialization": (  # Table 1
        start("uniform", "none", "t1_uniform", 11.37),
        start("uniform", "l2", "t1_uniform_l2", 5.343),
        start("sphere", "none", "t1_sphere_none", 5.343),
        start("sphere", "l1", "t1_sphere_l1", 8.312),
        start("sphere", "l2", "t1_sphere_l2", 5.375),
    ),
    "perceptual": (  # Table 4
        perceptual(0.1, "t4_lpips_01_1", 7.062),
        perceptual(1, "t4_lpips_1_1", 5.406),
        perceptual(10, "t4_lpips_10_1", 6.093),
    ),
    "adversary": (  # Table 7; in miniature the projected discriminator stands for DD
        Case("none", VAE, full("t7_none"), 5.343),
        adversary("NLD N/V", "t7_nld_nv", 9.562, PATCH),
        adversary("NLD N/H", "t7_nld_nh", 11.3, PATCH),
        adversary("NLD H/H", "t7_nld_hh", 24.0, PATCH),
        adversary("features N/V", "t7_dd_nv", 1.906, ()),
        adversary("features N/H", "t7_dd_nh", 1.867, ()),
        adversary("features H/H", "t7_dd_hh", 1.976, ()),
    ),
    "groups": (  # Table 13: D and V fixed, so that more groups are more bits
        grouped(1, 512, 16, full("t13_f16_1x16", "f16"), 1.63),
        grouped(2, 512, 16, full("t13_f16_2x8", "f16"), 0.82),
        grouped(4, 512, 16, full("t13_f16_4x4", "f16"), 0.74),
        grouped(8, 512, 16, ("f16.yaml",), 0.50),
        grouped(16, 512, 16, full("t13_f16_16x1", "f16"), 0.52),
    ),
    "groups_at_equal_bits": (  # 16 bits a position; the paper has no such rows
        grouped(1, 2**16, 16),
        grouped(2, 2**8, 16),
        grouped(4, 2**4, 16),
        grouped(8, 2**2, 16),
    ),
    "codebook": tuple(  # Fig. 4 and Eq. 15
        grouped(1, 2**bits, d, full(f"fig4_d{d}_v{2 ** (bits - 10)}k"), rfid)
        for d, figures in ((8, (0.443, 0.389, 0.365)), (32, (0.555, 0.486, 0.426)))
        for bits, rfid in zip((14, 16, 18), figures, strict=True)
    ),
}


def gsq(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "gsq_lightning", *arguments], check=True)


def length(steps: int, full: bool) -> tuple[str, ...]:
    """Options for so many steps. In miniature, as in its recipe, decay and adversary take the second half."""
    half = steps - steps // 2
    schedule = settings(
        tokenizer_scheduler__init_args__decay_start=half,
        tokenizer_scheduler__init_args__decay_steps=steps // 2,
        discriminator_start_step=half,
    )
    return ("--trainer.max_steps", str(steps), *(() if full else schedule))


def run(study: str, case: Case, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Trains and validates one tokenizer; its metrics by name."""
    slug = "".join(letter if letter.isalnum() else "_" for letter in case.name)
    folder = arguments.folder / study / f"{slug}_{seed}"
    configs = case.configs if arguments.full else ("tiny_imagenet.yaml",)
    gsq(
        *("fit", "--data.root", str(arguments.root)),
        *(text for config in configs for text in ("--config", config)),
        *("--seed_everything", str(seed), "--trainer.logger.save_dir", str(folder), "--trainer.logger.name", "run"),
        *("--trainer.limit_val_batches", "0"),  # `gsq validate` does it once, below
        *(() if arguments.steps is None else length(arguments.steps, arguments.full)),
        *arguments.fit_arguments,
        *(() if arguments.full else case.options),
    )
    checkpoint = max(folder.glob("run/version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    metrics = ["psnr", "ssim", "codebook", "rfd_efficientnet", "rkd_efficientnet"]
    gsq(
        *("validate", "--ckpt_path", str(checkpoint), "--data.root", str(arguments.root)),
        *("--model.metrics.names", json.dumps(metrics + [FULL_SIZE_FID] * arguments.full)),
    )
    reports = checkpoint.parent.parent.rglob("metrics.json")
    values = json.loads(max(reports, key=lambda path: path.stat().st_mtime).read_text("utf-8"))["metrics"]
    return {name: values.get(name, "") for name in (*METRICS, FULL_SIZE_FID, "bits_per_pixel")}


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


def add_row(path: Path, row: dict[str, object]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def train(arguments: argparse.Namespace, path: Path) -> None:
    """Seeds outermost, so that each comparison is whole after each seed."""
    for seed in arguments.seeds:
        for study in arguments.studies:
            for case in STUDIES[study]:
                unwanted = arguments.cases is not None and case.name not in arguments.cases
                if unwanted or (arguments.full and not case.configs):
                    continue
                steps = "recipe" if arguments.steps is None else str(arguments.steps)
                key = {"study": study, "case": case.name, "seed": str(seed), "steps": steps}
                if not any(key.items() <= row.items() for row in rows_of(path)):
                    add_row(path, {**key, **run(study, case, seed, arguments)})


def values_of(rows: list[dict[str, str]], study: str, case: Case, name: str) -> dict[str, float]:
    """A metric of a case, by seed."""
    chosen = [row for row in rows if row["study"] == study and row["case"] == case.name and row[name]]
    return {row["seed"]: float(row[name]) for row in chosen}


def summary(rows: list[dict[str, str]]) -> str:
    """Tables in Markdown: each study's means ± standard deviations over seeds, and how the paper's order is kept.

    Rank correlation is Spearman's, of the distances that there are and of -PSNR with the paper's rFID: of the means
    and of each seed.
    """
    parts = []
    orders = ["| study | cases | seeds | metric | rank correlation of the means | of each seed |", "|---" * 6 + "|"]
    for study, cases in STUDIES.items():
        present = [case for case in cases if values_of(rows, study, case, "psnr")]
        if not present:
            continue
        lines = [f"| {study} | bits per pixel | seeds | {' | '.join(METRICS)} | paper's rFID |"]
        lines.append("|---" * (len(METRICS) + 4) + "|")
        for case in present:
            bits = statistics.mean(values_of(rows, study, case, "bits_per_pixel").values())
            columns = [list(values_of(rows, study, case, name).values()) for name in METRICS]
            cells = [mean_and_deviation(column) for column in columns]
            paper = "" if case.rfid is None else f"{case.rfid:g}"
            lines.append(f"| {case.name} | {bits:.3f} | {len(columns[0])} | {' | '.join(cells)} | {paper} |")
        parts.append("\n".join(lines))
        ranked = [case for case in present if case.rfid is not None]
        if len(ranked) > 2:
            measured = [name for name in RANKED if all(values_of(rows, study, case, name) for case in ranked)]
            orders += [f"| {study} | {len(ranked)} | {order_kept(rows, study, ranked, name)} |" for name in measured]
    return "\n\n".join([*parts, "\n".join(orders)]) + "\n"


def mean_and_deviation(values: list[float]) -> str:
    """Of a sample; of one value the value."""
    if len(values) < 2:
        return "".join(f"{value:.4g}" for value in values)
    return f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"


def order_kept(rows: list[dict[str, str]], study: str, cases: list[Case], name: str) -> str:
    from scipy.stats import spearmanr

    by_seed: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        for seed, value in values_of(rows, study, case, name).items():
            by_seed[seed].append(RANKED[name] * value)
    whole = {seed: values for seed, values in by_seed.items() if len(values) == len(cases)}
    paper = [case.rfid for case in cases]
    means = [RANKED[name] * statistics.mean(values_of(rows, study, case, name).values()) for case in cases]
    single = ", ".join(f"{spearmanr(values, paper).statistic:.2f}" for values in whole.values())
    return f"{len(whole)} | {name} | {spearmanr(means, paper).statistic:.2f} | {single}"


def draw(rows: list[dict[str, str]], metrics: Sequence[str] = AXES) -> "Figure":
    """One line of panels a study: the paper's axes over bits per pixel, or over the cases where bits are equal."""
    from matplotlib.figure import Figure

    studies = [study for study in STUDIES if any(row["study"] == study for row in rows)]
    figure = Figure(figsize=(4.2 * len(metrics), 3.6 * len(studies)), layout="constrained")
    grid = figure.subplots(len(studies), len(metrics), squeeze=False)
    for study, panels in zip(studies, grid, strict=True):
        cases = [case for case in STUDIES[study] if values_of(rows, study, case, "psnr")]
        bits = [statistics.mean(values_of(rows, study, case, "bits_per_pixel").values()) for case in cases]
        over_bits = len(set(bits)) > 1
        places = bits if over_bits else list(range(len(cases)))
        for name, panel in zip(metrics, panels, strict=True):
            for case, place in zip(cases, places, strict=True):
                values = list(values_of(rows, study, case, name).values())
                deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                panel.errorbar(place, statistics.mean(values), deviation, marker="o", capsize=4, label=case.name)
            panel.set_title(f"{study.replace('_', ' ')}: {name}", fontsize=9)
            if over_bits:
                panel.set_xlabel("bits per pixel")
            else:
                panel.set_xticks(places, [case.name for case in cases], rotation=30, ha="right", fontsize=7)
        if over_bits:
            panels[0].legend(fontsize=7)
    return figure


def plot(rows: list[dict[str, str]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(rows).savefig(path, dpi=110)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--root", type=Path, help="a folder with train/ and val/")
    made.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    made.add_argument("--cases", nargs="+", metavar="NAME", help="of the studies, in quotes (default: all)")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--steps", type=int, help="of each training (default: the recipe's)")
    made.add_argument("--full", action="store_true", help="the paper's sizes and overlays in place of the miniature")
    made.add_argument("--folder", type=Path, default=Path("runs/study"), help="of the runs and of study.csv")
    made.add_argument("--summary", action="store_true", help="print what is there, and train nothing")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw what is there")
    made.add_argument("fit_arguments", nargs="*", help="after --: options of gsq fit")
    return made


def main() -> None:
    arguments = parser().parse_args()
    path = arguments.folder / "study.csv"
    if not arguments.summary:
        if arguments.root is None:
            sys.exit("scaling_study: error: --root is needed, a folder with train/ and val/")
        arguments.folder.mkdir(parents=True, exist_ok=True)
        train(arguments, path)
    rows = rows_of(path)
    if not rows:
        sys.exit(f"scaling_study: error: {path} has no rows yet")
    print(summary(rows))
    if arguments.plot is not None:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
