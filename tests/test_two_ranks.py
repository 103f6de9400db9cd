"""Several processes give what one gives. Real processes, connected by gloo."""

import io
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.utils.data import DataLoader

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer
from gsq_lightning import distributed as ranks
from gsq_lightning.__main__ import main
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.data.batch import collate
from gsq_lightning.data.sampler import EpochSampler
from gsq_lightning.losses import adaptive_weight
from gsq_lightning.metrics import CodebookUsage, MetricName, OriginalImages, ReconstructionMetrics
from gsq_lightning.metrics.feature_sets import FeatureSets
from gsq_lightning.metrics.features import Features
from gsq_lightning.metrics.kernel import KernelDistance
from gsq_lightning.metrics.precision_recall import PrecisionRecall
from gsq_lightning.pixels import pixels_to_image
from gsq_lightning.reports import EvaluationReport, read_report
from tests.conftest import WITHOUT_WEIGHTS, write_images

NAMES: list[MetricName] = ["psnr", "psnr_set", "ssim", "codebook", "rfd_random"]
VALIDATED = (7, 2)  # images of two validations
# gradients of the reconstruction and the adversarial loss, by rank
SLOPES = [[9.0, 0.0], [0.0, 9.0], [0.0, 3.0]], [[6.0, 0.0], [-6.0, 0.0], [0.0, 6.0]]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def group(rank: int, world: int, folder: str) -> Iterator[None]:
    """A process group of `world` ranks that meet in a folder."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    yield
    distributed.destroy_process_group()


def _as_three_and_as_two(rank: int, folder: str) -> None:
    """What each test below compares with one process, computed on three ranks, then on two."""
    torch.set_num_threads(1)
    with group(rank, 3, folder):
        values: dict[str, Any] = {
            "codes": count_codes(rank, 3),
            "validated": {images: validated(f"{folder}/{images}", rank, 3) for images in VALIDATED},
            "measured": [measured(rank, 3, f"{folder}/statistics") for _ in range(2)],
            "tally": tallied(rank),
            "adaptive_weight": adapted(rank),
        }
        torch.save(values, f"{folder}/3-{rank}.pt")
    if rank < 2:
        with group(rank, 2, folder):
            values = {"validated": {images: validated(f"{folder}/{images}", rank, 2) for images in VALIDATED}}
            torch.save(values, f"{folder}/2-{rank}.pt")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the ranks computed; started once, as each takes seconds to import."""
    folder = tmp_path_factory.mktemp("ranks")
    for images in VALIDATED:
        write_images(folder / str(images), images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GSQ_CACHE", str(folder / "cache"))
        multiprocessing.spawn(_as_three_and_as_two, args=(str(folder),), nprocs=3)
    return folder


def codes() -> Tensor:
    """Indices of seven images."""
    return torch.randint(0, 40, (7, 3, 3, 2), generator=torch.Generator().manual_seed(0))


def count_codes(rank: int, world: int) -> tuple[list[Tensor], list[dict[str, float]]]:
    """Usage, perplexity and counts of the codes, and the distances of features."""
    metric = CodebookUsage(codebook_size=50, num_groups=2)
    for image in codes()[rank::world]:  # one process has more than the others
        metric.update(image)
    counted = [*metric.compute(), metric.uses]
    share = range(rank, 7, 2) if rank < 2 else range(0)
    return counted, [compared(kind, share) for kind in (KernelDistance, PrecisionRecall)]


def tallied(rank: int) -> int:
    """What each rank adds to a count."""
    tally = ranks.Tally("images")
    tally.add(rank + 1)
    distributed.barrier()
    return tally.add(0)


def adapted(rank: int) -> float:
    """The adaptive weight, of losses whose gradients differ from rank to rank."""
    last_layer = torch.zeros(2, requires_grad=True)
    losses = ((torch.tensor(slopes[rank]) * last_layer).sum() for slopes in SLOPES)
    return adaptive_weight(*losses, last_layer).item()


def test_the_adaptive_weight_is_that_of_all_images(several: Path) -> None:
    """Mean gradients (3, 4) and (0, 2): 5 / 2 on every rank."""
    weights = [torch.load(several / f"3-{rank}.pt")["adaptive_weight"] for rank in range(3)]
    assert weights == pytest.approx([2.5] * 3)


def compared(kind: type[FeatureSets], images: Iterable[int]) -> dict[str, float]:
    """What a metric of whole sets makes of some of seven images and their reconstructions."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 7, 5, generator=generator)
    hashes = torch.randint(0, 1000, (7,), generator=generator)
    metric = kind("distance", "random", 5)
    for image in images:
        for side, real in enumerate((True, False)):
            metric.update(Features(features[side, image : image + 1]), hashes[image : image + 1], real)
    return metric.values().values


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metrics_on_three_processes_are_those_of_one(several: Path) -> None:
    """Counts of codes, and distances for which all features are exchanged; the last process has no image for those."""
    metric = CodebookUsage(codebook_size=50, num_groups=2)
    metric.update(codes())
    expected = [*metric.compute(), metric.counts.sum(dim=0)]
    for rank in range(3):
        counted, distances = torch.load(several / f"3-{rank}.pt")["codes"]
        for got, want in zip(counted, expected, strict=True):
            assert torch.equal(got, want)
        # in another order, but sorted by the images' hashes
        assert distances == [compared(kind, range(7)) for kind in (KernelDistance, PrecisionRecall)]


def validated(folder: str, rank: int, world: int) -> dict[str, float]:
    """The metrics of a small tokenizer, with this process's share of the images."""
    data = ImageNetDataModule(folder, image_size=16, num_workers=0)
    dataset = data.make_val_dataset()
    torch.manual_seed(0)
    quantizer = GroupedSphericalQuantizer(8, 32, 2)
    tokenizer = GSQTokenizer(quantizer, (1, 1), 8, encoder_blocks=1, decoder_blocks=1, norm_groups=4).eval()
    metrics = ReconstructionMetrics(NAMES)
    metrics.load(32, 2)
    metrics.start(None)
    with torch.no_grad():
        # one image at a time: the networks' sums may depend on what else is in a batch
        for batch in DataLoader(dataset, sampler=EpochSampler(len(dataset), rank, world), collate_fn=collate):
            image = pixels_to_image(batch.image)
            output = tokenizer.encode(image)
            metrics.update(image, tokenizer.decode(output.quantized), output.indices)
    return metrics.compute()


def test_each_rank_sees_the_count_of_all(several: Path) -> None:
    assert [torch.load(several / f"3-{rank}.pt")["tally"] for rank in range(3)] == [1 + 2 + 3] * 3


def test_validation_on_one_two_and_three_processes_agrees(several: Path) -> None:
    """Each image once and none twice: with 7 images for 2 and 3 processes, and with 2 images, fewer than processes."""
    for images in VALIDATED:
        expected = validated(str(several / str(images)), 0, 1)
        for world, rank in [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]:
            got = torch.load(several / f"{world}-{rank}.pt")["validated"][images]
            assert got["images"] == images
            # sums in float64 differ by their order; random features' covariance too, then a square root of it
            assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)
            for exact in ("codebook_usage", "codebook_perplexity"):
                assert got[exact] == expected[exact]


