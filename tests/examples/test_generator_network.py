"""The example generator: what it calls a probability is one, and its samples follow it."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from gsq_lightning.errors import InputError
from token_generator import Sampling, TokenGenerator, TokenShape, generate
from token_generator.network import HeadName, random_mask
from token_generator.sampling import kept

SHAPE = TokenShape(num_groups=3, codebook_size=8, height=3, width=4, num_classes=5)
TINY = TokenShape(num_groups=2, codebook_size=2, height=1, width=2, num_classes=1)
LABEL = torch.tensor([0, 4, -1])


def network(shape: TokenShape = SHAPE, sharpness: float = 5.0, **options: object) -> TokenGenerator:
    """A small one in eval mode, whose weights are large enough that its distribution is far from uniform."""
    made = TokenGenerator(shape, width=16, layers=2, heads=2, **options).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= sharpness
    return made


def all_images(shape: TokenShape) -> Tensor:
    """Every image there is: (K, N, G)."""
    sizes = (shape.positions, shape.num_groups)
    codes = itertools.product(range(shape.codebook_size), repeat=sizes[0] * sizes[1])
    return torch.tensor(list(codes)).view(-1, *sizes)


@pytest.mark.parametrize("head", ["depth", "independent"])
def test_probabilities_of_all_images_add_up_to_one(head: str) -> None:
    """They would not if an index saw itself or one after it."""
    images = all_images(TINY)
    with torch.no_grad():
        nats = network(TINY, head=head)(images, torch.zeros(len(images), dtype=torch.int64))
    probabilities = (-nats.double().sum(dim=(1, 2))).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert probabilities.max() > 2 * probabilities.min()  # far from uniform


@pytest.mark.parametrize("head", ["depth", "independent"])
def test_samples_come_as_often_as_their_probability_says(head: str) -> None:
    made, images = network(TINY, head=head), all_images(TINY)
    with torch.no_grad():
        nats = made(images, torch.zeros(len(images), dtype=torch.int64))
    expected = (-nats.double().sum(dim=(1, 2))).exp()
    drawn = generate(made, torch.zeros(20_000, dtype=torch.int64)).flatten(1)
    number = (drawn * torch.tensor([8, 4, 2, 1])).sum(dim=1)
    found = number.bincount(minlength=16) / len(drawn)
    spread = (expected * (1 - expected) / len(drawn)).sqrt()
    assert ((found - expected).abs() < 5 * spread + 1e-4).all()


@pytest.mark.parametrize("head", ["depth", "independent"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_cache_changes_no_index(head: str, guidance: float) -> None:
    """Float32 sums differ in their last bits with the shape of a product; the indices drawn are the same."""
    made = network(head=head, sharpness=2)
    sampling = Sampling(temperature=0.9, top_k=6, top_p=0.95, guidance=guidance)
    with_cache, without = (generate(made, LABEL, sampling, cached=cached) for cached in (True, False))
    assert torch.equal(with_cache, without)
    assert with_cache.shape == (3, 3, 4, 3)
    assert len(with_cache.unique()) == SHAPE.codebook_size


def test_the_cache_sees_what_training_sees() -> None:
    made, indices = network().double(), torch.randint(8, (3, SHAPE.positions, 3))
    with torch.no_grad():
        expected = made.hidden(indices, LABEL)
        inputs = torch.cat([made.class_token(LABEL), made.embed(indices)[:, :-1]], dim=1) + made.position_embedding()
        cache = made.transformer.empty_cache()
        steps = [made.transformer(step[:, None], causal=True, cache=cache) for step in inputs.unbind(dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("head", ["depth", "independent"])
def test_the_likeliest_of_one_code_is_greedy(head: str) -> None:
    """Against a search: each index in turn is the one that training's loss finds likeliest."""
    made = network(head=head)
    indices = torch.zeros(3, SHAPE.positions, SHAPE.num_groups, dtype=torch.int64)
    for position, group in itertools.product(range(SHAPE.positions), range(SHAPE.num_groups)):
        losses = []
        for code in range(SHAPE.codebook_size):
            indices[:, position, group] = code
            with torch.no_grad():
                losses.append(made(indices, LABEL)[:, position, group])
        indices[:, position, group] = torch.stack(losses).argmin(dim=0)
    assert torch.equal(generate(made, LABEL, Sampling(top_k=1)).flatten(1, 2), indices)


