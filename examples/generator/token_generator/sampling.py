"""Draws images from a generator: position by position, or masked, many positions at a time."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gsq_lightning.errors import require, require_at_least
from gsq_lightning.tokens import unflatten_tokens
from token_generator.heads import Draw, Drawn
from token_generator.network import TokenGenerator


@dataclass(frozen=True)
class Sampling:
    """How indices are drawn.

    Args:
        temperature: logits are divided by it; above 0. Smaller ones keep to what is likely.
        top_k: only the k likeliest codes are drawn from; None for all.
        top_p: only the likeliest codes that have this probability together, in (0, 1].
        guidance: classifier-free guidance (arXiv 2207.12598): logits without a class + guidance · (with − without). 1
            is none, 0 ignores the class.
        steps: passes of the masked variant, at least 1.
        choice_temperature: of the masked variant: noise on the confidence that decides which positions stay, falling to
            0 at the last step (MaskGIT's released code has 4.5).

    Raises:
        InputError: for values that make no sense.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    guidance: float = 1.0
    steps: int = 12
    choice_temperature: float = 4.5

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"temperature is {self.temperature}; it must be above 0 (top_k 1 is greedy)")
        require(self.top_k is None or self.top_k >= 1, f"top_k is {self.top_k}; it must be at least 1, or null")
        require(0 < self.top_p <= 1, f"top_p is {self.top_p}; it must be above 0 and at most 1")
        require_at_least(0, guidance=self.guidance, choice_temperature=self.choice_temperature)
        require_at_least(1, steps=self.steps)

    def draw(self, logits: Tensor, generator: torch.Generator) -> Drawn:
        """One index for each position. With guidance, (2·M, V) logits: with the class, then without."""
        logits = logits.float()
        if self.guidance != 1:
            with_class, without = logits.chunk(2)
            logits = without + self.guidance * (with_class - without)
        probabilities = F.softmax(kept(logits / self.temperature, self.top_k, self.top_p), dim=-1)
        index = torch.multinomial(probabilities, 1, generator=generator)
        return Drawn(index[:, 0], F.log_softmax(logits, dim=-1).gather(1, index)[:, 0])


def kept(logits: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """(M, V) → the same, with −∞ for what is not among the k likeliest, or not among the likeliest of mass p."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(dim=-1)
        too_far = probabilities.cumsum(dim=-1) - probabilities >= top_p  # the mass before it is enough: never the first
        logits = logits.masked_fill(torch.zeros_like(too_far).scatter(1, order, too_far), -math.inf)
    return logits


@torch.no_grad()
def generate(
    network: TokenGenerator,
    label: Tensor,
    sampling: Sampling = Sampling(),
    generator: torch.Generator | None = None,
    cached: bool = True,
) -> Tensor:
    """Images of given classes: (B,) labels, below 0 for none → indices (B, h, w, G) int64.

    Args:
        network: in eval mode.
        label: on the device of the network.
        sampling: how indices are drawn.
        generator: of random numbers, on that device; by default one with seed 0.
        cached: keep keys and values of earlier steps. Without, each step computes all of them again: slow, for tests.
    """
    random = generator or torch.Generator(label.device).manual_seed(0)
    labels = label if sampling.guidance == 1 else torch.cat([label, torch.full_like(label, -1)])

    def draw(logits: Tensor) -> Drawn:
        return sampling.draw(logits, random)

    indices = (
        _masked(network, labels, len(label), draw, sampling, random, cached)
        if network.masked
        else _autoregressive(network, labels, len(label), draw, cached)
    )
    return unflatten_tokens(indices, network.shape.height, network.shape.width)


def _autoregressive(network: TokenGenerator, labels: Tensor, images: int, draw: Draw, cached: bool) -> Tensor:
    place = network.position_embedding()
    cache = network.transformer.empty_cache() if cached else None
    steps, drawn = [network.class_token(labels) + place[0]], []
    for position in range(network.shape.positions):
        x = steps[-1] if cached else torch.cat(steps, dim=1)
        hidden = network.transformer(x, causal=True, cache=cache)[:, -1]
        drawn.append(network.head.sample(hidden, draw, cached).indices)
        if position + 1 < network.shape.positions:
            every = drawn[-1].repeat(len(labels) // images, 1)  # with guidance both halves go on with the same indices
            steps.append(network.embed(every[:, None]) + place[position + 1])
    return torch.stack(drawn, dim=1)


def _masked(
    network: TokenGenerator,
    labels: Tensor,
    images: int,
    draw: Draw,
    sampling: Sampling,
    random: torch.Generator,
    cached: bool,
) -> Tensor:
    """MaskGIT: each pass draws all masked positions and keeps the most confident, as many as a cosine leaves."""
    positions, halves = network.shape.positions, len(labels) // images
    indices = labels.new_zeros(images, positions, network.shape.num_groups)
    mask = torch.ones(images, positions, dtype=torch.bool, device=labels.device)
    image = torch.arange(images, device=labels.device)[:, None]
    left = positions  # that are masked, in each image
    for step in range(1, sampling.steps + 1):
        seen = mask.repeat(halves, 1)
        hidden = network.hidden(indices.repeat(halves, 1, 1), labels, seen)[seen]
        drawn = network.head.sample(hidden, draw, cached)
        gumbel = -torch.empty(images, left, device=labels.device).exponential_(generator=random).log()
        fade = sampling.choice_temperature * (1 - step / sampling.steps)
        confidence = drawn.log_probability.view(images, left) + fade * gumbel
        stay_masked = min(left - 1, math.floor(positions * math.cos(0.5 * math.pi * step / sampling.steps)))
        keep = confidence.topk(left - stay_masked).indices
        places = mask.nonzero()[:, 1].view(images, left).gather(1, keep)
        indices[image, places] = drawn.indices.view(images, left, -1)[image, keep]
        mask[image, places] = False
        left = stay_masked
        if left == 0:
            break
    return indices