def measured(rank: int, world: int, folder: str) -> dict[str, float]:
    """What a process computes that sees each world-th of two images."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    indices = torch.randint(0, 40, (2, 2, 2, 2), generator=generator)
    metrics = ReconstructionMetrics(NAMES, statistics_folder=folder)
    metrics.load(codebook_size=50, num_groups=2)
    metrics.start(OriginalImages("these", 2) if rank == 0 else None)
    for item in range(rank, 2, world):
        metrics.update(image[item : item + 1], 0.7 * image[item : item + 1], indices[item : item + 1])
    return metrics.compute() | {"reused": len(metrics.reused)}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metrics_are_those_of_one_process_and_statistics_are_reused(several: Path, tmp_path: Path) -> None:
    """Also where the last process sees nothing."""
    expected = measured(0, 1, str(tmp_path))
    for rank in range(3):
        first, second = torch.load(several / f"3-{rank}.pt")["measured"]
        assert first == pytest.approx(expected, rel=1e-5)
        assert second == pytest.approx(expected | {"reused": 1}, rel=1e-5)
    assert len(list((several / "statistics").iterdir())) == 1


def run(folder: Path, devices: int, arguments: list[str]) -> str:
    """What `gsq` prints, in this process for one device, and from a shell for several."""
    if devices == 1:
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
            patch.chdir(folder)
            main(arguments)
        return printed.getvalue()
    command = [sys.executable, "-m", "gsq_lightning", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def fit(folder: Path, devices: int, accumulate: int) -> tuple[dict[str, Tensor], str]:
    """Trains for four steps on `devices` processes; the weights of the last checkpoint, and what was printed."""
    arguments = [
        *("fit", "--config", "quickstart.yaml", "--data=ImageNetDataModule", "--trainer.accelerator=cpu"),
        *("--data.root=images", "--data.image_size=16"),
        *("--data.global_batch_size=8", "--data.num_workers=0"),
        *("--data.val_batch_size=2", f"--trainer.devices={devices}", f"--model.accumulate_batches={accumulate}"),
        *("--model.tokenizer.base_channels=8", "--model.tokenizer.channel_multipliers=[1,2]"),
        *("--model.tokenizer.encoder_blocks=1", "--model.tokenizer.decoder_blocks=1"),
        *("--model.tokenizer.norm_groups=4", *WITHOUT_WEIGHTS),
        *("--model.discriminator.channels=4", "--model.discriminator.num_layers=1"),
        # batch norm would see other batches on each process
        *("--model.discriminator.norm=none", "--model.discriminator_start_step=2", "--model.adaptive_weight=true"),
        *("--trainer.max_steps=4", "--trainer.enable_progress_bar=false", f"--trainer.logger.name={devices}"),
        *("--model.metrics.names=[psnr,ssim,codebook]", "--trainer.enable_model_summary=false"),
    ]
    printed = run(folder, devices, arguments)
    state = torch.load(folder / f"runs/{devices}/version_0/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    return state["state_dict"], printed


def validate(folder: Path, devices: int, root: str) -> EvaluationReport:
    """The report on the checkpoint that one process trained."""
    arguments = [
        *("validate", "--ckpt_path=runs/1/version_0/checkpoints/last.ckpt", f"--data.root={root}"),
        *(f"--trainer.devices={devices}", "--trainer.enable_progress_bar=false", "--data.val_batch_size=2"),
        *("--trainer.accelerator=cpu", f"--trainer.default_root_dir=out{devices}"),
        "--model.metrics.names=[psnr,psnr_set,ssim,codebook,rfd_random]",
    ]
    assert run(folder, devices, arguments).count("PSNR of the set") == 1  # rank 0 alone reports
    return read_report(folder / f"out{devices}" / "metrics.json")


def test_two_processes_train_and_validate_like_one(tmp_path: Path) -> None:
    """The same global batches, so the same weights, to the order of summation in float32; uneven validation shards."""
    write_images(tmp_path / "images" / "train", 20)
    write_images(tmp_path / "images" / "val", 5, seed=1)
    one, printed_by_one = fit(tmp_path, devices=1, accumulate=1)
    two, printed_by_two = fit(tmp_path, devices=2, accumulate=2)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-3, msg=lambda text, name=name: f"{name}: {text}")

    def metric(printed: str, name: str) -> float:
        row = next(line for line in printed.splitlines() if line.strip().startswith(name))
        return float(row.split("  ")[-2].strip(" %"))

    for name in ("PSNR", "SSIM"):
        assert metric(printed_by_two, name) == pytest.approx(metric(printed_by_one, name), rel=0.02)

    # reports on one checkpoint, with shards of 3 and 2 images, and of 1 and none
    write_images(tmp_path / "single", 1, seed=2)
    originals = set()
    for root, images in (("images", 5), ("single", 1)):
        alone, both = (validate(tmp_path, devices, root) for devices in (1, 2))
        assert alone.metrics["images"] == images
        assert both.metrics == pytest.approx(alone.metrics, rel=1e-5)
        assert (both.originals, both.image_size) == (alone.originals, "16×16")
        originals.add(alone.originals)
    assert len(originals) == 2


def test_processes_part_before_the_interpreter_goes_down() -> None:
    """Otherwise one run in a dozen ended with SIGABRT: https://github.com/pytorch/pytorch/issues/190489."""
    program = """
        import atexit, tempfile
        from torch import distributed
        from gsq_lightning.cli.fit import main
        atexit.register(lambda: print(distributed.is_initialized()))
        meet = f"file://{tempfile.mkdtemp()}/meet"
        distributed.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
        main(["fit", "--config", "nothing.yaml"])
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == "False\n"


def test_threads_get_a_moment_before_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, of some 500 workers one waited forever, in a run of two processes with Python 3.11."""
    pauses: list[float] = []
    monkeypatch.setattr(ranks.time, "sleep", pauses.append)
    ranks.settle_threads()
    for initialized in (False, True):
        monkeypatch.setattr(ranks.distributed, "is_initialized", lambda: initialized)  # noqa: B023
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert pauses == ([ranks.PAUSE] if initialized else [])
