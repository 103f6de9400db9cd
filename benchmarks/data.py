"""Images per second and core of each source against decoding alone, memory of a worker, time of a listing.

    python benchmarks/data.py --root /data/imagenet/val

Without --root, on JPEG files of ImageNet's usual size made from the bundled photographs. Sources and floors take turns,
the best round of each counts, in processor time of one process.
"""

import argparse
import io
import itertools
import os
import random
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_image, read_file

from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.data.decoding import image_suffixes
from gsq_lightning.data.photographs import TRAIN_PHOTOGRAPHS, load_photograph
from gsq_lightning.data.sources import FolderSource

IMAGE_SIZE = 256
BATCH_SIZE = 32
MADE_IMAGES = 200
MADE_SIZE = (500, 375)  # pixels, the most frequent size in ImageNet
SHARDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of images")
    parser.add_argument("--images", type=int, default=1000, help="at most so many of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--names", type=int, default=100_000, help="files of the tree that is listed; 0 for none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GSQ_CACHE"] = f"{folder}/cache"
        os.environ["HF_HOME"] = f"{folder}/hub"
        make_sources(Path(folder), arguments.root, arguments.images)
        compare_sources(Path(folder), arguments.rounds)
        measure_memory(Path(folder))
        if arguments.names:
            time_listing(Path(folder) / "names", arguments.names)


def make_sources(folder: Path, root: Path | None, images: int) -> None:
    """The same images as folder, list, tar, zip, shards and Parquet files."""
    place = folder / "folder"
    place.mkdir()
    if root is None:
        write_photographs(place)
    else:
        for number, path in enumerate(
            sorted(path for path in root.rglob("*") if path.suffix.lower() in image_suffixes())
        ):
            if number < images:
                (place / f"{number:06d}{path.suffix}").write_bytes(path.read_bytes())
    paths = sorted(place.iterdir())
    (folder / "list.txt").write_text("".join(f"{path}\t0\n" for path in paths))
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    with tarfile.open(folder / "all.tar", "w") as archive:
        for path in paths:
            archive.add(path, path.name)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as archive:
            for path in paths[shard::SHARDS]:
                archive.add(path, path.name)
                label = tarfile.TarInfo(f"{path.stem}.cls")
                label.size = 1
                archive.addfile(label, io.BytesIO(b"0"))
    import datasets

    datasets.disable_progress_bars()
    columns = {"image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths], "label": [0] * len(paths)}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "val-00000-of-00001.parquet")


def write_photographs(place: Path) -> None:
    generator = np.random.default_rng(0)
    photographs = [load_photograph(name, 512).permute(1, 2, 0).numpy() for name in TRAIN_PHOTOGRAPHS]
    for number in range(MADE_IMAGES):
        photograph = Image.fromarray(photographs[number % len(photographs)])
        left, top = (int(generator.integers(0, max(1, side // 4))) for side in photograph.size)
        crop = photograph.crop((left, top, photograph.width, photograph.height)).resize(MADE_SIZE)
        crop.save(place / f"{number:06d}.jpg", quality=95)


def loader_of(location: str, source: str = "auto", num_workers: int = 0) -> DataLoader:
    data = ImageNetDataModule(
        val=location,
        source=source,  # type: ignore[arg-type]
        image_size=IMAGE_SIZE,
        val_batch_size=BATCH_SIZE,
        num_workers=num_workers,
    )
    data.setup("validate")
    return data.val_dataloader()


def compare_sources(folder: Path, rounds: int) -> None:
    paths = [str(path) for path in sorted((folder / "folder").iterdir())]
    shards = str(folder / f"shard-{{0..{SHARDS - 1}}}.tar")
    loaders = {
        "folder": loader_of(str(folder / "folder")),
        "list": loader_of(str(folder / "list.txt")),
        "tar": loader_of(str(folder / "all.tar")),
        "zip": loader_of(str(folder / "all.zip")),
        "shards": loader_of(shards),
        "shards, streamed": loader_of(shards, "webdataset"),
        "Parquet": loader_of(str(folder / "val-00000-of-00001.parquet")),
    }
    floors: dict[str, Callable[[], object]] = {
        "Pillow": lambda: [np.asarray(Image.open(path).convert("RGB")) for path in paths],
        "torchvision": lambda: [decode_image(read_file(path), ImageReadMode.RGB) for path in paths],
    }
    jobs = floors | {name: (lambda loader=loader: list(without_keeping(loader))) for name, loader in loaders.items()}
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for name, job in jobs.items():
            started = time.process_time()
            job()
            best[name] = min(best[name], time.process_time() - started)
    print(
        f"{len(paths)} images, resized and cropped to {IMAGE_SIZE}², batches of {BATCH_SIZE}, best of {rounds} rounds\n"
    )
    print("| | images/s/core | of decoding with Pillow | of decoding with torchvision |")
    print("|---|---|---|---|")
    for name, seconds in best.items():
        shares = " | ".join(f"{best[floor] / seconds:.0%}" for floor in floors)
        print(f"| {name + ', decoding alone' if name in floors else name} | {len(paths) / seconds:.0f} | {shares} |")


def without_keeping(loader: DataLoader) -> Iterator[int]:
    for batch in loader:
        yield len(batch.image)


def measure_memory(folder: Path, epochs: int = 6) -> None:
    """Private memory of the workers after each epoch."""
    loader = loader_of(str(folder / "folder"), num_workers=2)
    sizes = []
    for _ in range(epochs):
        for _ in without_keeping(loader):
            pass
        workers = loader._iterator._workers  # type: ignore[union-attr]
        sizes.append(max(private_memory(worker.pid) for worker in workers))
    print(f"\nprivate memory of a worker after each of {epochs} epochs, MiB: " + " ".join(f"{s:.0f}" for s in sizes))


def private_memory(process: int) -> float:
    """MiB that no other process shares."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def time_listing(root: Path, names: int) -> None:
    """Lists a tree of empty files in 1,000 folders: at first, from the cache, and after it changed."""
    folders = 1000
    for number in range(folders):
        (root / f"n{number:08d}").mkdir(parents=True)
    for number in range(names):
        (root / f"n{number % folders:08d}" / f"image_{number:08d}.JPEG").touch()
    long_ago = time.time() - 1000
    for place in itertools.chain([root], root.iterdir()):
        os.utime(place, (long_ago, long_ago))
    os.sync()  # or the listing would wait for the disk to take the new names

    def listed() -> tuple[float, int]:
        started = time.perf_counter()
        found = len(FolderSource(root))
        return time.perf_counter() - started, found

    (first, found), (second, again) = listed(), listed()
    assert found == again == names
    (root / f"n{random.randrange(folders):08d}" / "new.JPEG").touch()
    changed, found = listed()
    assert found == names + 1
    print(f"\nlisting {names:,} names in {folders:,} folders: {first:.2f} s, from the cache {second:.2f} s,")
    print(f"after one file was added (noticed): {changed:.2f} s")


if __name__ == "__main__":
    main()
