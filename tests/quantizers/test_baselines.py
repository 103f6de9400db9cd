import copy
import itertools
import json
import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import vector_quantize_pytorch
import yaml
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gsq_lightning import GSQTokenizer, InputError, Quantizer, quantizers
from gsq_lightning.quantizers import BSQ, FSQ, LFQ, ResidualVQ, SimVQ

OVERLAYS = Path(__file__).parents[2] / "configs" / "quantizers"

QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "rvq": lambda: ResidualVQ(6, 50, num_levels=3),
    "simvq": lambda: SimVQ(6, 50),
    "fsq": lambda: FSQ([8, 5, 4]),
    "fsq_groups": lambda: FSQ([5, 3], num_groups=3),
    "lfq": lambda: LFQ(64),
    "lfq_groups": lambda: LFQ(8, num_groups=2),
    "bsq": lambda: BSQ(64),
    "bsq_groups": lambda: BSQ(8, num_groups=2),
}
each_quantizer = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS.keys())


def latent_for(quantizer: Quantizer, height: int = 5, width: int = 3) -> torch.Tensor:
    return 2 * torch.randn(2, quantizer.latent_channels, height, width)


def column(values: list[float]) -> torch.Tensor:
    """A latent of one position."""
    return torch.tensor(values).view(1, -1, 1, 1)


@each_quantizer
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_indices_decode_to_what_the_decoder_gets(
    make: Callable[[], Quantizer], training: bool, kind: torch.dtype
) -> None:
    quantizer = make().train(training)
    latent = latent_for(quantizer).to(kind)
    expected = quantizer(latent)
    assert expected.quantized.shape == latent.shape
    assert expected.quantized.dtype == torch.float32
    assert expected.indices.shape == (2, 5, 3, quantizer.num_groups)
    assert expected.indices.dtype == torch.int64
    assert expected.indices.min() >= 0
    assert expected.indices.max() < quantizer.codebook_size
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = quantizer(latent)
            assert torch.equal(output.quantized, expected.quantized)
            assert torch.equal(output.loss, expected.loss)
            assert torch.equal(quantizer.indices_to_quantized(output.indices), expected.quantized)
            assert torch.equal(quantizer.latent_to_indices(latent), expected.indices)
    # one position alone has the bits that it has among others
    alone = quantizer.indices_to_quantized(expected.indices[1:, 4:, 2:])
    assert torch.equal(alone, expected.quantized[1:, :, 4:, 2:])


@each_quantizer
def test_different_indices_are_different_codes(make: Callable[[], Quantizer]) -> None:
    quantizer = make()
    indices = torch.randint(quantizer.codebook_size, (1, 40, 30, quantizer.num_groups))
    codes = quantizer.indices_to_quantized(indices)
    assert len(codes[0].flatten(1).unique(dim=1).T) == len(indices.flatten(0, 2).unique(dim=0))


@pytest.mark.parametrize("name", ["simvq", "lfq", "lfq_groups", "bsq", "bsq_groups"])
def test_a_code_is_its_own_nearest_code(name: str) -> None:
    quantizer = QUANTIZERS[name]()
    indices = torch.randint(quantizer.codebook_size, (1, 40, 30, quantizer.num_groups))
    assert torch.equal(quantizer.latent_to_indices(quantizer.indices_to_quantized(indices)), indices)


