import copy
import pickle
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from gsq_lightning import GroupedSphericalQuantizer, InputError
from gsq_lightning.quantizers import spherical
from gsq_lightning.quantizers.lookup import CodeIndex
from gsq_lightning.quantizers.regularizers import coding_rate_loss, entropy_loss
from gsq_lightning.quantizers.spherical import normalize
from tests.waits import Waits


def numpy_normalize(vectors: np.ndarray, normalization: str) -> np.ndarray:
    if normalization == "l2":
        return vectors / np.sqrt((vectors**2).sum(-1, keepdims=True))
    if normalization == "l1":
        return vectors / np.abs(vectors).sum(-1, keepdims=True)
    return np.clip(vectors, -1, 1) if normalization == "clip" else vectors


def brute_force(latent: torch.Tensor, codebook: torch.Tensor, groups: int, normalization: str) -> np.ndarray:
    """(B, D, h, w) → (B, h, w, G) by Eq. 5 in float64."""
    channels = latent.detach().double().numpy().transpose(0, 2, 3, 1)
    vectors = numpy_normalize(channels.reshape(*channels.shape[:3], groups, -1), normalization)
    codes = numpy_normalize(codebook.detach().double().numpy(), normalization)
    return ((vectors[..., None, :] - codes) ** 2).sum(-1).argmin(-1)


@pytest.mark.parametrize("normalization", ["l2", "l1", "none", "clip"])
@pytest.mark.parametrize(("channels", "groups"), [(12, 1), (12, 4), (12, 2)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_indices_are_the_nearest_codes(normalization: str, channels: int, groups: int, kind: torch.dtype) -> None:
    quantizer = GroupedSphericalQuantizer(channels, 100, groups, normalization)
    with torch.no_grad():
        quantizer.codebook.mul_(0.5 + torch.rand(100, 1))  # off the sphere, as codes drift in training
    latent = (2 * torch.randn(2, channels, 5, 3)).to(kind)
    expected = brute_force(latent, quantizer.codebook, groups, normalization)
    for enabled, training in product((False, True), (False, True)):
        quantizer.train(training)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            assert quantizer(latent).indices.numpy().tolist() == expected.tolist()
            assert quantizer.latent_to_indices(latent).numpy().tolist() == expected.tolist()


def test_neighbours_on_a_crowded_circle_are_told_apart() -> None:
    """2^18 codes are 2.4e-5 apart, where float32 rounds directions by some 1e-7; float64 angles say which is next."""
    quantizer = GroupedSphericalQuantizer(2, 2**18)
    points = torch.randn(2, 20_000)
    of_codes, of_points = (torch.atan2(y, x) for x, y in (quantizer.codebook.detach().double().T, points.double()))
    ordered = of_codes.sort().values
    place = torch.searchsorted(ordered, of_points)
    found = of_codes[quantizer.latent_to_indices(points[None])[0, :, 0]]
    before, after, at = (
        (codes - of_points).remainder(2 * torch.pi) for codes in (ordered[place - 1], ordered[place % 2**18], found)
    )
    least = torch.minimum(2 * torch.pi - before, after)
    assert (torch.minimum(2 * torch.pi - at, at) <= least + 1e-13).all()


def test_groups_are_consecutive_channels() -> None:
    quantizer = GroupedSphericalQuantizer(6, 50, 3)
    single = GroupedSphericalQuantizer(2, 50, 1, normalization="none")
    with torch.no_grad():
        single.codebook.copy_(quantizer.codebook)
    latent = torch.randn(1, 6, 2, 2)
    output = quantizer(latent)
    for group in range(3):
        chunk = normalize(latent[:, 2 * group : 2 * group + 2].permute(0, 2, 3, 1), "l2").permute(0, 3, 1, 2)
        assert torch.equal(output.indices[..., group], single(chunk).indices[..., 0])
        assert torch.equal(output.quantized[:, 2 * group : 2 * group + 2], single(chunk).quantized)


def test_value_is_the_stored_code_bit_exact() -> None:
    quantizer = GroupedSphericalQuantizer(8, 20, 2)
    with torch.no_grad():
        quantizer.codebook.mul_(3.7)  # off the sphere, as codes drift in training
    for mode in (True, False):
        quantizer.train(mode)
        output = quantizer(torch.randn(2, 8, 3, 3))
        rows = quantizer.codebook[output.indices]  # (B, h, w, G, d)
        assert torch.equal(output.quantized, rows.flatten(3).permute(0, 3, 1, 2))
        assert torch.equal(output.quantized, quantizer.indices_to_quantized(output.indices))


def test_loss_and_gradients_by_hand() -> None:
    """z = (3, 4) on the codebook {(1, 0), (0, 1)}: ẑ = (0.6, 0.8), q = (0, 1)."""
    quantizer = GroupedSphericalQuantizer(2, 2, normalization="l2", commitment_weight=0.25)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.eye(2))
    latent = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).requires_grad_()
    output = quantizer(latent)
    assert output.indices.item() == 1
    squares = ((0.0 - 0.6) ** 2 + (1.0 - 0.8) ** 2) / 2
    assert output.loss.item() == pytest.approx(1.25 * squares)
    assert output.terms["codebook"].item() == pytest.approx(squares)
    assert output.terms["commitment"].item() == pytest.approx(squares)
    assert not any(term.requires_grad for term in output.terms.values())
    output.loss.backward()
    # d mean((q - ẑ)²)/dq = q - ẑ; the commitment term gives ẑ 0.25 · (ẑ - q), of which normalization passes what is
    # orthogonal to ẑ, divided by ‖z‖ = 5
    expected_code = torch.tensor([0.0 - 0.6, 1.0 - 0.8])
    torch.testing.assert_close(quantizer.codebook.grad, torch.stack([torch.zeros(2), expected_code]))
    unit, pull = torch.tensor([0.6, 0.8]), 0.25 * torch.tensor([0.6, -0.2])
    torch.testing.assert_close(latent.grad.flatten(), (pull - unit * (unit @ pull)) / 5.0)


