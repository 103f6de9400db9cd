import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gsq_lightning.discriminators import DifferentiableAugmentation, DINODiscriminator, Discriminator
from gsq_lightning.discriminators.dino import LocalBatchNorm, TokenHead
from gsq_lightning.errors import InputError
from gsq_lightning.pretrained import weights as pretrained
from gsq_lightning.pretrained.frozen import FrozenNetwork

SIZE = 56  # 4×4 patches
TOKENS = 4 * 4 + 5


def loaded(**options: Any) -> DINODiscriminator:
    discriminator = DINODiscriminator(**{"weights": "random", "input_size": SIZE} | options)
    discriminator.load()
    return discriminator


@pytest.fixture(scope="module")
def shared() -> DINODiscriminator:
    """Without norms, so that an image's logits depend on nothing else. Not to be changed."""
    torch.manual_seed(0)
    return loaded(norm="none")


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 3, SIZE, SIZE) * 2 - 1


def trunk_of(discriminator: DINODiscriminator) -> FrozenNetwork:
    assert discriminator.trunk is not None
    return discriminator.trunk


def transformer_of(discriminator: DINODiscriminator) -> Any:
    return trunk_of(discriminator).network.transformer


def normalized(image: Tensor) -> Tensor:
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    return ((image + 1) / 2 - mean) / std