@each_quantizer
def test_training_mode_changes_nothing_by_itself(make: Callable[[], Quantizer]) -> None:
    quantizer = make().train()
    before = copy.deepcopy(quantizer.state_dict())
    latent = latent_for(quantizer)
    first, second = quantizer(latent), quantizer(latent)
    assert torch.equal(first.indices, second.indices)
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@each_quantizer
def test_gradients_reach_the_latent(make: Callable[[], Quantizer]) -> None:
    quantizer = make()
    latent = latent_for(quantizer).requires_grad_()
    weights = torch.randn_like(latent)
    (quantizer(latent).quantized * weights).sum().backward()
    expected = weights
    if isinstance(quantizer, FSQ):
        # (tanh(z + shift) · half - offset) / ⌊L/2⌋ before rounding
        levels = torch.tensor(quantizer.levels * quantizer.num_groups).view(-1, 1, 1)
        half, offset = (levels - 1) * 1.001 / 2, 0.5 * (levels % 2 == 0)
        slope = 1 - torch.tanh(latent.detach() + torch.atanh(offset / half)) ** 2
        expected = weights * slope * half / (levels // 2)
    if isinstance(quantizer, BSQ):
        split = [
            torch.stack(list(tensor.chunk(quantizer.num_groups, dim=1))) for tensor in (latent.detach(), weights)
        ]  # (G, B, d, h, w)
        norm = split[0].norm(dim=2, keepdim=True)
        unit = split[0] / norm
        turned = (split[1] - unit * (unit * split[1]).sum(dim=2, keepdim=True)) / norm
        expected = torch.cat(list(turned), dim=1)
    torch.testing.assert_close(latent.grad, expected)
    assert all(parameter.grad is None for parameter in quantizer.parameters())  # codebooks learn from the loss alone


@pytest.mark.parametrize("name", ["rvq", "simvq"])
def test_codebooks_learn_from_the_loss_and_are_averaged(name: str) -> None:
    quantizer = QUANTIZERS[name]()
    average = AveragedModel(quantizer, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(quantizer)
    start = quantizer(latent_for(quantizer)).loss
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=0.05)
    for _ in range(100):
        quantizer(latent_for(quantizer)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert quantizer(latent_for(quantizer)).loss < 0.6 * start
    averaged = [parameter.clone() for parameter in average.module.parameters()]
    average.update_parameters(quantizer)
    for before, after, trained in zip(averaged, average.module.parameters(), quantizer.parameters(), strict=True):
        torch.testing.assert_close(after, (before + trained) / 2)


def test_residual_levels_by_hand() -> None:
    quantizer = ResidualVQ(2, 3, num_levels=2, commitment_weight=0.25)
    codebooks = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]], [[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]])
    for level, codes in zip(quantizer.codebooks, codebooks, strict=True):
        level.data.copy_(codes)
    latent = column([3.2, 0.5]).requires_grad_()
    output = quantizer(latent)
    # r1 = (3.2, 0.5) → (4, 0); r2 = (-0.8, 0.5) → (-1, 0)
    assert output.indices.flatten().tolist() == [1, 1]
    assert output.quantized.flatten().tolist() == [3.0, 0.0]
    squares = (0.8**2 + 0.5**2) / 2 + (0.2**2 + 0.5**2) / 2
    assert output.terms["codebook"].item() == pytest.approx(squares)
    assert output.terms["commitment"].item() == pytest.approx(squares)
    assert output.loss.item() == pytest.approx(1.25 * squares)
    output.loss.backward()
    # commitment: 0.25 · 2/2 · (r1 - q1 + r2 - q2); codes: q - r
    torch.testing.assert_close(latent.grad.flatten(), 0.25 * torch.tensor([-0.8 + 0.2, 0.5 + 0.5]))
    first, second = (level.grad[0] for level in quantizer.parameters())
    torch.testing.assert_close(first, torch.tensor([[0.0, 0.0], [0.8, -0.5], [0.0, 0.0]]))
    torch.testing.assert_close(second, torch.tensor([[0.0, 0.0], [-0.2, -0.5], [0.0, 0.0]]))


