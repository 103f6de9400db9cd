"""Kills a writing of tokens at random moments, starts it again on one process or two, and compares what it ends with.

    python benchmarks/token_faults.py --kills 10

A small tokenizer on made images in folders and in streamed WebDataset shards; files are written through a slowed disk,
so that kills fall within writes too. At the end every file must be byte-equal to that of an undisturbed run, and no
other may lie there but what processes left that were killed while they wrote `tokens.json`.
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer

IMAGES = 120
SHARDS = 60

# runs `gsq` with every write of a file drawn out; a file, as a second process is started by its name
DRIVER = """
import os, sys, time
from gsq_lightning import files
replace = os.replace
def slow(*places):
    time.sleep(float(os.environ["DELAY"]))
    replace(*places)
files.os.replace = slow
from gsq_lightning.__main__ import main
main(sys.argv[1:])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        print("| images | kills | while a file was written | starts | files | byte-equal |\n|---|---|---|---|---|---|")
        for kind in ("folders", "streamed"):
            assert start(folder, kind, "whole", 1, 0.0).wait() == 0
            counts = run_under_fire(folder, kind, arguments.kills, random.Random(arguments.seed))
            whole, killed = (contents(folder / kind / name) for name in ("whole", "killed"))
            assert whole.keys() == killed.keys(), whole.keys() ^ killed.keys()
            differing = [name for name in whole if whole[name] != killed[name]]
            assert not differing, differing
            print(
                f"| {kind} | {counts['kills']} | {counts['writing']} | {counts['starts']} (on two processes "
                f"{counts['two']}) | {len(whole)} | yes |",
                flush=True,
            )


def prepare(folder: Path) -> None:
    generator = np.random.default_rng(0)
    (folder / "images" / "val").mkdir(parents=True)
    (folder / "shards").mkdir()
    for number in range(IMAGES):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((40, 36), Image.Resampling.BICUBIC).save(folder / "images" / "val" / f"{number:03d}.png")
    for shard in range(SHARDS):
        with tarfile.open(folder / "shards" / f"{shard:02d}.tar", "w") as archive:
            for number in range(shard, IMAGES, SHARDS):
                archive.add(folder / "images" / "val" / f"{number:03d}.png", f"{number:03d}.png")
    (folder / "driver.py").write_text(DRIVER)
    torch.manual_seed(0)
    quantizer = GroupedSphericalQuantizer(8, 300, 2)
    GSQTokenizer(quantizer, (1, 2), 16, encoder_blocks=1, decoder_blocks=1, norm_groups=4).save_pretrained(
        folder / "tokenizer"
    )


def start(folder: Path, kind: str, name: str, processes: int, delay: float) -> subprocess.Popen[bytes]:
    options = {
        "ckpt_path": "tokenizer",
        "data.image_size": 32,
        "data.val_batch_size": 2,
        "data.num_workers": 1,
        "tokens.folder": f"{kind}/{name}",
        "tokens.images_per_shard": IMAGES // SHARDS,
        "trainer.accelerator": "cpu",
        "trainer.devices": processes,
        "trainer.enable_progress_bar": "false",
    }
    if kind == "folders":
        options["data.root"] = "images"
    else:
        options |= {"data.val": "shards/{00..59}.tar", "data.source": "webdataset"}
    command = [sys.executable, "driver.py", "predict"]
    command += [f"--{option}={value}" for option, value in options.items()]
    log = (folder / f"{kind}.log").open("ab")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DELAY": str(delay)}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def run_under_fire(folder: Path, kind: str, kills: int, generator: random.Random) -> collections.Counter[str]:
    """Kills all processes of a start so many times, a moment after it has written its first file, then lets it end."""
    counts: collections.Counter[str] = collections.Counter()
    killed = folder / kind / "killed" / "val"
    while True:
        fire, processes = counts["kills"] < kills, generator.choice([1, 2])
        before = shards(killed)
        process = start(folder, kind, "killed", processes, 0.2 if fire else 0.0)
        counts["starts"] += 1
        counts["two"] += processes == 2
        patience = generator.uniform(0.0, 0.3)
        while fire and process.poll() is None and shards(killed) <= before:
            time.sleep(0.002)
        time.sleep(patience if fire else 0)
        if fire and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            counts["kills"] += 1
            counts["writing"] += bool(list(killed.glob(".*.part")))
            continue
        assert process.wait() == 0, (folder / f"{kind}.log").read_text()[-3000:]
        if fire:
            raise SystemExit(f"all was written after {counts['kills']} kills; give fewer")
        return counts


def shards(folder: Path) -> int:
    return len(list(folder.glob("tokens-*")))


def contents(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if ".tokens.json." not in name}


if __name__ == "__main__":
    main()
