"""What inference in half precision and in tiles changes.

    python benchmarks/inference.py precision [--checkpoint X]   share of indices equal to float32's
    python benchmarks/inference.py tiles [--checkpoint X]       error against untiled, and peak memory, at 2048×1536

`precision` takes the networks of f8, f16 and f32 with random weights, and a trained tokenizer where one is given.
`tiles` runs each way in a process of its own, whose peak it reads.
"""

import argparse
import math
import multiprocessing
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer
from gsq_lightning.pixels import picture_to_image
from gsq_lightning.tokenizer import EncodedImage

HEIGHT, WIDTH = 1536, 2048
TILES = (None, 512)
NETWORKS = {  # multipliers, D, V, G, normalization: of the recipes
    "f8": ((1, 2, 2, 4), 8, 8192, 1, "l2"),
    "f16": ((1, 1, 2, 2, 4), 16, 262144, 8, "none"),
    "f32": ((1, 1, 2, 2, 4, 4), 128, 262144, 8, "l2"),
}


def recipe(name: str) -> GSQTokenizer:
    """The network of a recipe with random weights."""
    multipliers, channels, codes, groups, normalization = NETWORKS[name]
    torch.manual_seed(0)
    quantizer = GroupedSphericalQuantizer(channels, codes, groups, normalization)  # type: ignore[arg-type]
    return GSQTokenizer(quantizer, multipliers)


def photographs(size: int, count: int) -> torch.Tensor:
    """(count, 3, size, size) in [-1, 1]: crops of scikit-image's photographs, all over them."""
    from skimage import data

    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    crops = []
    for number in range(count):
        image = picture_to_image(pictures[number % len(pictures)])[0]
        top = number * 37 % (image.shape[1] - size)
        left = number * 53 % (image.shape[2] - size)
        crops.append(image[:, top : top + size, left : left + size])
    return torch.stack(crops)


@contextmanager
def rounded(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within it, weights and every module's output are of a type, and sums in float32, as GPUs compute."""

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.to(dtype).float()

    for parameter in network.parameters():
        parameter.copy_(parameter.to(dtype))
    handles = [module.register_forward_hook(hook) for module in network.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def precision(checkpoint: str | None, size: int, count: int) -> None:
    """Share of indices that are float32's: under bf16 autocast, and with the encoder in bfloat16 or float16.

    The latter two are rounded by hand: the CPU takes minutes for a float16 convolution. The lookup is exact in all.
    """
    image = photographs(size, count)
    print(f"{count} crops of {size}×{size}; share of indices equal to float32's")
    print("| network | weights | indices | bf16 autocast | bf16 weights | fp16 weights |\n|---|---|---|---|---|---|")
    trained = {} if checkpoint is None else {Path(checkpoint).stem: GSQTokenizer.from_pretrained(checkpoint)}
    for name in [*NETWORKS, *trained]:
        tokenizer = (trained[name] if name in trained else recipe(name)).eval()
        exact = tokenizer.encode_indices(image)
        shares = []
        with torch.autocast("cpu", dtype=torch.bfloat16):
            shares.append(tokenizer.encode_indices(image) == exact)
        for dtype in (torch.bfloat16, torch.float16):
            tokenizer = (trained[name] if name in trained else recipe(name)).eval()
            state = {key: value.clone() for key, value in tokenizer.state_dict().items()}
            with rounded(tokenizer.encoder, dtype):
                shares.append(tokenizer.encode_indices(image) == exact)
            tokenizer.load_state_dict(state)
        cells = " | ".join(f"{share.float().mean():.1%}" for share in shares)
        print(f"| {name} | {'trained' if name in trained else 'random'} | {exact.numel():,} | {cells} |", flush=True)


def scene() -> Image.Image:
    """A photograph of scikit-image, enlarged to 2048×1536 with noise of a camera's kind, so that no tile is smooth."""
    from skimage import data

    picture = Image.fromarray(data.astronaut()).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(HEIGHT, WIDTH, 3).float()
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)) * 4
    return Image.fromarray((pixels + noise).clamp(0, 255).round().byte().numpy())


def run_tiled(checkpoint: str | None, tile: int | None, folder: str) -> None:
    """Encodes and decodes the scene; leaves indices, picture and peak memory in MiB, with that before."""
    torch.manual_seed(0)
    tokenizer = (recipe("f8") if checkpoint is None else GSQTokenizer.from_pretrained(checkpoint)).eval()
    picture = scene()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    encoded = tokenizer.encode_image(picture, tile=tile)
    after_encoding = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    whole = Path(folder, "None.pt")
    indices = encoded.indices if tile is None else torch.load(whole)["indices"]  # the same, to see decoding alone
    decoded = tokenizer.decode_image(EncodedImage(indices, HEIGHT, WIDTH), tile=tile)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pixels = torch.frombuffer(bytearray(decoded.tobytes()), dtype=torch.uint8).view(HEIGHT, WIDTH, 3)
    found = {"indices": encoded.indices, "pixels": pixels, "memory": (before, after_encoding, after)}
    torch.save(found, Path(folder, f"{tile}.pt"))


def tiles(checkpoint: str | None, folder: str) -> None:
    print("| tile | indices equal | PSNR of the decoded picture | largest difference | memory to encode | to decode |")
    print("|---|---|---|---|---|---|")
    whole = None
    for tile in TILES:
        process = multiprocessing.get_context("spawn").Process(target=run_tiled, args=(checkpoint, tile, folder))
        process.start()
        process.join()
        found = torch.load(Path(folder, f"{tile}.pt"))
        whole = whole or found
        before, encoding, decoding = found["memory"]
        memory = f"{(encoding - before) / 1024:.2f} GiB | {(decoding - before) / 1024:.2f} GiB"
        difference = (found["pixels"].float() - whole["pixels"].float()).abs()
        error = difference.square().mean().item()
        psnr = f"{10 * math.log10(255**2 / error):.1f} dB" if error else "equal"
        share = (found["indices"] == whole["indices"]).float().mean()
        print(f"| {tile or 'whole'} | {share:.1%} | {psnr} | {difference.max():.0f} of 255 | {memory} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["precision", "tiles"])
    parser.add_argument("--checkpoint", help="of a trained tokenizer, or an export")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--folder", default=".", help="for what `tiles` leaves")
    given = parser.parse_args()
    if given.what == "precision":
        precision(given.checkpoint, given.size, given.count)
    else:
        tiles(given.checkpoint, given.folder)
