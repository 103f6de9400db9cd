"""Tokens of a data set by Ray Data: the shards are the units of work, actors keep a tokenizer each.

    python examples/ray_tokens.py --tokenizer my-tokenizer --images 'shards/{0000..1023}.tar' --image_size 256

Files are those of `gsq predict --data.train IMAGES --tokens.split train`, byte by byte (for local
shards with `--data.source webdataset`, as they are streamed here). Shards that are there already are not made again, so
that the same command goes on; either of the two goes on where the other was stopped.

On a Ray cluster (`ray.init` finds it by RAY_ADDRESS) each machine needs gsq-lightning, the images and the folder under
the same path, such as those of a shared file system. Where there are GPUs each worker takes one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch
from jsonargparse import ArgumentParser

from gsq_lightning import GSQTokenizer, ImageNetDataModule
from gsq_lightning.data.image_shards import ImageShards
from gsq_lightning.data.loader import Loading
from gsq_lightning.pixels import pixels_to_image
from gsq_lightning.tokens import TokenBatch, TokenFacts, smallest_type
from gsq_lightning.tokens.shards import missing_shards
from gsq_lightning.tokens.writing import claim_folder, facts_of, write_rows


@dataclass(frozen=True)
class Job:
    """What is to be done, for all workers alike.

    Attributes:
        tokenizer: a folder that `gsq export` wrote, a checkpoint, or the name of a repository on the Hub.
        images: WebDataset shards, which are streamed, or another source of images such as a folder of Parquet files.
        image_size: side of the images, in pixels.
        folder: the shards go to FOLDER/SPLIT.
        split: what the images are.
        augment: which copies of each image get tokens.
        images_per_shard: of sources that are not streamed.
        batch_size: images at a time; bytes are equal for equal ones.
        val_crop_ratio: as of `gsq predict`.
        bf16: compute as `--trainer.precision bf16-mixed` does.
        workers: actors at a time, at most.
    """

    tokenizer: str
    images: str
    image_size: int
    folder: str = "tokens"
    split: Literal["train", "val"] = "train"
    augment: Literal["none", "flip", "ten_crop"] = "none"
    images_per_shard: int = 10_000
    batch_size: int = 32
    val_crop_ratio: float = 1.0
    bf16: bool = False
    workers: int = 2

    @property
    def place(self) -> Path:
        return Path(self.folder).expanduser().absolute() / self.split

    @property
    def precision(self) -> str:
        return "bf16-mixed" if self.bf16 else "32-true"

    def shards(self) -> ImageShards:
        data = ImageNetDataModule(
            image_size=self.image_size,
            val_batch_size=self.batch_size,
            val_crop_ratio=self.val_crop_ratio,
            source="webdataset" if ".tar" in self.images else "auto",
            **{self.split: self.images},  # type: ignore[arg-type]
        )
        return data.in_shards(self.split, self.images_per_shard, self.augment)[self.split]


class Encoder:
    """An actor: reads shards of images, and writes their tokens."""

    def __init__(self, job: Job, facts: TokenFacts) -> None:
        self.job, self.facts = job, facts
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = GSQTokenizer.from_pretrained(job.tokenizer).to(self.device)
        self.images = job.shards()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        rows = [self.write(int(number)) for number in batch["shard"]]
        return {"shard": batch["shard"], "rows": np.array(rows)}

    def write(self, number: int) -> int:
        """Writes the tokens of one shard; how many rows they are."""
        return write_rows(self.job.place, number, list(self.encoded(number)), self.facts)

    @torch.inference_mode()
    def encoded(self, number: int) -> Iterable[TokenBatch]:
        kind = smallest_type(self.facts.codebook_size)
        for batch in self.images.loader([number], Loading(batch_size=self.job.batch_size)):
            if len(batch.image):
                image = pixels_to_image(batch.image.to(self.device))
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.bf16):
                    indices = self.tokenizer.encode_indices(image)
                yield TokenBatch(indices.to(kind).cpu(), batch.label, batch.copy, batch.path)


def main(job: Job) -> None:
    """Writes the tokens that are not there yet."""
    ray.init(ignore_reinit_error=True)
    images = job.shards()
    tokenizer = GSQTokenizer.from_pretrained(job.tokenizer)
    facts = facts_of(tokenizer, images, job.split, job.precision, "safetensors")
    claim_folder(job.place, facts)
    missing = missing_shards(job.place, range(images.shards))
    print(f"{len(missing)} of {images.shards} shard(s) of tokens are to be written to {job.place}")
    if not missing:
        return
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    units = ray.data.from_items([{"shard": number} for number in missing], override_num_blocks=len(missing))
    done = units.map_batches(
        Encoder,
        fn_constructor_args=(job, facts),
        batch_size=1,
        num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=job.workers),
    )
    print(f"{sum(int(row['rows']) for row in done.iter_rows())} rows in {len(missing)} shard(s)")


if __name__ == "__main__":
    parser = ArgumentParser(description="Tokens of a data set by Ray Data.")
    parser.add_class_arguments(Job, as_group=False)
    main(Job(**parser.parse_args().as_dict()))
