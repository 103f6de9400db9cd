import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, InputError, Quantizer, QuantizerOutput

Build = Callable[..., GSQTokenizer]


@pytest.mark.parametrize("normalization", ["l2", "l1", "none", "clip"])
@pytest.mark.parametrize("num_groups", [1, 2, 4])
@pytest.mark.parametrize("size", [(16, 16), (8, 20), (4, 4)])
def test_indices_decode_to_the_forward_reconstruction_bit_exact(
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
def test_indices_decode_bit_exact_with_one_channel_per_group(small_tokenizer: Build) -> None:
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
    with pytest.raises(InputError, match=r"of the type ndarray; it must be a tensor \(B, 3, H, W\)"):
        tokenizer.encode_indices(np.zeros((1, 3, 8, 8)))  # type: ignore[arg-type]
    for indices in (np.zeros((1, 2, 2, 2), np.int64), [[[[0, 0]]]]):
        with pytest.raises(InputError, match=r"torch\.as_tensor converts"):
            tokenizer.decode_indices(indices)  # type: ignore[arg-type]
    for quantized in (torch.zeros(1, 5, 2, 2), torch.zeros(8, 2, 2)):
        with pytest.raises(InputError, match=r"it must be \(B, D, h, w\), D = 8"):
            tokenizer.decode(quantized)
    with pytest.raises(InputError, match="decode_image takes what encode_image gives, not Tensor"):
        tokenizer.decode_image(torch.zeros(1, 2, 2, 2, dtype=torch.int64))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_gets_no_indices(small_tokenizer: Build, bad: float) -> None:
    """Its code would be 0, and tokens of code 0 look like any others."""
    tokenizer = small_tokenizer().eval()
    image = torch.rand(3, 3, 8, 8) * 2 - 1
    broken = image.clone()
    broken[1, 0, 0, 0] = bad
    for encode in (tokenizer.encode, tokenizer.encode_indices, lambda image: tokenizer.encode_image(image[1])):
        with pytest.raises(InputError, match="the image has values that are NaN or infinite"):
            encode(broken)
    with torch.no_grad():
        next(tokenizer.encoder.parameters()).view(-1)[0] = bad
    for encode in (tokenizer.encode, tokenizer.encode_indices):
        with pytest.raises(InputError, match="the latents of 3 of 3 images are NaN or infinite"):
            encode(image)
    for tile in (None, 16):
        with pytest.raises(InputError, match="the latents of 1 of 1 images are NaN or infinite"):
            tokenizer.encode_image(image[0], tile)


def test_one_broken_latent_of_a_batch_is_counted(small_tokenizer: Build) -> None:
    tokenizer = small_tokenizer().eval()

    def poison(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(0, torch.tensor([1]), float("nan"))

    tokenizer.encoder.register_forward_hook(poison)
    with pytest.raises(InputError, match="the latents of 1 of 3 images"):
        tokenizer.encode_indices(torch.zeros(3, 3, 8, 8))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_indices_of_any_integer_type_decode(small_tokenizer: Build, kind: torch.dtype) -> None:
    """Token shards have uint8 or int16."""
    tokenizer = small_tokenizer().eval()
    indices = torch.randint(32, (1, 2, 3, 2))
    with torch.no_grad():
        assert torch.equal(tokenizer.decode_indices(indices.to(kind)), tokenizer.decode_indices(indices))
    with pytest.raises(InputError, match="float32; they must be of an integer type"):
        tokenizer.decode_indices(indices.float())


def test_reconstructing_without_gradients_computes_no_losses(
    small_tokenizer: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = small_tokenizer().eval()
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    expected = tokenizer(image)
    assert expected.requires_grad
    monkeypatch.setattr(GroupedSphericalQuantizer, "forward", None)
    with torch.no_grad():
        assert torch.equal(tokenizer(image), expected)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_tokenizers_of_any_type_take_float32_images(small_tokenizer: Build, kind: torch.dtype) -> None:
    tokenizer = small_tokenizer().eval().to(kind)
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        indices = tokenizer.encode_indices(image)
        assert torch.equal(indices, tokenizer.encode_indices(image.to(kind)))
        assert torch.equal(tokenizer.decode_indices(indices), tokenizer(image))


def test_numbers_of_numpy_become_plain_in_the_config() -> None:
    quantizer = GroupedSphericalQuantizer(np.int64(8), np.int32(16), np.int64(2), commitment_weight=np.float32(0.5))
    tokenizer = GSQTokenizer(
        quantizer,
        channel_multipliers=np.array([1, 2]),
        base_channels=np.int64(8),
        encoder_blocks=np.int64(1),
        decoder_blocks=np.array([1, 1, 1]),
        adaptive_norm=np.bool_(True),
        dropout=np.float64(0.0),
        norm_groups=np.int64(4),
    )
    config = tokenizer.config
    assert json.loads(json.dumps(config)) == config
    assert config["quantizer"]["commitment_weight"] == 0.5
    assert GSQTokenizer.from_config(config).config == config


def test_wrong_words_are_refused_with_the_right_ones() -> None:
    with pytest.raises(InputError, match="upsampling is 'pixel_shuffle'; it must be one of: depth_to_space, nearest"):
        GSQTokenizer(GroupedSphericalQuantizer(4, 8), upsampling="pixel_shuffle")


class Rounding(Quantizer):
    """A quantizer of a user's own: each channel rounded to an integer from 0 to 3."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 4, channels)
        self.offset = torch.nn.Parameter(torch.zeros(channels, 1, 1))

    def latent_to_indices(self, latent: torch.Tensor) -> torch.Tensor:
        return (latent + self.offset).round().clamp(0, 3).long().permute(0, 2, 3, 1)

    def indices_to_quantized(self, indices: torch.Tensor) -> torch.Tensor:
        return indices.permute(0, 3, 1, 2).float() - self.offset

    def forward(self, latent: torch.Tensor) -> QuantizerOutput:
        indices = self.latent_to_indices(latent)
        return QuantizerOutput(self.indices_to_quantized(indices), indices, latent.new_zeros(()), {})


def test_a_quantizer_of_ones_own_is_given_to_from_pretrained(tmp_path: Path) -> None:
    settings = {"channel_multipliers": (1, 2), "base_channels": 8, "norm_groups": 4}
    tokenizer = GSQTokenizer(Rounding(6), **settings).eval()
    torch.nn.init.normal_(tokenizer.quantizer.offset)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"quantizer, Rounding, is not one of gsq_lightning.*quantizer=Rounding"):
        GSQTokenizer.from_pretrained(tmp_path)
    loaded = GSQTokenizer.from_pretrained(tmp_path, quantizer=Rounding(6))
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        assert torch.equal(loaded(image), tokenizer(image))
    with pytest.raises(InputError, match=r"quantizer.offset: \(6, 1, 1\) in the file, \(5, 1, 1\) in the model"):
        GSQTokenizer.from_pretrained(tmp_path, quantizer=Rounding(5))


def test_bfloat16_tokenizer_keeps_the_round_trip(small_tokenizer: Build) -> None:
    tokenizer = small_tokenizer().eval().to(torch.bfloat16)
    image = (torch.rand(1, 3, 8, 8) * 2 - 1).bfloat16()
    with torch.no_grad():
        assert torch.equal(tokenizer.decode_indices(tokenizer.encode_indices(image)), tokenizer(image))


@pytest.mark.parametrize("size", [(16, 20), (17, 23), (3, 5)])
def test_pictures_of_any_size_come_back_in_their_size(small_tokenizer: Build, size: tuple[int, int]) -> None:
    tokenizer = small_tokenizer().eval()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    encoded = tokenizer.encode_image(pixels)
    height, width = (-(-length // 4) * 4 for length in size)
    repeated = np.pad(pixels, ((0, height - size[0]), (0, width - size[1]), (0, 0)), mode="edge")
    image = torch.from_numpy(repeated).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        assert torch.equal(encoded.indices, tokenizer.encode_indices(image))
        expected = ((tokenizer(image)[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    picture = tokenizer.decode_image(encoded)
    assert picture.size == (size[1], size[0])
    assert np.array_equal(np.asarray(picture), expected[: size[0], : size[1]])


def test_tiled_pictures_are_close_to_the_whole(small_tokenizer: Build) -> None:
    tokenizer = small_tokenizer().eval()
    smooth = torch.linspace(0, 255, 60)[:, None] * torch.linspace(0, 1, 92)
    pixels = smooth.round().to(torch.uint8).expand(3, -1, -1)
    whole, tiled = tokenizer.encode_image(pixels), tokenizer.encode_image(pixels, tile=48)
    assert tiled.indices.shape == whole.indices.shape
    one_tile = tokenizer.encode_image(pixels, tile=96)
    assert torch.equal(one_tile.indices, whole.indices)
    assert np.array_equal(tokenizer.decode_image(whole, tile=96), tokenizer.decode_image(whole))
    error = np.asarray(tokenizer.decode_image(whole, tile=48), float) - np.asarray(tokenizer.decode_image(whole), float)
    assert 0 < np.abs(error).mean() < 64  # each tile is normalized by itself; random ones differ by 85
    for tile, message in ((0, "tile is 0"), ("64", "tile is '64'; it must be a whole number"), (64.5, "tile is 64.5")):
        with pytest.raises(InputError, match=message):
            tokenizer.encode_image(pixels, tile=tile)  # type: ignore[arg-type]


def test_images_in_another_range_are_noticed(small_tokenizer: Build, recwarn: pytest.WarningsRecorder) -> None:
    tokenizer = small_tokenizer().eval()
    image = torch.rand(1, 3, 8, 8)
    tokenizer.encode(image * 2 - 1)
    assert [str(warning.message) for warning in recwarn if "image" in str(warning.message)] == []
    with pytest.raises(InputError, match=r"uint8; it must be float in \[-1, 1\]"):
        tokenizer.encode((image * 255).to(torch.uint8))
    with pytest.raises(InputError, match=r"values up to 25\d.*x / 127.5 - 1"):
        tokenizer.encode(image * 255)
    with pytest.warns(UserWarning, match=r"lie in \[0, 1\].*2 \* x - 1"):
        tokenizer.encode(image)
    with pytest.warns(UserWarning, match="undo a normalization"):
        tokenizer.encode(4 * image - 2)
    with pytest.warns(UserWarning, match=r"lie in \[0, 1\].*2 \* x - 1"):
        tokenizer.encode_image(image)


@pytest.mark.parametrize("tile", [None, 16])
def test_bright_pictures_are_no_images_in_another_range(
    small_tokenizer: Build, recwarn: pytest.WarningsRecorder, tile: int | None
) -> None:
    small_tokenizer().eval().encode_image(torch.randint(128, 256, (32, 32, 3), dtype=torch.uint8), tile)
    assert [str(warning.message) for warning in recwarn if "image" in str(warning.message)] == []


def test_a_folder_in_the_home_is_found_again(
    small_tokenizer: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained("~/tokenizer")
    assert GSQTokenizer.from_pretrained("~/tokenizer").hash == tokenizer.hash
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file; name a folder"):
        tokenizer.save_pretrained("~/file")


def test_a_hash_names_config_and_weights(small_tokenizer: Build, tmp_path: Path) -> None:
    """Tokens carry it: an export keeps it, any other weight or option has another, but for those of the decoder."""
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert GSQTokenizer.from_pretrained(tmp_path).hash == tokenizer.hash
    before = tokenizer.hash
    with torch.no_grad():
        tokenizer.quantizer.codebook[3, 0] += 1e-6
    after = tokenizer.hash
    assert after != before
    assert small_tokenizer(normalization="l1").hash not in (before, after)
    with torch.no_grad():
        tokenizer.decoder.last_layer.mul_(2)
    assert tokenizer.hash == after
    nearest = GSQTokenizer.from_config({**tokenizer.config, "upsampling": "nearest"})
    nearest.load_state_dict(tokenizer.state_dict() | nearest.decoder.state_dict(prefix="decoder."))
    assert nearest.hash == after
