import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.discriminators import DifferentiableAugmentation, ProjectedDiscriminator
from gsq_lightning.discriminators.projected import MapHead, RandomProjection
from gsq_lightning.errors import InputError
from gsq_lightning.losses import gradient_penalty


@pytest.fixture(scope="module")
def loaded() -> ProjectedDiscriminator:
    discriminator = ProjectedDiscriminator(weights="random", head_channels=8)
    discriminator.load()
    return discriminator


@pytest.fixture
def discriminator(loaded: ProjectedDiscriminator) -> ProjectedDiscriminator:
    return copy.deepcopy(loaded)


def test_maps_are_mixed_across_channels_then_from_coarse_to_fine() -> None:
    projection = RandomProjection([3, 5, 7, 9])
    maps = [torch.randn(2, channels, side, side + 1) for channels, side in ((3, 8), (5, 4), (7, 2), (9, 1))]
    mixed = projection(maps)
    channels, scales = (
        [layer.weight.detach()[:, :, 0, 0] for layer in layers]
        for layers in (projection.across_channels, projection.across_scales)
    )
    coarser: Tensor | None = None
    for level in (3, 2, 1, 0):
        x = torch.einsum("oc,bchw->bohw", channels[level], maps[level])
        if coarser is not None:
            x = x + F.interpolate(coarser, x.shape[2:], mode="bilinear")
        coarser = torch.einsum("oc,bchw->bohw", scales[level], x)
        torch.testing.assert_close(mixed[level], coarser, rtol=1e-4, atol=1e-4)


def test_the_mixing_is_the_same_in_every_run() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = RandomProjection([3, 5, 7, 9])
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = RandomProjection([3, 5, 7, 9])
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_mixing_keeps_the_variance() -> None:
    projection = RandomProjection([24, 40, 112, 320])
    for layer in projection.modules():
        if isinstance(layer, nn.Conv2d):
            assert float(layer.weight.detach().std()) == pytest.approx(layer.in_channels**-0.5, rel=0.05)


def test_a_head_is_two_convolutions_around_a_norm() -> None:
    """Slope 0.2, batch statistics: in float64, with the weights that spectral norm gives in evaluation."""
    head = MapHead(16, 8).eval()
    x = torch.randn(2, 16, 5, 4)
    first, norm, _, last, _ = head.net
    maps = F.conv2d(x.double(), first.weight.double(), padding=1)
    maps = maps - maps.mean(dim=(0, 2, 3), keepdim=True)
    maps = maps / (maps.square().mean(dim=(0, 2, 3), keepdim=True) + norm.eps).sqrt()
    logits = F.conv2d(torch.where(maps > 0, maps, 0.2 * maps), last.weight.double(), last.bias.double(), padding=1)
    torch.testing.assert_close(head(x), logits.flatten(1).float(), rtol=1e-4, atol=1e-5)


def test_only_heads_are_trained_and_saved(discriminator: ProjectedDiscriminator) -> None:
    assert discriminator.trunk is not None
    before = copy.deepcopy(discriminator.trunk.network.state_dict())
    assert all(name.startswith("heads.") for name in discriminator.state_dict())
    discriminator.train().requires_grad_(True)
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=0.1)
    image = torch.rand(2, 3, 64, 64, requires_grad=True)
    discriminator(image).square().mean().backward()
    optimizer.step()
    assert image.grad is not None
    assert (image.grad != 0).float().mean() > 0.99
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in discriminator.parameters())
    after = discriminator.trunk.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(module.training for module in discriminator.trunk.network.modules())


@pytest.mark.parametrize(("size", "logits"), [((64, 64), 340), ((32, 32), 85), ((40, 72), 180 + 45 + 15 + 6)])
def test_every_position_at_every_scale_has_a_logit(
    loaded: ProjectedDiscriminator, size: tuple[int, int], logits: int
) -> None:
    assert loaded(torch.rand(2, 3, *size)).shape == (2, logits)


@pytest.mark.parametrize(
    ("size", "enlarged"), [((32, 48), (64, 96)), ((45, 32), (90, 64)), ((64, 64), (64, 64)), ((80, 72), (80, 72))]
)
def test_small_images_are_enlarged(
    loaded: ProjectedDiscriminator, size: tuple[int, int], enlarged: tuple[int, int]
) -> None:
    """What the trunk sees has the short side `min_size`; larger images are left as they are."""
    discriminator = ProjectedDiscriminator("random", head_channels=8, min_size=64)
    discriminator.load_state_dict(loaded.state_dict())
    discriminator.trunk = loaded.trunk
    image, reconstruction = torch.rand(2, 2, 3, *size) * 2 - 1
    pair = discriminator.eval().forward_pair(image, reconstruction)
    for got, given in zip(pair, (image, reconstruction), strict=True):
        expected = copy.deepcopy(loaded).eval()(F.interpolate(given, enlarged, mode="bilinear"))
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_a_pair_is_two_calls(discriminator: ProjectedDiscriminator) -> None:
    discriminator.eval()  # spectral norm iterates in training
    image, reconstruction = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    pair = discriminator.forward_pair(image, reconstruction)
    torch.testing.assert_close(pair.real, discriminator(image), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pair.fake, discriminator(reconstruction), rtol=1e-3, atol=1e-4)
    assert (pair.real - pair.fake).abs().max() > 1e-2