@pytest.mark.parametrize("masked", [False, True])
def test_guidance_by_one_is_none_and_by_zero_forgets_the_class(masked: bool) -> None:
    made = network(masked=masked)
    plain = generate(made, LABEL)
    nearly = generate(made, LABEL, Sampling(guidance=1 + 1e-7))  # takes the way of guidance
    assert torch.equal(plain, nearly)
    without_class = generate(made, torch.full_like(LABEL, -1))
    assert torch.equal(generate(made, LABEL, Sampling(guidance=0)), without_class)
    assert not torch.equal(plain, without_class)
    assert not torch.equal(plain, generate(made, LABEL, Sampling(guidance=4)))


def test_the_nucleus_is_the_smallest_set_of_that_mass() -> None:
    logits = 3 * torch.randn(50, 20)
    for row, filtered in zip(logits, kept(logits, None, 0.8), strict=True):
        probabilities = row.softmax(0).double().numpy()
        order = np.argsort(-probabilities)
        size = int(np.searchsorted(np.cumsum(probabilities[order]), 0.8)) + 1
        assert set(filtered.isfinite().nonzero().flatten().tolist()) == set(order[:size].tolist())


@pytest.mark.parametrize("steps", [1, 5, 100])
def test_the_masked_variant_fills_all_positions(steps: int) -> None:
    made = network(masked=True, head="independent")
    with torch.no_grad():
        made.head.to_logits.bias.view(SHAPE.num_groups, -1)[:, 6] = 1e4  # type: ignore[union-attr, operator]
    assert (generate(made, LABEL, Sampling(steps=steps)) == 6).all()


def test_masks_cover_a_cosine_share() -> None:
    """∫ cos(π/2 · u) du = 2/π of the positions on average, at least one in each image."""
    mask = random_mask(torch.zeros(20_000, 64, 1))
    assert mask.any(dim=1).all()
    assert mask.float().mean().item() == pytest.approx(2 / np.pi, abs=0.02)
    assert mask[:, 0].float().mean().item() == pytest.approx(2 / np.pi, abs=0.02)


def test_masked_positions_are_not_seen() -> None:
    made, indices = network(masked=True), torch.randint(8, (3, SHAPE.positions, 3))
    mask = torch.zeros(3, SHAPE.positions, dtype=torch.bool)
    mask[:, 4:7] = True
    others = torch.where(mask[..., None], (indices + 1) % 8, indices)
    with torch.no_grad():
        assert torch.equal(made.hidden(indices, LABEL, mask), made.hidden(others, LABEL, mask))
        others[:, 0] = (others[:, 0] + 1) % 8
        assert not torch.equal(made.hidden(indices, LABEL, mask), made.hidden(others, LABEL, mask))


@pytest.mark.parametrize("masked", [False, True])
def test_a_generator_that_overfits_one_batch_reproduces_its_images(masked: bool) -> None:
    shape = TokenShape(num_groups=2, codebook_size=16, height=2, width=3, num_classes=4)
    made = TokenGenerator(shape, width=32, layers=1, heads=2, depth_layers=1, masked=masked)
    indices, label = torch.randint(16, (4, 6, 2)), torch.arange(4)
    optimizer = torch.optim.Adam(made.parameters(), lr=5e-3)
    for _ in range(120):
        mask = random_mask(indices) if masked else None
        nats = made(indices, label, mask)
        loss = nats.mean() if mask is None else nats[mask].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = generate(made.eval(), label, Sampling(top_k=1, choice_temperature=0, steps=6))
    assert torch.equal(drawn.flatten(1, 2), indices)


@pytest.mark.parametrize("head", ["depth", "independent"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_every_parameter_gets_a_gradient(head: HeadName, masked: bool, groups: int) -> None:
    """On several devices DDP ends a training in which one gets none."""
    made = TokenGenerator(SHAPE._replace(num_groups=groups), width=16, layers=1, heads=2, head=head, masked=masked)
    indices = torch.randint(SHAPE.codebook_size, (3, SHAPE.positions, groups))
    made(indices, LABEL, random_mask(indices) if masked else None).mean().backward()
    assert [name for name, parameter in made.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature is 0"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"steps": 0}, "steps"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="depth, independent"):
        TokenGenerator(SHAPE, head="deep")  # type: ignore[arg-type]