def test_straight_through_gradient_goes_to_the_latent_alone() -> None:
    quantizer = GroupedSphericalQuantizer(4, 10, normalization="none")
    latent = torch.randn(1, 4, 2, 2, requires_grad=True)
    weights = torch.randn(1, 4, 2, 2)
    (quantizer(latent).quantized * weights).sum().backward()
    assert torch.equal(latent.grad, weights)
    assert quantizer.codebook.grad is None


def test_lowest_index_on_ties() -> None:
    quantizer = GroupedSphericalQuantizer(2, 6, normalization="none")
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[5.0, 5], [1, 0], [-1, 0], [1, 0], [0, 1], [9, 9]]))
    points = torch.tensor([[0.0, 0.0], [2.0, 0.0]]).T.view(1, 2, 1, 2)
    assert quantizer.latent_to_indices(points).flatten().tolist() == [1, 1]


def test_sphere_initialization_is_uniform_on_the_sphere() -> None:
    codes = GroupedSphericalQuantizer(16, 4096).codebook.detach()
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(4096))
    assert codes.mean(dim=0).abs().max() < 5 / (4096 * 16) ** 0.5
    torch.testing.assert_close(codes.T @ codes / 4096, torch.eye(16) / 16, atol=6e-3, rtol=0)
    # a fourth moment of 3 / (d (d + 2)); the directions of points of a cube have a third less
    assert codes.pow(4).mean().item() == pytest.approx(3 / (16 * 18), rel=0.06)


@pytest.mark.parametrize(("channels", "bound"), [(4, 1 / 512), (1, 1.0)])
def test_uniform_initialization(channels: int, bound: float) -> None:
    codes = GroupedSphericalQuantizer(channels, 512, normalization="none", init="uniform").codebook.detach()
    assert 0.98 * bound < codes.abs().max() <= bound
    assert codes.std() == pytest.approx(bound / 3**0.5, rel=0.08)