def test_blocks_are_tapped_where_timm_has_them(shared: DINODiscriminator, image: Tensor) -> None:
    blocks = transformer_of(shared).forward_intermediates(
        normalized(image), indices=[2, 5, 8, 11], output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    _, *tapped = trunk_of(shared)(image)
    for (patches, prefix), sequence in zip(blocks, tapped, strict=True):
        torch.testing.assert_close(sequence, torch.cat([prefix, patches], dim=1), rtol=1e-4, atol=1e-4)
    assert len({float(sequence.sum()) for sequence in tapped}) == 4


def test_embedding_is_patches_and_positions_after_class_and_registers(shared: DINODiscriminator, image: Tensor) -> None:
    transformer = transformer_of(shared)
    projection = transformer.patch_embed.proj
    patches = F.conv2d(normalized(image), projection.weight, projection.bias, stride=14).flatten(2).transpose(1, 2)
    prefix = torch.cat([transformer.cls_token, transformer.reg_token], dim=1).expand(2, -1, -1)
    expected = torch.cat([prefix, patches + transformer.pos_embed], dim=1)
    torch.testing.assert_close(trunk_of(shared)(image)[0], expected, rtol=1e-4, atol=1e-5)


def test_one_logit_for_each_token_at_each_tap(shared: DINODiscriminator, image: Tensor) -> None:
    logits = shared(image)
    assert logits.shape == (2, 5 * TOKENS)
    heads = zip(shared.heads.values(), trunk_of(shared)(image), strict=True)
    torch.testing.assert_close(logits, torch.cat([head(tokens) for head, tokens in heads], dim=1))


def test_images_of_any_size_are_averaged_down(shared: DINODiscriminator, image: Tensor) -> None:
    torch.testing.assert_close(shared(image.repeat_interleave(2, 2).repeat_interleave(3, 3)), shared(image))


def test_head_is_the_papers() -> None:
    """conv1 → LeakyReLU; (conv9 around a ring → LeakyReLU, + input)/√2; conv1 to one logit: in float64 by hand."""
    head = TokenHead(kernel_size=9, norm="none", spectral_norm=False)
    tokens = torch.randn(1, 12, 384)
    first, ring, last = (
        (m.weight.detach().double().numpy(), m.bias.detach().double().numpy())
        for m in head.modules()
        if isinstance(m, nn.Conv1d)
    )

    def leaky(x: np.ndarray) -> np.ndarray:
        return np.where(x > 0, x, 0.2 * x)

    x = leaky(tokens[0].double().numpy() @ first[0][:, :, 0].T + first[1])
    seen = sum(np.roll(x, 4 - tap, axis=0) @ ring[0][:, :, tap].T for tap in range(9))
    x = (leaky(seen + ring[1]) + x) / np.sqrt(2)
    np.testing.assert_allclose(head(tokens)[0].detach(), (x @ last[0][0] + last[1])[:, 0], rtol=1e-4, atol=1e-5)


def test_the_defaults_are_the_references() -> None:
    """At 518², five taps, heads that see nine tokens through batch norms and without spectral norm."""
    discriminator = DINODiscriminator()
    assert (discriminator.input_size, discriminator.prefix_tokens, discriminator.augmentation) == (518, True, None)
    assert discriminator.trunk_dtype == torch.bfloat16
    assert list(discriminator.heads) == ["embedding", "2", "5", "8", "11"]
    for head in discriminator.heads.values():
        kinds = [type(module) for module in head.modules()]
        assert kinds.count(nn.BatchNorm1d) == 2
        assert [module.kernel_size for module in head.modules() if isinstance(module, nn.Conv1d)] == [(1,), (9,), (1,)]
        assert not any(parametrize.is_parametrized(module) for module in head.modules())


def reference_logits(discriminator: DINODiscriminator, image: Tensor) -> Tensor:
    """The whole discriminator as the GSQ paper's reference is described: area resize in [0, 1], ImageNet's mean and
    deviation, tokens before block 0 and after blocks 2 and 11 with their prefix, and per tap
    k1 → batch norm → LeakyReLU(0.2), (k9 around a ring → batch norm → LeakyReLU, + input)/√2, k1 to one logit.
    """
    transformer = transformer_of(discriminator)
    resized = F.adaptive_avg_pool2d((image + 1) / 2, SIZE)  # area interpolation
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    tokens = transformer._pos_embed(transformer.patch_embed((resized - mean) / std))
    taps = [tokens]
    for number, block in enumerate(transformer.blocks):
        tokens = block(tokens)
        if number in (2, 11):
            taps.append(tokens)

    def normalized_and_leaky(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centered = x - x.mean(dim=(0, 1))
        x = centered / (centered.square().mean(dim=(0, 1)) + 1e-5).sqrt() * weight + bias
        return torch.where(x > 0, x, 0.2 * x)

    logits = []
    for head, x in zip(discriminator.heads.values(), taps, strict=True):
        first, weight1, bias1, ring, weight2, bias2, last, bias = head.parameters()
        x = normalized_and_leaky(x @ first[:, :, 0].T, weight1, bias1)
        around = sum(torch.roll(x, 4 - tap, dims=1) @ ring[:, :, tap].T for tap in range(9))
        x = (normalized_and_leaky(around, weight2, bias2) + x) / 2**0.5
        logits.append((x @ last[0, :, 0]) + bias)
    return torch.cat(logits, dim=1)


def test_logits_and_gradients_are_those_of_the_reference_from_its_description() -> None:
    discriminator = loaded(taps=["embedding", 2, 11])
    image = (torch.rand(3, 3, 3 * SIZE // 2, 2 * SIZE) * 2 - 1).requires_grad_()
    weights = [image, *discriminator.heads.parameters()]
    for head in discriminator.heads.values():  # norms that do something
        for norm in (module for module in head.modules() if isinstance(module, nn.BatchNorm1d)):
            nn.init.normal_(norm.weight, 1.0, 0.2)
            nn.init.normal_(norm.bias, 0.0, 0.2)
    got, expected = discriminator(image), reference_logits(discriminator, image)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    pull = torch.randn_like(got)
    for a, b in zip(*(torch.autograd.grad((pull * x).sum(), weights) for x in (got, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_head_normalizes_before_each_activation() -> None:
    head = TokenHead(kernel_size=9, norm="batch", spectral_norm=False)
    seen: list[Tensor] = []
    for activation in (m for m in head.modules() if isinstance(m, nn.LeakyReLU)):
        activation.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head(torch.randn(4, 12, 384) * 5 + 3)
    assert len(seen) == 2
    for x in seen:
        assert x.mean(dim=(0, 2)).abs().max() < 1e-4
        torch.testing.assert_close(x.var(dim=(0, 2), unbiased=False), torch.ones(384), rtol=1e-3, atol=1e-3)


def test_gradients_reach_image_and_heads_but_not_the_trunk(image: Tensor) -> None:
    discriminator = loaded().train().requires_grad_(True)
    image.requires_grad_()
    discriminator(image).square().mean().backward()
    assert image.grad is not None
    assert (image.grad != 0).float().mean() > 0.99
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in discriminator.parameters())
    assert all(
        weight.grad is None and not weight.requires_grad for weight in transformer_of(discriminator).parameters()
    )


def test_trunk_stays_in_eval_mode_and_out_of_sight(image: Tensor) -> None:
    discriminator = DINODiscriminator(weights="random", input_size=SIZE)
    before = list(discriminator.state_dict())
    weights = sum(weight.numel() for weight in discriminator.parameters())
    discriminator.load()
    discriminator.train()
    assert not any(module.training for module in transformer_of(discriminator).modules())
    assert list(discriminator.state_dict()) == before
    assert all(name.startswith("heads.") for name in before)
    assert sum(weight.numel() for weight in discriminator.parameters()) == weights
    # 5 heads of convolutions 1, 9 and 1 with two batch norms, and a bias only at the end
    assert weights == 5 * (384 * 384 + 9 * 384 * 384 + 4 * 384 + 384 + 1)


def test_building_and_restoring_ask_for_no_weights() -> None:
    state = DINODiscriminator(spectral_norm=True).state_dict()
    DINODiscriminator(spectral_norm=True).load_state_dict(state)
    with torch.device("meta"):
        assert next(DINODiscriminator(norm="local_batch", spectral_norm=True).parameters()).is_meta


def test_a_pair_runs_the_trunk_once_and_the_heads_apart(image: Tensor) -> None:
    discriminator = loaded(norm="batch", taps=["embedding", 1])
    reconstruction = 0.3 * image + 0.5
    expected = discriminator(image), discriminator(reconstruction)
    batches: list[int] = []
    transformer_of(discriminator).blocks[0].register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    pair = discriminator.forward_pair(image, reconstruction)
    assert batches == [4]
    torch.testing.assert_close(pair.real, expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pair.fake, expected[1], rtol=1e-4, atol=1e-4)


def test_blocks_after_the_last_tap_do_not_run(image: Tensor) -> None:
    discriminator = loaded(taps=[1, "embedding"])
    ran: list[int] = []
    for number, block in enumerate(transformer_of(discriminator).blocks):
        block.register_forward_pre_hook(lambda _, inputs, number=number: ran.append(number))
    assert list(discriminator.heads) == ["1", "embedding"]
    assert discriminator(image).shape == (2, 2 * TOKENS)
    assert ran == [0, 1]


def test_prefix_tokens_can_be_left_out(shared: DINODiscriminator, image: Tensor) -> None:
    """With heads that see one token at a time, the others' logits stay as they are."""
    with_prefix, without = (
        loaded(norm="none", kernel_size=1, taps=["embedding", 3], prefix_tokens=prefix) for prefix in (True, False)
    )
    without.load_state_dict(with_prefix.state_dict())
    all_logits = with_prefix(image).view(2, 2, TOKENS)
    torch.testing.assert_close(without(image).view(2, 2, 16), all_logits[:, :, 5:])


def test_augmentation_in_training_only(image: Tensor) -> None:
    discriminator = loaded(norm="none", taps=["embedding"], augmentation=DifferentiableAugmentation())
    assert not torch.equal(discriminator(image), discriminator(image))
    discriminator.eval()
    torch.testing.assert_close(discriminator(image), discriminator(image), rtol=0, atol=0)


@pytest.mark.parametrize("same_draw", [True, False])
def test_same_draw_for_real_and_fake(same_draw: bool, image: Tensor) -> None:
    discriminator = loaded(
        norm="none", taps=["embedding"], augmentation=DifferentiableAugmentation(same_draw=same_draw)
    )
    with discriminator.within_step():
        generator_logits = discriminator(image)
        pair = discriminator.forward_pair(image, image)
    for logits in (pair.real, pair.fake):
        assert torch.allclose(generator_logits, logits, atol=1e-5) == same_draw


def test_spectral_norm_is_one() -> None:
    head = TokenHead(kernel_size=9, norm="local_batch", spectral_norm=True)
    with torch.no_grad():
        for weight in head.parameters():
            weight.mul_(7.0)
    for _ in range(20):
        head(torch.randn(1, 12, 384))
    convolutions = [module for module in head.modules() if isinstance(module, nn.Conv1d)]
    assert len(convolutions) == 3
    for convolution in convolutions:
        largest = torch.linalg.matrix_norm(convolution.weight.detach().flatten(1), ord=2)
        assert float(largest) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(("batch", "groups"), [(5, [5]), (8, [8]), (12, [6, 6]), (17, [6, 6, 5])])
def test_local_batch_norm_is_over_groups_of_images(batch: int, groups: list[int]) -> None:
    norm = LocalBatchNorm(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(batch, 4, 7) * torch.rand(batch, 1, 1) + torch.randn(batch, 1, 1)
    scale, shift = norm.weight.detach().numpy()[:, None], norm.bias.detach().numpy()[:, None]
    expected = []
    for group in np.split(x.numpy(), np.cumsum(groups)[:-1]):
        mean = group.mean(axis=(0, 2), keepdims=True)
        variance = ((group - mean) ** 2).mean(axis=(0, 2), keepdims=True)
        expected.append((group - mean) / np.sqrt(variance + 1e-5) * scale + shift)
    for mode in (True, False):
        np.testing.assert_allclose(norm.train(mode)(x).detach(), np.concatenate(expected), rtol=1e-4, atol=1e-5)


def test_the_trunk_ignores_autocast_on_the_cpu(image: Tensor) -> None:
    discriminator = loaded(norm="local_batch")
    features: list[list[Tensor]] = []
    trunk_of(discriminator).register_forward_hook(lambda _, inputs, output: features.append(output))
    expected = discriminator(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = discriminator(image)
    for a, b in zip(*features, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 256}, "multiple of 14"),
        ({"input_size": 0}, "multiple of 14"),
        ({"taps": [12]}, "blocks 0 to 11"),
        ({"taps": [-1]}, "blocks 0 to 11"),
        ({"taps": [2, 2]}, "blocks 0 to 11"),
        ({"taps": []}, "one or more"),
        ({"kernel_size": 8}, "odd"),
        ({"kernel_size": 9, "input_size": 14, "prefix_tokens": False}, "at most 3"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DINODiscriminator(**options)


def test_a_wrong_word_in_a_config_is_refused_with_the_right_ones() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Discriminator, "discriminator")
    config = {"class_path": "gsq_lightning.discriminators.DINODiscriminator", "init_args": {"norm": "layer"}}
    with pytest.raises(Exception, match="'batch', 'local_batch', 'none'"):
        parser.parse_object({"discriminator": config})


def test_without_network_the_error_comes_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "reachable", lambda url: False)
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        DINODiscriminator().load()
    assert time.monotonic() - start < 2.0
    message = str(error.value)
    assert "hf download timm/vit_small_patch14_reg4_dinov2.lvd142m model.safetensors" in message
    assert str(tmp_path) in message
    assert "\n" not in message
