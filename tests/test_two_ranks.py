"""Several processes give what one gives. Real processes, connected by gloo."""

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.utils.data import DataLoader

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer
from gsq_lightning import distributed as ranks
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.data.batch import collate
from gsq_lightning.data.sampler import EpochSampler
from gsq_lightning.metrics import CodebookUsage, MetricName, OriginalImages, ReconstructionMetrics
from gsq_lightning.metrics.feature_sets import FeatureSets
from gsq_lightning.metrics.features import Features
from gsq_lightning.metrics.kernel import KernelDistance
from gsq_lightning.metrics.precision_recall import PrecisionRecall
from gsq_lightning.pixels import pixels_to_image
from gsq_lightning.reports import EvaluationReport, read_report
from tests.conftest import WITHOUT_WEIGHTS, write_images

NAMES: list[MetricName] = ["psnr", "psnr_set", "ssim", "codebook", "rfd_random"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _count_codes(rank: int, world: int, port: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    indices = torch.randint(0, 40, (7, 3, 3, 2), generator=torch.Generator().manual_seed(0))
    metric = CodebookUsage(codebook_size=50, num_groups=2)
    for image in indices[rank::world]:  # one process has more than the others
        metric.update(image)
    counted = [*metric.compute(), metric.uses]
    distances = [
        compared(kind, range(rank, 7, 2) if rank < 2 else range(0)) for kind in (KernelDistance, PrecisionRecall)
    ]
    tally = ranks.Tally("images")
    tally.add(rank + 1)
    distributed.barrier()
    torch.save([counted, distances, tally.add(0)], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


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
@pytest.mark.parametrize("world", [3])
def test_metrics_on_three_processes_are_those_of_one(tmp_path: Path, world: int) -> None:
    """Counts of codes, and distances for which all features are exchanged; the last process has no image for those."""
    multiprocessing.spawn(_count_codes, args=(world, free_port(), str(tmp_path)), nprocs=world)
    indices = torch.randint(0, 40, (7, 3, 3, 2), generator=torch.Generator().manual_seed(0))
    metric = CodebookUsage(codebook_size=50, num_groups=2)
    metric.update(indices)
    expected = [*metric.compute(), metric.counts.sum(dim=0)]
    for rank in range(world):
        counted, distances, total = torch.load(tmp_path / f"{rank}.pt")
        assert total == 1 + 2 + 3
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


def _validate(rank: int, world: int, port: int, folder: str, counts: list[int]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    for images in counts:
        values = validated(f"{folder}/{images}", rank, world)
        torch.save(values, f"{folder}/{world}-{rank}-{images}.pt")
    distributed.destroy_process_group()


def test_validation_on_one_two_and_three_processes_agrees(tmp_path: Path) -> None:
    """Each image once and none twice: with 7 images for 2 and 3 processes, and with 2 images, fewer than processes."""
    counts = [7, 2]
    for images in counts:
        write_images(tmp_path / str(images), images)
    expected = {images: validated(str(tmp_path / str(images)), 0, 1) for images in counts}
    for world in (2, 3):
        multiprocessing.spawn(_validate, args=(world, free_port(), str(tmp_path), counts), nprocs=world)
        for rank in range(world):
            for images in counts:
                got = torch.load(tmp_path / f"{world}-{rank}-{images}.pt")
                assert got["images"] == images
                # sums in float64 differ by their order; random features' covariance too, then a square root of it
                assert got == pytest.approx(expected[images], rel=1e-9, abs=1e-9)
                for exact in ("codebook_usage", "codebook_perplexity"):
                    assert got[exact] == expected[images][exact]


def measured(rank: int, world: int, folder: str, count: int) -> dict[str, float]:
    """What a process computes that sees each world-th of `count` images."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1
    indices = torch.randint(0, 40, (count, 2, 2, 2), generator=generator)
    metrics = ReconstructionMetrics(NAMES, statistics_folder=folder)
    metrics.load(codebook_size=50, num_groups=2)
    metrics.start(OriginalImages("these", count) if rank == 0 else None)
    for item in range(rank, count, world):
        metrics.update(image[item : item + 1], 0.7 * image[item : item + 1], indices[item : item + 1])
    return metrics.compute() | {"reused": len(metrics.reused)}


def _measure(rank: int, world: int, port: int, folder: str, count: int) -> None:
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    runs = [measured(rank, world, f"{folder}/statistics", count) for _ in range(2)]
    torch.save(runs, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize(("world", "count"), [(3, 2)])  # the last process sees nothing
def test_metrics_are_those_of_one_process_and_statistics_are_reused(tmp_path: Path, world: int, count: int) -> None:
    multiprocessing.spawn(_measure, args=(world, free_port(), str(tmp_path), count), nprocs=world)
    expected = measured(0, 1, str(tmp_path / "alone"), count)
    for rank in range(world):
        first, second = torch.load(tmp_path / f"{rank}.pt")
        assert first == pytest.approx(expected, rel=1e-5)
        assert second == pytest.approx(expected | {"reused": 1}, rel=1e-5)
    assert len(list((tmp_path / "statistics").iterdir())) == 1


def validate(folder: Path, checkpoint: str, devices: int, root: str = "images") -> EvaluationReport:
    command = [
        *(sys.executable, "-m", "gsq_lightning", "validate", f"--ckpt_path={checkpoint}", f"--data.root={root}"),
        *(f"--trainer.devices={devices}", "--trainer.enable_progress_bar=false", "--data.val_batch_size=2"),
        *("--trainer.accelerator=cpu", f"--trainer.default_root_dir=out{devices}"),
        "--model.metrics.names=[psnr,psnr_set,ssim,codebook,rfd_random]",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("PSNR of the set") == 1  # the first process alone reports
    return read_report(folder / f"out{devices}" / "metrics.json")


def test_two_processes_report_what_one_does(tmp_path: Path) -> None:
    """On the same checkpoint, with shards of 3 and 2 images, and of 1 and none."""
    write_images(tmp_path / "images" / "train", 8)
    write_images(tmp_path / "images" / "val", 5, seed=1)
    fit(tmp_path, devices=1, accumulate=1)
    checkpoint = "runs/1/version_0/checkpoints/last.ckpt"
    one, two = (validate(tmp_path, checkpoint, devices) for devices in (1, 2))
    assert one.metrics["images"] == 5
    assert two.metrics == pytest.approx(one.metrics, rel=1e-5)
    assert two.originals == one.originals
    write_images(tmp_path / "single", 1, seed=2)
    one_image, two = (validate(tmp_path, checkpoint, devices, "single") for devices in (1, 2))
    assert one_image.metrics["images"] == 1
    assert two.metrics == pytest.approx(one_image.metrics, rel=1e-5)
    assert (two.originals, two.image_size) == (one_image.originals, "16×16")
    assert one_image.originals != one.originals


def fit(folder: Path, devices: int, accumulate: int) -> tuple[dict[str, torch.Tensor], str]:
    """Trains for four steps on `devices` processes; the weights of the last checkpoint, and what was printed."""
    command = [
        *(sys.executable, "-m", "gsq_lightning", "fit", "--config", "quickstart.yaml", "--data=ImageNetDataModule"),
        *("--data.root=images", "--data.image_size=16", "--data.global_batch_size=8", "--data.num_workers=0"),
        *("--data.val_batch_size=2", f"--trainer.devices={devices}", f"--model.accumulate_batches={accumulate}"),
        *("--model.tokenizer.base_channels=8", "--model.tokenizer.channel_multipliers=[1,2]"),
        *("--model.tokenizer.norm_groups=4", *WITHOUT_WEIGHTS),
        *("--model.discriminator.channels=4", "--model.discriminator.num_layers=1"),
        # batch norm would see other batches on each process
        *("--model.discriminator.norm=none", "--model.discriminator_start_step=2", "--model.adaptive_weight=true"),
        *("--trainer.max_steps=4", "--trainer.enable_progress_bar=false", f"--trainer.logger.name={devices}"),
        *("--model.metrics.names=[psnr,ssim,codebook]", "--trainer.enable_model_summary=false"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    (checkpoint,) = folder.glob(f"runs/{devices}/version_0/checkpoints/last.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["global_step"] == 4
    return state["state_dict"], result.stdout


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
    """Otherwise, of some 500 loading processes one waited forever, in a run of two processes with Python 3.11."""
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
        return float(next(line for line in printed.splitlines() if name in line).split("  ")[-2].strip(" %"))

    for name in ("PSNR", "SSIM"):
        assert metric(printed_by_two, name) == pytest.approx(metric(printed_by_one, name), rel=0.02)