@pytest.mark.parametrize("normalization", ["l2", "l1"])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30, 1e38])
def test_normalization_of_extreme_scales(normalization: str, scale: float) -> None:
    vectors = torch.tensor([[0.6, -0.8, 0.0]])
    expected = torch.from_numpy(numpy_normalize(vectors.double().numpy(), normalization)).float()
    torch.testing.assert_close(normalize(vectors * scale, normalization), expected)


@pytest.mark.parametrize("normalization", ["l2", "l1"])
def test_a_zero_latent_stays_zero_with_gradient_zero(normalization: str) -> None:
    """A gradient of 1e12 there would leave nothing of the others after clipping."""
    vectors = torch.tensor([[0.0, 0.0, 0.0], [0.3, -0.4, 0.0]], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0])
    result = normalize(vectors, normalization)
    (result * weights).sum().backward()
    assert torch.equal(result[0], torch.zeros(3))
    assert torch.equal(vectors.grad[0], torch.zeros(3))
    # d(z/‖z‖)/dz at (0.3, -0.4, 0), with ‖z‖₂ = 0.5 and ‖z‖₁ = 0.7
    if normalization == "l2":
        unit, norm = torch.tensor([0.6, -0.8, 0.0]), 0.5
        expected = (weights - unit * (unit @ weights)) / norm
    else:
        point, norm = torch.tensor([0.3, -0.4, 0.0]), 0.7
        expected = weights / norm - point.sign() * (point @ weights) / norm**2
    torch.testing.assert_close(vectors.grad[1], expected)


@pytest.mark.parametrize("normalization", ["l2", "l1", "none", "clip"])
def test_non_finite_latents_get_an_index_in_range_and_a_loss_that_shows(normalization: str) -> None:
    quantizer = GroupedSphericalQuantizer(4, 10, 2, normalization)
    latent = torch.randn(1, 4, 2, 2)
    latent[0, 0, 0, 0] = float("nan")
    output = quantizer(latent)
    assert 0 <= output.indices.min() <= output.indices.max() < 10
    assert output.loss.isnan()


