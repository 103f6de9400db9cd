import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, InputError

Build = Callable[..., GSQTokenizer]


@pytest.mark.parametrize("normalization", ["l2", "l1", "none", "clip"])
@pytest.mark.parametrize("num_groups", [1, 2, 4])
@pytest.mark.parametrize("size", [(16, 16), (8, 20), (4, 4)])
def test_indices_decode_to_the_forward_reconstruction_to_the_bit(
    small_tokenizer: Build, normalization: str, num_groups: int, size: tuple[int, int]
) -> None:
    tokenizer = small_tokenizer(normalization=normalization, num_groups=num_groups, latent_channels=12).eval()
    image = torch.rand(3, 3, *size) * 2 - 1
    with torch.no_grad():
        indices = tokenizer.encode_indices(image)
        assert torch.equal(tokenizer.decode_indices(indices), tokenizer(image))
    assert indices.shape == (3, size[0] // 4, size[1] // 4, num_groups)
    assert indices.dtype == torch.int64
    assert len(indices.unique()) > 1


@pytest.mark.filterwarnings("ignore:ℓ2 normalization")
def test_indices_decode_to_the_bit_with_one_channel_per_group(small_tokenizer: Build) -> None:
    for normalization in ("l2", "none", "clip"):
        tokenizer = small_tokenizer(normalization=normalization, num_groups=8).eval()
        image = torch.rand(1, 3, 8, 8) * 2 - 1
        with torch.no_grad():
            assert torch.equal(tokenizer.decode_indices(tokenizer.encode_indices(image)), tokenizer(image))


def test_tokens_and_bits_per_image() -> None:
    with torch.device("meta"):
        f16 = GSQTokenizer(
            GroupedSphericalQuantizer(16, 2**18, 8, normalization="none"), channel_multipliers=(1, 1, 2, 2, 4)
        )
    assert f16.downsample_factor == 16
    assert f16.tokens_per_image(256, 256) == 16 * 16 * 8
    assert f16.bits_per_image(256, 128) == 16 * 8 * 8 * 18


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((18, 16), "height 16 or 20 and width 16"),
        ((16, 3), "height 16 and width 4"),
        ((0, 16), "height 4 and width 16"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_the_nearest_that_do(
    small_tokenizer: Build, size: tuple[int, int], message: str
) -> None:
    tokenizer = small_tokenizer()
    with pytest.raises(InputError, match=message):
        tokenizer(torch.zeros(1, 3, *size))
    with pytest.raises(InputError, match=message):
        tokenizer.bits_per_image(*size)


def test_wrong_images_and_indices_are_refused(small_tokenizer: Build) -> None:
    tokenizer = small_tokenizer()
    with pytest.raises(InputError, match=r"\(1, 16, 16, 3\); it must be \(B, 3, H, W\)"):
        tokenizer.encode(torch.zeros(1, 16, 16, 3))
    with pytest.raises(InputError, match="0 to 31 are allowed"):
        tokenizer.decode_indices(torch.full((1, 2, 2, 2), 32))
    with pytest.raises(InputError, match="G = 2"):
        tokenizer.decode_indices(torch.zeros(1, 2, 2, dtype=torch.int64))


def test_a_saved_tokenizer_comes_back_the_same(small_tokenizer: Build, tmp_path: Path) -> None:
    tokenizer = small_tokenizer(normalization="clip").eval()
    tokenizer.save_pretrained(tmp_path / "exported")
    loaded = GSQTokenizer.from_pretrained(tmp_path / "exported")
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    assert not loaded.training
    assert loaded.config == tokenizer.config
    with torch.no_grad():
        assert torch.equal(loaded(image), tokenizer(image))


def test_exported_folders_that_do_not_work_are_refused_in_one_line(small_tokenizer: Build, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json is missing"):
        GSQTokenizer.from_pretrained(tmp_path)
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = tokenizer.config
    config["quantizer"]["codebook_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"1 tensors: quantizer.codebook: \(32, 4\) in the file, \(64, 4\) in"):
        GSQTokenizer.from_pretrained(tmp_path)
    config["widht"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="widht"):
        GSQTokenizer.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"half a fi")
    with pytest.raises(InputError, match="cannot be read"):
        GSQTokenizer.from_pretrained(tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        GSQTokenizer.from_pretrained(tmp_path / "broken.ckpt")


def test_bfloat16_tokenizer_keeps_the_round_trip(small_tokenizer: Build) -> None:
    tokenizer = small_tokenizer().eval().to(torch.bfloat16)
    image = (torch.rand(1, 3, 8, 8) * 2 - 1).bfloat16()
    with torch.no_grad():
        assert torch.equal(tokenizer.decode_indices(tokenizer.encode_indices(image)), tokenizer(image))