def test_residual_levels_leave_less_and_less() -> None:
    quantizer = ResidualVQ(4, 200, num_levels=4)
    for level in quantizer.codebooks:
        level.data.copy_(torch.randn_like(level))
        level.data[0] = 0.0
    latent = latent_for(quantizer)
    indices = quantizer(latent).indices
    errors = []
    for levels in range(1, 5):
        total = sum(quantizer.codebooks[level][indices[..., level]] for level in range(levels))
        errors.append((latent - total.permute(0, 3, 1, 2)).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    torch.testing.assert_close(quantizer.indices_to_quantized(indices), total.permute(0, 3, 1, 2))


def test_simvq_codebook_is_the_frozen_one_times_the_matrix() -> None:
    quantizer = SimVQ(3, 40)
    frozen, matrix = quantizer.wrapped.frozen_codebook, quantizer.wrapped.code_transform.weight
    codes = torch.stack([torch.stack([row @ code for row in matrix]) for code in frozen])
    latent = latent_for(quantizer)
    points = latent.permute(0, 2, 3, 1)
    nearest = (points[..., None, :] - codes).double().square().sum(-1).argmin(-1)
    output = quantizer(latent)
    assert torch.equal(output.indices[..., 0], nearest)
    torch.testing.assert_close(output.quantized, codes[nearest].permute(0, 3, 1, 2))
    squares = (points - codes[nearest]).square().mean().item()
    assert output.loss.item() == pytest.approx(1.25 * squares, rel=1e-5)
    assert [name for name, _ in quantizer.named_parameters()] == ["wrapped.code_transform.weight"]


@pytest.mark.parametrize(
    ("latent", "levels", "code"),
    [
        # odd L: round(tanh(z) · (L - 1)/2), of L = 5 one of -2 … 2, over 2
        ([-9.0, -0.6, 0.1, 0.6, 9.0], [5, 5, 5, 5, 5], [-1.0, -0.5, 0.0, 0.5, 1.0]),
        # even L = 4: one of -2 … 1, over 2; 0 stays 0, and the bounds are those of the levels
        ([-9.0, -0.7, 0.0, 0.7, 9.0], [4, 4, 4, 4, 4], [-1.0, -0.5, 0.0, 0.5, 0.5]),
        ([-9.0, 0.0, 9.0], [3, 7, 8], [-1.0, 0.0, 0.75]),
    ],
)
def test_fsq_levels_by_hand(latent: list[float], levels: list[int], code: list[float]) -> None:
    quantizer = FSQ(levels)
    output = quantizer(column(latent))
    assert output.quantized.flatten().tolist() == code
    place_values = [math.prod(levels[:channel]) for channel in range(len(levels))]
    digits = [round(c * (length // 2)) + length // 2 for c, length in zip(code, levels, strict=True)]
    assert output.indices.item() == sum(digit * place for digit, place in zip(digits, place_values, strict=True))
    assert output.loss.item() == 0
    assert output.terms == {}


def test_fsq_sizes() -> None:
    quantizer = FSQ([8, 5, 4], num_groups=2)
    assert (quantizer.codebook_size, quantizer.num_groups, quantizer.latent_channels) == (160, 2, 6)
    assert quantizer.bits_per_position == pytest.approx(2 * math.log2(160))


def test_fsq_indices_of_large_codebooks_are_exact() -> None:
    """Added up in float32, as in the library, they would not be: V = 2,001,000,000."""
    quantizer = FSQ([1000, 2001, 1000])
    indices = torch.randint(quantizer.codebook_size, (1, 100, 100, 1))
    codes = quantizer.indices_to_quantized(indices)
    half = torch.tensor([500, 1000, 500]).view(1, 3, 1, 1)
    width = (torch.tensor([1000, 2001, 1000]).view(1, 3, 1, 1) - 1) * 1.001 / 2
    offset = torch.tensor([0.5, 0.0, 0.5]).view(1, 3, 1, 1)
    # the latent that is bounded to the code: the inverse of (tanh(z + shift) · width - offset) / half
    latent = torch.atanh((codes.double() * half + offset) / width) - torch.atanh(offset / width)
    assert torch.equal(quantizer.latent_to_indices(latent), indices)


@pytest.mark.parametrize("groups", [1, 3])
def test_lfq_bits_are_signs(groups: int) -> None:
    quantizer = LFQ(16, num_groups=groups)
    assert quantizer.latent_channels == 4 * groups
    latent = latent_for(quantizer)
    output = quantizer(latent)
    assert torch.equal(output.quantized, latent.sign())
    bits = (latent > 0).long().permute(0, 2, 3, 1).reshape(2, 5, 3, groups, 4)
    assert torch.equal(output.indices, (bits * torch.tensor([8, 4, 2, 1])).sum(-1))
    assert output.terms["commitment"].item() == pytest.approx((latent - latent.sign()).square().mean().item())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_bsq_codes_lie_on_the_sphere_whatever_the_scale(scale: float) -> None:
    quantizer = BSQ(8, num_groups=2)
    latent = latent_for(quantizer) * scale
    output = quantizer(latent)
    torch.testing.assert_close(output.quantized, latent.sign() / 3**0.5)
    torch.testing.assert_close(output.quantized.view(2, 2, 3, 5, 3).norm(dim=2), torch.ones(2, 2, 5, 3))
    assert output.loss.isfinite()


@pytest.mark.parametrize(
    ("make", "size", "groups"), [(LFQ, 2, 2), (LFQ, 32, 1), (LFQ, 32, 3), (BSQ, 4, 1), (BSQ, 32, 1), (BSQ, 32, 3)]
)
@pytest.mark.parametrize("temperature", [0.7, 100.0])
def test_entropies_are_those_over_all_codes(make: type[LFQ], size: int, groups: int, temperature: float) -> None:
    weights = {"entropy_weight": 0.3, "diversity_weight": 0.8, "commitment_weight": 0.0}
    quantizer = make(size, groups, inverse_temperature=temperature, **weights)
    latent = (0.3 * latent_for(quantizer)).requires_grad_()
    output = quantizer(latent)
    output.loss.backward()

    again = latent.detach().clone().requires_grad_()
    codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=quantizer.latent_channels // groups)))
    points = again.permute(0, 2, 3, 1).reshape(30, groups, -1)
    if make is BSQ:
        codes, points = codes / codes.shape[1] ** 0.5, points / points.norm(dim=-1, keepdim=True)
    log_probability = (2 * temperature * points.double() @ codes.double().T).log_softmax(dim=-1)
    probability = log_probability.exp()
    position = -(probability * log_probability).sum(-1).mean()
    mean = probability.mean(dim=0)
    batch = -torch.special.xlogy(mean, mean.clamp(min=1e-300)).sum(-1).mean()
    loss = 0.3 * (position - 0.8 * batch)
    loss.backward()
    assert output.terms["position_entropy"].item() == pytest.approx(position.item(), rel=1e-4, abs=1e-6)
    assert output.terms["batch_entropy"].item() == pytest.approx(batch.item(), rel=1e-4)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(latent.grad, again.grad, rtol=1e-3, atol=1e-5)


@each_quantizer
def test_same_as_the_library_in_evaluation(make: Callable[[], Quantizer]) -> None:
    quantizer = make().eval()
    latent = 0.3 * latent_for(quantizer)
    library = quantizer.wrapped
    if isinstance(quantizer, FSQ):
        library = vector_quantize_pytorch.FSQ(quantizer.levels, num_codebooks=quantizer.num_groups).eval()
    vectors = isinstance(quantizer, (ResidualVQ, SimVQ))
    quantized, indices, *_ = library(latent.permute(0, 2, 3, 1).reshape(2, 15, -1) if vectors else latent)
    if vectors:
        quantized = quantized.view(2, 5, 3, -1).permute(0, 3, 1, 2)
    output = quantizer(latent)
    assert torch.equal(output.indices.flatten(), indices.long().flatten())
    torch.testing.assert_close(output.quantized, quantized)


@each_quantizer
def test_what_is_not_finite_gets_an_index_in_range(make: Callable[[], Quantizer]) -> None:
    quantizer = make()
    latent = latent_for(quantizer)
    latent[0, :, 1, 1] = float("nan")
    latent[1, :, 2, 0] = float("inf")
    indices = quantizer(latent).indices
    assert indices[0, 1, 1].tolist() == indices[1, 2, 0].tolist() == [0] * quantizer.num_groups
    assert torch.equal(indices, quantizer.latent_to_indices(latent))
    assert quantizer.indices_to_quantized(indices).isfinite().all()


@each_quantizer
def test_rebuilt_copied_and_stored(make: Callable[[], Quantizer]) -> None:
    quantizer = make()
    quantizer(latent_for(quantizer)).loss  # noqa: B018
    rebuilt = type(quantizer)(**json.loads(json.dumps(quantizer.arguments)))
    rebuilt.load_state_dict(quantizer.state_dict())
    latent = latent_for(quantizer)
    expected = quantizer(latent)
    for other in (rebuilt, copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert other.arguments == quantizer.arguments
        output = other(latent)
        assert torch.equal(output.quantized, expected.quantized)
        assert torch.equal(output.indices, expected.indices)
        assert torch.equal(output.loss, expected.loss)


@each_quantizer
def test_codes_stay_in_float32_when_the_module_is_cast(make: Callable[[], Quantizer]) -> None:
    quantizer = make()
    latent = latent_for(quantizer)
    expected = quantizer(latent).quantized
    assert torch.equal(quantizer.bfloat16()(latent).quantized, expected)


@each_quantizer
def test_in_a_tokenizer(make: Callable[[], Quantizer], tmp_path: Path) -> None:
    arguments = {
        "channel_multipliers": (1, 2),
        "base_channels": 8,
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "norm_groups": 4,
    }
    tokenizer = GSQTokenizer(make(), **arguments).eval()
    rebuilt = GSQTokenizer.from_config(json.loads(json.dumps(tokenizer.config)))
    assert rebuilt.config == tokenizer.config
    tokenizer.save_pretrained(tmp_path)
    loaded = GSQTokenizer.from_pretrained(tmp_path)
    image = torch.rand(1, 3, 8, 12) * 2 - 1
    with torch.no_grad():
        indices = tokenizer.encode_indices(image)
        assert torch.equal(loaded.encode_indices(image), indices)
        assert torch.equal(tokenizer.decode_indices(indices), tokenizer(image))
        assert torch.equal(loaded.decode_indices(indices), tokenizer(image))
    tokenizer.train()
    output = tokenizer.encode(image)
    (tokenizer.decode(output.quantized).square().mean() + output.loss).backward()
    assert tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in tokenizer.quantizer.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualVQ(0, 8), "latent_channels is 0"),
        (lambda: ResidualVQ(4, 8, num_levels=0), "num_levels is 0"),
        (lambda: ResidualVQ(4, 8, commitment_weight=-1.0), "commitment_weight is -1.0"),
        (lambda: SimVQ(4, 0), "codebook_size is 0"),
        (lambda: FSQ([]), "levels is"),
        (lambda: FSQ([8, 2]), "at least 3"),
        (lambda: FSQ([8] * 11), "counts up to 2\\^31"),
        (lambda: FSQ([8], num_groups=0), "num_groups is 0"),
        (lambda: LFQ(1), "codebook_size is 1"),
        (lambda: LFQ(1000), "use 512 or 1024"),
        (lambda: LFQ(16, entropy_weight=-0.1), "entropy_weight is -0.1"),
        (lambda: LFQ(16, inverse_temperature=0.0), "inverse_temperature is 0.0"),
        (lambda: BSQ(2), "codebook_size is 2; it must be at least 4"),
        (lambda: BSQ(2**36), "num_groups=4 with codebook_size=512 is 36 bits"),
    ],
)
def test_refuses_what_cannot_work(make: Callable[[], Quantizer], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@each_quantizer
def test_on_the_meta_device(make: Callable[[], Quantizer]) -> None:
    quantizer = make()
    with torch.device("meta"):
        if isinstance(quantizer, (FSQ, LFQ)):
            with pytest.raises(InputError, match="meta device"):
                make()
            return
        empty = make()
    empty.to_empty(device="cpu").load_state_dict(quantizer.state_dict())
    latent = latent_for(quantizer)
    assert torch.equal(empty(latent).quantized, quantizer(latent).quantized)


@each_quantizer
def test_without_the_library(make: Callable[[], Quantizer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(InputError, match=r'pip install "gsq-lightning\[compare\]"'):
        make()


def test_importing_quantizers_needs_no_library() -> None:
    code = (
        "import sys; sys.modules['vector_quantize_pytorch'] = None\n"
        "from gsq_lightning.quantizers import BSQ, FSQ, LFQ, GroupedSphericalQuantizer, ResidualVQ, SimVQ\n"
        "print({'einx', 'loguru'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "bits"),
    [("vq", 13), ("gsq_g8", 104), ("rvq", 104), ("fsq", 13), ("lfq", 13), ("bsq", 13), ("simvq", 13)],
)
@pytest.mark.filterwarnings("error")
def test_overlays(name: str, bits: int) -> None:
    text = (OVERLAYS / f"{name}.yaml").read_text()
    given = yaml.safe_load(text)["model"]["tokenizer"]["init_args"]["quantizer"]
    quantizer = getattr(quantizers, given["class_path"].rpartition(".")[2])(**given["init_args"])
    assert quantizer.codebook_size == 8192
    assert quantizer.bits_per_position == bits
    assert f"{bits} bits per position" in text.splitlines()[0]
    assert given["init_args"].items() <= quantizer.arguments.items()


def test_every_overlay_is_tested() -> None:
    assert {path.stem for path in OVERLAYS.glob("*.yaml")} == {"vq", "gsq_g8", "rvq", "fsq", "lfq", "bsq", "simvq"}


@each_quantizer
def test_latents_of_another_shape_are_refused(make: Callable[[], Quantizer]) -> None:
    quantizer = make()
    latent = latent_for(quantizer)
    for wrong in (latent[..., 0], latent[..., None], latent[:, 1:]):
        for call in (quantizer, quantizer.latent_to_indices):
            with pytest.raises(InputError, match=re.escape(f"{tuple(wrong.shape)}; it must be (B, D, h, w), D = ")):
                call(wrong)