def test_l2_with_two_channels_or_fewer_warns_with_the_reason() -> None:
    with pytest.warns(UserWarning, match=r"(?s)2 channel\(s\) per group.*perplexity 278.*omits ℓ2 for d ≤ 2"):
        GroupedSphericalQuantizer(4, 8, 2)
    with pytest.warns(UserWarning, match="only the sign"):
        GroupedSphericalQuantizer(4, 8, 4)
    with pytest.warns(UserWarning, match='1 or -1. init="uniform" spreads them'):
        GroupedSphericalQuantizer(4, 8, 4, normalization="none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GroupedSphericalQuantizer(4, 8, 4, normalization="none", init="uniform")
        GroupedSphericalQuantizer(6, 8, 2)
        GroupedSphericalQuantizer(4, 8, 2, normalization="none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 8, 4), "num_groups 4 does not divide latent_channels 10; use one of 1, 2, 5, 10"),
        ((8, 0, 1), "codebook_size is 0; it must be at least 1"),
        ((8, 8, 0), "num_groups is 0"),
        ((8, 8, 1, "l2", "sphere", -1.0), "commitment_weight is -1.0"),
        ((8, 8, 1, "L2"), "normalization is 'L2'; it must be one of: l2, l1, none, clip"),
        ((8, 8, 1, "l2", "normal"), "init is 'normal'; it must be one of: sphere, uniform"),
        ((8, 8, 1, "l2", "sphere", 0.25, "ste"), "gradient is 'ste'; it must be one of: straight_through, rotation"),
        (
            (8, 8, 1, "l2", "sphere", 0.25, "rotation", 0.0, 0.0, False, False, 2),
            "channel_dim is 2; it must be 1 or -1",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GroupedSphericalQuantizer(*arguments)


def test_bits_per_position() -> None:
    assert GroupedSphericalQuantizer(32, 512, 8).bits_per_position == 72.0


def test_terms_of_the_whole_batch_are_named() -> None:
    quantizer = GroupedSphericalQuantizer(4, 10, entropy_weight=0.1, coding_rate_weight=0.1)
    assert quantizer.whole_batch_terms == ["entropy", "coding_rate"]
    assert GroupedSphericalQuantizer(4, 10).whole_batch_terms == []


def test_auxiliary_losses_are_added_with_their_weights() -> None:
    latent = torch.randn(2, 6, 3, 3)
    plain = GroupedSphericalQuantizer(6, 20, 2)
    weighted = GroupedSphericalQuantizer(6, 20, 2, entropy_weight=0.1, coding_rate_weight=0.01)
    weighted.load_state_dict(plain.state_dict())
    output = weighted(latent)
    extra = 0.1 * output.terms["entropy"] + 0.01 * output.terms["coding_rate"]
    torch.testing.assert_close(output.loss, plain(latent).loss + extra)
    assert set(plain(latent).terms) == {"codebook", "commitment"}


@pytest.mark.parametrize("per_group_codebooks", [False, True])
def test_auxiliary_losses_are_of_what_the_lookup_compares(per_group_codebooks: bool) -> None:
    """Of normalized latents and codes in float32, also under autocast; of several codebooks the entropies' mean."""
    quantizer = GroupedSphericalQuantizer(
        6, 20, 2, entropy_weight=0.1, coding_rate_weight=0.1, per_group_codebooks=per_group_codebooks
    )
    with torch.no_grad():
        quantizer.codebook.mul_(3.7)
    latent = torch.randn(2, 6, 3, 3)
    points = F.normalize(latent.movedim(1, -1).reshape(-1, 2, 3), dim=-1)
    codes = F.normalize(quantizer.codebook.detach(), dim=-1)
    pairs = zip(points.unbind(1), codes, strict=True) if per_group_codebooks else [(points.flatten(0, 1), codes)]
    entropies = [entropy_loss(*pair).item() for pair in pairs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = quantizer(latent).terms
    assert terms["entropy"].item() == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
    assert terms["coding_rate"].item() == pytest.approx(coding_rate_loss(points.flatten(0, 1)).item(), rel=1e-5)


def test_rotation_gradient_differs_and_value_does_not() -> None:
    latent = torch.randn(1, 6, 2, 2)
    straight = GroupedSphericalQuantizer(6, 20, 2)
    rotated = GroupedSphericalQuantizer(6, 20, 2, gradient="rotation")
    rotated.load_state_dict(straight.state_dict())
    gradients = []
    for quantizer in (straight, rotated):
        z = latent.clone().requires_grad_()
        quantized = quantizer(z).quantized
        quantized.square().sum().backward()
        gradients.append(z.grad)
        assert torch.equal(quantized, quantizer.indices_to_quantized(quantizer(z).indices))
    assert not torch.allclose(gradients[0], gradients[1])


def test_per_group_codebooks_are_searched_by_their_group() -> None:
    quantizer = GroupedSphericalQuantizer(6, 40, 2, per_group_codebooks=True, entropy_weight=0.1)
    assert quantizer.codebook.shape == (2, 40, 3)
    latent = torch.randn(2, 6, 3, 3)
    output = quantizer(latent)
    for group in range(2):
        chunk = latent[:, 3 * group : 3 * group + 3]
        expected = brute_force(chunk, quantizer.codebook[group], 1, "l2")
        assert output.indices[..., group].numpy().tolist() == expected[..., 0].tolist()
    rows = torch.stack([quantizer.codebook[g][output.indices[..., g]] for g in range(2)], dim=-2)
    assert torch.equal(output.quantized, rows.flatten(3).permute(0, 3, 1, 2))
    assert torch.equal(output.quantized, quantizer.indices_to_quantized(output.indices))
    output.loss.backward()
    assert quantizer.codebook.grad.flatten(1).norm(dim=1).min() > 0


def test_projected_codes_lie_on_the_sphere() -> None:
    quantizer = GroupedSphericalQuantizer(6, 20, 2, project_codes=True)
    with torch.no_grad():
        quantizer.codebook.mul_(5.0)
    output = quantizer(torch.randn(1, 6, 4, 4))
    torch.testing.assert_close(output.quantized.view(1, 2, 3, 4, 4).norm(dim=2), torch.ones(1, 2, 4, 4))
    assert torch.equal(output.quantized, quantizer.indices_to_quantized(output.indices))
    with pytest.raises(InputError, match='project_codes needs normalization "l2"'):
        GroupedSphericalQuantizer(6, 20, 2, normalization="none", project_codes=True)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_the_codebook_stays_in_float32(kind: torch.dtype) -> None:
    quantizer = GroupedSphericalQuantizer(8, 20, 2)
    before = quantizer.codebook.detach().clone()
    quantizer.to(kind)
    assert torch.equal(quantizer.codebook, before)
    assert quantizer.double().codebook.dtype == torch.float64


def test_a_changed_codebook_is_noticed_in_evaluation() -> None:
    quantizer = GroupedSphericalQuantizer(4, 50, normalization="none").eval()
    latent = torch.randn(1, 4, 3, 3)
    first = quantizer.latent_to_indices(latent)
    assert torch.equal(quantizer.latent_to_indices(latent), first)
    quantizer.codebook.data = quantizer.codebook.data.flip(0)
    assert torch.equal(quantizer.latent_to_indices(latent), 49 - first)
    duplicate = copy.deepcopy(quantizer)
    duplicate.codebook.data.copy_(quantizer.codebook.data.flip(0))
    assert torch.equal(duplicate.latent_to_indices(latent), first)
    assert torch.equal(quantizer.latent_to_indices(latent), 49 - first)


@pytest.mark.parametrize("write", [lambda old, new: old.data.copy_(new), lambda old, new: np.copyto(old.numpy(), new)])
@pytest.mark.parametrize("per_group_codebooks", [False, True])
def test_a_frozen_codebook_that_is_written_to_past_autograd_is_noticed(
    write: Callable[[torch.Tensor, torch.Tensor], Any], per_group_codebooks: bool
) -> None:
    """As by the EMA of another module, or what rank 0 broadcasts to `parameter.data`."""
    quantizer = GroupedSphericalQuantizer(4, 50, 1, "none", per_group_codebooks=per_group_codebooks)
    quantizer.eval().requires_grad_(False)
    latent = torch.randn(1, 4, 3, 3)
    first = quantizer.latent_to_indices(latent)
    write(quantizer.codebook, quantizer.codebook.flip(-2))
    assert torch.equal(quantizer.latent_to_indices(latent), 49 - first)


def add_one(codebook: torch.nn.Parameter) -> None:
    with torch.no_grad():
        codebook[0] += 1


def replace(codebook: torch.nn.Parameter) -> None:
    codebook.data = torch.randn(50, 3)


@pytest.mark.parametrize("change", [add_one, replace])
def test_a_frozen_codebook_on_a_gpu_is_compared_without_waiting(
    change: Callable[[torch.nn.Parameter], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spherical, "COMPARE_WITHOUT_WAITING", ())
    codebook = torch.nn.Parameter(torch.randn(50, 3), requires_grad=False)
    kept = spherical.KeptIndex(codebook, CodeIndex(codebook))
    with Waits() as waits:
        assert kept.is_of(codebook)
    assert waits.found == []
    change(codebook)
    assert not kept.is_of(codebook)


@pytest.mark.parametrize("codebooks", [1, 2])
def test_the_index_of_an_evaluation_is_kept_until_the_codebook_changes(
    codebooks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built on each call it would cost more than the lookups of a small batch."""
    built: list[int] = []

    class Counted(CodeIndex):
        def __init__(self, codes: torch.Tensor, *arguments: Any, **options: Any) -> None:
            built.append(len(codes))
            super().__init__(codes, *arguments, **options)

    monkeypatch.setattr(spherical, "CodeIndex", Counted)
    quantizer = GroupedSphericalQuantizer(8, 60, codebooks, per_group_codebooks=codebooks > 1).eval()
    latent = torch.randn(2, 8, 3, 3)
    for _ in range(3):
        quantizer.latent_to_indices(latent)
    assert built == [60] * codebooks
    with torch.no_grad():
        quantizer.codebook[0] += 1
    quantizer.latent_to_indices(latent)
    assert built == [60] * (codebooks + 1)  # of the one that has changed alone
    quantizer.to("cpu")
    quantizer.latent_to_indices(latent)
    assert built == [60] * (2 * codebooks + 1)


def test_a_pickled_quantizer_carries_no_search_index() -> None:
    quantizer = GroupedSphericalQuantizer(4, 5000, normalization="none").eval()
    before = len(pickle.dumps(quantizer))
    latent = torch.randn(1, 4, 3, 3)
    indices = quantizer.latent_to_indices(latent)
    content = pickle.dumps(quantizer)
    assert len(content) == before
    assert torch.equal(pickle.loads(content).latent_to_indices(latent), indices)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (2, 3, 4)], ids=["vectors", "audio", "image", "video"])
def test_latents_of_any_rank(shape: tuple[int, ...]) -> None:
    """(B, D, …) → indices (B, …, G): each position as if it were alone; with channel_dim=-1 (B, …, D) likewise."""
    quantizer = GroupedSphericalQuantizer(6, 50, 2)
    latent = torch.randn(2, 6, *shape)
    output = quantizer(latent)
    positions = latent.movedim(1, -1).reshape(-1, 6, 1, 1)
    alone = quantizer(positions)
    assert output.indices.shape == (2, *shape, 2)
    assert torch.equal(output.indices.reshape(-1, 2), alone.indices.reshape(-1, 2))
    assert torch.equal(output.quantized.movedim(1, -1).reshape(-1, 6), alone.quantized.flatten(1))
    assert torch.equal(quantizer.indices_to_quantized(output.indices), output.quantized)

    last = GroupedSphericalQuantizer(6, 50, 2, channel_dim=-1)
    last.load_state_dict(quantizer.state_dict())
    moved = last(latent.movedim(1, -1))
    assert torch.equal(moved.indices, output.indices)
    assert torch.equal(moved.quantized, output.quantized.movedim(1, -1))
    assert torch.equal(last.indices_to_quantized(moved.indices), moved.quantized)
    torch.testing.assert_close(moved.loss, output.loss)
    with pytest.raises(InputError, match=r"dimension 1 must have the 6 channels"):
        quantizer(torch.zeros(2, 5, *shape))


@pytest.mark.parametrize("per_group_codebooks", [False, True])
def test_float64_latents_have_an_entropy_loss(per_group_codebooks: bool) -> None:
    quantizer = GroupedSphericalQuantizer(
        8, 32, 2, entropy_weight=1.0, coding_rate_weight=1.0, per_group_codebooks=per_group_codebooks
    )
    latent = torch.randn(3, 8, 2, 2, dtype=torch.float64)
    wider, usual = quantizer(latent), quantizer(latent.float())
    assert wider.loss.dtype == torch.float64
    torch.testing.assert_close(wider.loss.float(), usual.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("entropy_weight", [0.0, 0.1])
def test_compiled_it_takes_any_batch_size(entropy_weight: float) -> None:
    quantizer = GroupedSphericalQuantizer(8, 32, 2, entropy_weight=entropy_weight)
    counter = CompileCounter()
    compiled = torch.compile(quantizer, backend=counter, fullgraph=True)
    for number in range(2, 8):
        latent = torch.randn(number, 8, 2, 2)
        torch.testing.assert_close(compiled(latent).loss, quantizer(latent).loss)
    assert counter.frame_count <= 2  # of the first size, and of any