def test_spectral_norm_is_one() -> None:
    head = MapHead(16, 8)
    with torch.no_grad():
        for weight in head.parameters():
            weight.mul_(7.0)
    for _ in range(30):
        head(torch.randn(2, 16, 4, 4))
    for convolution in (module for module in head.modules() if isinstance(module, nn.Conv2d)):
        assert torch.linalg.matrix_norm(convolution.weight.detach().flatten(1), 2) == pytest.approx(1.0, rel=1e-2)


def test_augmentation_is_applied_in_training_and_drawn_once_a_step(loaded: ProjectedDiscriminator) -> None:
    augmented = ProjectedDiscriminator("random", augmentation=DifferentiableAugmentation(same_draw=True))
    augmented.trunk = loaded.trunk
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert not torch.allclose(augmented(image), augmented(image), atol=1e-3)
        with augmented.within_step():
            pair = augmented.forward_pair(image, image)
        torch.testing.assert_close(pair.real, pair.fake, rtol=0.05, atol=0.05)  # spectral norm iterates between
        augmented.eval()
        torch.testing.assert_close(augmented(image), augmented(image))


@pytest.mark.parametrize(
    ("augmentation", "images_seen"),
    [
        (None, [2, 2]),
        (DifferentiableAugmentation(same_draw=True), [2, 2]),
        (DifferentiableAugmentation(), [2, 4]),  # another draw: the reconstruction looks otherwise
    ],
    ids=["none", "same draw", "draws"],
)
def test_a_reconstruction_that_was_judged_in_the_step_passes_the_trunk_once(
    loaded: ProjectedDiscriminator, augmentation: DifferentiableAugmentation | None, images_seen: list[int]
) -> None:
    """In both networks' steps together; logits and gradients of the heads are those of looking again."""
    discriminator = ProjectedDiscriminator("random", head_channels=8, augmentation=augmentation)
    discriminator.trunk = loaded.trunk
    again = copy.deepcopy(discriminator)
    image, source = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    reconstruction = source.requires_grad_() * 0.9
    seen: list[int] = []
    assert discriminator.trunk is not None
    watch = discriminator.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    torch.manual_seed(1)
    with discriminator.within_step():
        discriminator(reconstruction).sum().backward()
        discriminator.zero_grad()
        pair = discriminator.forward_pair(image, reconstruction.detach())
    watch.remove()
    assert seen == images_seen
    torch.manual_seed(1)
    with again.within_step():
        again(reconstruction.detach().clone())
        expected = again.forward_pair(image, reconstruction.detach().clone())  # in another place: looks again
    for logits, others in zip(pair, expected, strict=True):
        torch.testing.assert_close(logits, others, rtol=1e-3, atol=1e-4)
    for logits in (pair, expected):
        (logits.real.square().mean() + logits.fake.exp().mean()).backward()
    for one, other in zip(discriminator.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_a_step_begins_without_what_was_judged_in_the_one_before(discriminator: ProjectedDiscriminator) -> None:
    discriminator.eval()  # spectral norm iterates in training
    image, reconstruction = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    with discriminator.within_step():
        before = discriminator(reconstruction)
    reconstruction.neg_()  # the next step's, in the same memory
    with discriminator.within_step():
        fake = discriminator.forward_pair(image, reconstruction).fake
    torch.testing.assert_close(fake, discriminator(reconstruction.clone()), rtol=1e-3, atol=1e-4)
    assert (fake - before).abs().max() > 1e-2


def test_it_has_the_second_derivatives_of_a_gradient_penalty(discriminator: ProjectedDiscriminator) -> None:
    assert discriminator.supports_gradient_penalty
    image, reconstruction = torch.rand(2, 2, 3, 32, 32)
    gradient_penalty(discriminator, image, reconstruction).backward()
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in discriminator.parameters())


def test_it_learns_to_tell_sharp_from_blurred() -> None:
    discriminator = ProjectedDiscriminator(head_channels=16)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=3e-3)

    def images() -> tuple[Tensor, Tensor]:
        sharp = F.interpolate(torch.rand(8, 3, 16, 16), scale_factor=2, mode="nearest") * 2 - 1
        return sharp, F.avg_pool2d(F.pad(sharp, (1, 1, 1, 1), mode="replicate"), 3, stride=1)

    for _ in range(15):
        pair = discriminator.forward_pair(*images())
        loss = F.softplus(-pair.real).mean() + F.softplus(pair.fake).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pair = discriminator.forward_pair(*images())
    assert (pair.real.mean(dim=1) > 0).float().mean() > 0.8
    assert (pair.fake.mean(dim=1) < 0).float().mean() > 0.8


def test_sizes_that_make_no_sense_are_refused(loaded: ProjectedDiscriminator) -> None:
    with pytest.raises(InputError, match="head_channels is 0"):
        ProjectedDiscriminator(head_channels=0)
    with pytest.raises(InputError, match="min_size is 16; it must be at least 32, or null"):
        ProjectedDiscriminator(min_size=16)
    with pytest.raises(InputError, match="at least 32 pixels each way, these have 64×31"):
        loaded(torch.zeros(1, 3, 64, 31))


def test_a_pair_of_small_images_is_refused_too(discriminator: ProjectedDiscriminator) -> None:
    small = torch.zeros(1, 3, 16, 64)
    with pytest.raises(InputError, match="at least 32 pixels each way, these have 16×64"):
        discriminator.forward_pair(small, small)
