"""Encoding and decoding on ONNX Runtime, exported by PyTorch's own exporter, with other batches and sizes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Encode(nn.Module):
    def __init__(self, tokenizer: GSQTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, image: Tensor) -> Tensor:
        return self.tokenizer.encode_indices(image)


class Decode(nn.Module):
    def __init__(self, tokenizer: GSQTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, indices: Tensor) -> Tensor:
        return self.tokenizer.decode_indices(indices)


class Lookup(nn.Module):
    def __init__(self, quantizer: GroupedSphericalQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, latent: Tensor) -> Tensor:
        return self.quantizer.latent_to_indices(latent)


def run(module: nn.Module, given: Tensor, dynamic: dict[int, object], path: Path, *inputs: Tensor) -> list[Tensor]:
    """What ONNX Runtime gives for each of `inputs`; exported with `given`."""
    torch.onnx.export(
        module.eval(), (given,), path, dynamo=True, dynamic_shapes=(dynamic,), input_names=["x"], verbose=False
    )
    session = onnxruntime.InferenceSession(path)
    return [torch.from_numpy(session.run(None, {"x": x.numpy()})[0]) for x in inputs]


@torch.no_grad()
def test_encoding_and_decoding(tmp_path: Path) -> None:
    tokenizer = GSQTokenizer(GroupedSphericalQuantizer(8, 32, 2), (1, 2), 8, 1, [0, 0, 1], norm_groups=4).eval()
    batch, height, width = Dim("batch", min=1), Dim("height", min=2), Dim("width", min=2)
    images = [torch.rand(shape) * 2 - 1 for shape in ((3, 3, 20, 4), (1, 3, 8, 12))]
    sizes: dict[int, object] = {0: batch, 2: 2 * height, 3: 2 * width}
    found = run(Encode(tokenizer), torch.zeros(2, 3, 8, 12), sizes, tmp_path / "encode.onnx", *images)
    for image, indices in zip(images, found, strict=True):
        assert torch.equal(indices, tokenizer.encode_indices(image))
        assert len(indices.unique()) > 5
    given = torch.zeros(2, 4, 6, 2, dtype=torch.int64)
    pictures = run(Decode(tokenizer), given, {0: batch, 1: height, 2: width}, tmp_path / "decode.onnx", *found)
    for picture, indices in zip(pictures, found, strict=True):
        torch.testing.assert_close(picture, tokenizer.decode_indices(indices), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("dimension", "groups"), [(2, 4), (8, 1)])
def test_the_lookup_is_exact(tmp_path: Path, dimension: int, groups: int) -> None:
    """Of codes as close as float32 tells apart too: each of them with its neighbour."""
    quantizer = GroupedSphericalQuantizer(dimension * groups, 4096, groups).eval()
    quantizer.codebook[2048:] = quantizer.codebook[:2048] * (1 + 1e-6) + 3e-7
    latent = torch.randn(4, dimension * groups, 8, 16)
    latent[0, :, 0] = quantizer.codebook[:16].repeat(1, groups).T
    sizes: dict[int, object] = {0: Dim("batch", min=1), 2: Dim("height", min=2), 3: Dim("width", min=2)}
    (indices,) = run(
        Lookup(quantizer), torch.randn(2, dimension * groups, 3, 5), sizes, tmp_path / "lookup.onnx", latent
    )
    assert torch.equal(indices, quantizer.latent_to_indices(latent))
