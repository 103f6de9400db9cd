"""What each network minimizes: terms, weights, when they count, and who gets gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, InputError
from gsq_lightning.discriminators import (
    DifferentiableAugmentation,
    DINODiscriminator,
    Discriminator,
    PatchDiscriminator,
    ProjectedDiscriminator,
    StyleGANDiscriminator,
)
from gsq_lightning.losses import EfficientNetLoss, GradientPenalty, Loss, LossWeights, Objective, PerceptualLoss
from gsq_lightning.losses.objective import frozen
from gsq_lightning.pretrained.efficientnet import load_efficientnet_lite0
from gsq_lightning.quantizers import QuantizerOutput

Build = Callable[..., GSQTokenizer]

ADVERSARIES: dict[str, Callable[[], Discriminator]] = {
    "NLD": lambda: PatchDiscriminator(channels=8, num_layers=1),
    "SGD": lambda: StyleGANDiscriminator(channels=4, multipliers=(1, 2)),
    "DD": lambda: DINODiscriminator(
        weights="random", input_size=28, kernel_size=3, augmentation=DifferentiableAugmentation()
    ),
}


class Difference(PerceptualLoss):
    """Mean absolute error."""

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        return (reconstruction - image).abs().mean()


def losses(tokenizer: GSQTokenizer, objective: Objective, step: int = 0) -> tuple[Loss, Loss | None]:
    """Of both networks, on two random images."""
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    output = tokenizer.encode(image)
    reconstruction = tokenizer.decode(output.quantized)
    generator = objective.generator(image, output, reconstruction, tokenizer.decoder.last_layer, step)
    trains = objective.trains_discriminator(step)
    return generator, objective.discriminate(image, reconstruction.detach()) if trains else None


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_each_loss_leaves_the_other_network_alone(small_tokenizer: Build, adversary: str) -> None:
    tokenizer, discriminator = small_tokenizer(), ADVERSARIES[adversary]()
    discriminator.load()
    generator_loss, discriminator_loss = losses(tokenizer, Objective(LossWeights(), discriminator))
    assert discriminator_loss is not None

    def with_gradients(network: nn.Module) -> set[bool]:
        return {parameter.grad is not None for parameter in network.parameters()}

    generator_loss.total.backward()
    assert with_gradients(tokenizer) == {True}
    assert with_gradients(discriminator) == {False}
    tokenizer.zero_grad()
    discriminator_loss.total.backward()
    assert with_gradients(tokenizer) == {False}
    assert with_gradients(discriminator) == {True}


def test_what_a_user_froze_stays_frozen() -> None:
    """A frozen backbone inside a discriminator is not trained after the first generator step."""
    network = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    before = [parameter.requires_grad for parameter in network.parameters()]
    assert before == [False, False, True, True]
    with frozen(network):
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert [parameter.requires_grad for parameter in network.parameters()] == before
    with pytest.raises(ZeroDivisionError), frozen(network):
        raise ZeroDivisionError
    assert [parameter.requires_grad for parameter in network.parameters()] == before


def test_one_table_gives_the_sum_and_the_log() -> None:
    loss = Loss()
    loss.add("first", torch.tensor(2.0), 3.0)
    loss.add("second", torch.tensor(5.0, requires_grad=True), torch.tensor(0.5))
    loss.observe("third", torch.tensor(7.0, requires_grad=True))
    assert loss.total.item() == 3 * 2 + 0.5 * 5
    assert {name: value.item() for name, value in loss.log.items()} == {"loss_first": 2, "loss_second": 5, "third": 7}
    assert not any(value.requires_grad for value in loss.log.values())


def test_the_generator_minimizes_the_weighted_sum(small_tokenizer: Build) -> None:
    weights = LossWeights(reconstruction=2.0, perceptual=0.7, adversarial=0.3, quantizer=0.5)
    objective = Objective(weights, ADVERSARIES["NLD"](), Difference())
    generator, discriminator = losses(small_tokenizer(), objective)
    terms = {name: float(value) for name, value in generator.log.items()}
    expected = (
        2.0 * terms["loss_reconstruction"]
        + 0.7 * terms["loss_perceptual"]
        + 0.3 * terms["loss_adversarial"]
        + 0.5 * terms["loss_quantizer"]
    )
    assert generator.total.item() == pytest.approx(expected)
    assert discriminator is not None
    assert discriminator.total.item() == pytest.approx(float(discriminator.log["loss_discriminator"]))


class PixelMean(Discriminator):
    """One logit: the mean of an image, whose gradient is 1/n in each of n values."""

    def forward(self, image: Tensor) -> Tensor:
        return image.mean(dim=(1, 2, 3))[:, None]


@pytest.mark.parametrize(("kind", "penalty"), [("r1", 4 / 12), ("wgan_gp", (12**-0.5 - 1) ** 2)])
def test_the_discriminator_minimizes_the_weighted_sum(kind: GradientPenalty, penalty: float) -> None:
    """Logits 0.5 and -0.25; hinge ½ (0.5 + 0.75), LeCam (0.5 + 0.5)² + (2 + 0.25)² with averages 2 and -0.5."""
    weights = LossWeights(discriminator=0.7, lecam=0.2, gradient_penalty=3.0)
    objective = Objective(weights, PixelMean(), gradient_penalty=kind)
    assert objective.lecam is not None
    objective.lecam.real_average.fill_(2.0)
    objective.lecam.fake_average.fill_(-0.5)
    loss = objective.discriminate(torch.full((1, 3, 2, 2), 0.5), torch.full((1, 3, 2, 2), -0.25))
    terms = {name: value.item() for name, value in loss.log.items()}
    assert terms == pytest.approx(
        {
            "loss_discriminator": 0.625,
            "loss_lecam": 1.0 + 2.25**2,
            "loss_gradient_penalty": penalty,
            "logits_real": 0.5,
            "logits_fake": -0.25,
            "accuracy_real": 1.0,
            "accuracy_fake": 1.0,
        }
    )
    assert loss.total.item() == pytest.approx(0.7 * 0.625 + 0.2 * (1.0 + 2.25**2) + 3.0 * penalty)


@pytest.mark.parametrize(("maximum", "ratio"), [(1e4, 5.0), (4.0, 4.0)])
def test_the_adaptive_weight_is_of_reconstruction_and_perceptual_loss(maximum: float, ratio: float) -> None:
    """Of a reconstruction w = 0.5 of black: 2 w² + 3 |w| has the slope 2 + 3, the adversarial loss -w has -1."""
    objective = Objective(
        LossWeights(reconstruction=2.0, perceptual=3.0, adversarial=0.1, quantizer=1.0),
        PixelMean(),
        Difference(),
        adversarial_loss="hinge",
        adaptive_weight=True,
        adaptive_weight_maximum=maximum,
    )
    last_layer = torch.tensor(0.5, requires_grad=True)
    output = QuantizerOutput(torch.empty(0), torch.empty(0), loss=7 * last_layer, terms={})
    loss = objective.generator(torch.zeros(1, 3, 2, 2), output, last_layer.expand(1, 3, 2, 2), last_layer, step=0)
    assert loss.log["adaptive_weight"].item() == pytest.approx(ratio)
    assert loss.total.item() == pytest.approx(2.0 * 0.25 + 3.0 * 0.5 - 0.1 * ratio * 0.5 + 3.5)


def test_the_quantizers_loss_has_the_weight_of_the_reconstruction_unless_it_is_given() -> None:
    """As in the paper's reference, where λrec multiplies both (Table 4's rows with 4 and 5)."""
    assert LossWeights(reconstruction=5.0).of_quantizer == 5.0
    assert LossWeights(reconstruction=5.0, quantizer=1.0).of_quantizer == 1.0
    assert LossWeights(reconstruction=5.0, quantizer=0.0).of_quantizer == 0.0


def test_weights_that_train_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="leaves the codebook untrained"):
        Objective(LossWeights(reconstruction=0.0), perceptual_loss=Difference())
    Objective(LossWeights(reconstruction=0.0, quantizer=1.0), perceptual_loss=Difference())
    with pytest.raises(InputError, match="nothing that the decoder would learn from"):
        Objective(LossWeights(reconstruction=0.0, quantizer=1.0))


def test_a_term_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(InputError, match=r"the loss term perceptual has shape \(4,\); it must be a scalar"):
        Loss().add("perceptual", torch.zeros(4))


def test_a_weight_of_0_skips_the_work(small_tokenizer: Build) -> None:
    class Untouchable(Discriminator):
        def forward(self, image: Tensor) -> Tensor:
            raise AssertionError("the generator's loss must not run the discriminator")

    class Unloadable(PerceptualLoss):
        def load(self) -> None:
            raise AssertionError("must not be loaded")

        def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
            raise AssertionError("must not run")

    objective = Objective(LossWeights(adversarial=0.0, perceptual=0.0), Untouchable(), Unloadable())
    objective.load()
    image = torch.rand(2, 3, 16, 16)
    tokenizer = small_tokenizer()
    output = tokenizer.encode(image)
    objective.generator(image, output, tokenizer.decode(output.quantized), tokenizer.decoder.last_layer, 0)


def test_adversarial_weight_starts_and_rises() -> None:
    objective = Objective(
        LossWeights(adversarial=0.5),
        ADVERSARIES["NLD"](),
        discriminator_start_step=1,
        adversarial_start_step=2,
        adversarial_ramp_steps=4,
    )
    assert [objective.adversarial_weight(step) for step in range(7)] == [0.0, 0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    assert [objective.trains_discriminator(step) for step in range(3)] == [False, True, True]
    with_the_discriminator = Objective(LossWeights(adversarial=0.5), ADVERSARIES["NLD"](), discriminator_start_step=2)
    assert [with_the_discriminator.adversarial_weight(step) for step in range(4)] == [0.0, 0.0, 0.5, 0.5]


def test_lecam_moves_with_the_means_of_a_step() -> None:
    objective = Objective(LossWeights(lecam=0.1), ADVERSARIES["NLD"]())
    assert objective.lecam is not None
    objective.after_step({"loss_tokenizer": torch.tensor(1.0)})  # a step without the discriminator
    objective.after_step({"logits_real": torch.tensor(2.0), "logits_fake": torch.tensor(-1.0)})
    assert objective.lecam.real_average.item() == pytest.approx(0.002, rel=1e-4)
    assert objective.lecam.fake_average.item() == pytest.approx(-0.001, rel=1e-4)


@pytest.mark.parametrize("option", ["discriminator_start_step", "adversarial_start_step", "adversarial_ramp_steps"])
def test_steps_without_a_discriminator_are_refused(option: str) -> None:
    with pytest.raises(InputError, match=f"{option} 5 has no effect without a discriminator"):
        Objective(LossWeights(), **{option: 5})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({"lecam": 0.1}, {}, "loss_weights.lecam 0.1 has no effect without a discriminator"),
        ({"gradient_penalty": 10.0}, {}, "loss_weights.gradient_penalty 10.0 has no effect without a discriminator"),
        ({}, {"adaptive_weight": True}, "adaptive_weight True has no effect without a discriminator"),
    ],
)
def test_options_without_a_discriminator_are_refused(
    weights: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Objective(LossWeights(**weights), **options)


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({"discriminator": 0.0}, {}, "loss_weights.discriminator is 0: the discriminator would judge without"),
        ({"adversarial": 0.0}, {"adaptive_weight": True}, "adaptive_weight has no effect where loss_weights.adv"),
        (
            {"reconstruction": 0.0, "quantizer": 1.0},
            {"adaptive_weight": True},
            "the ratio to reconstruction and perceptual loss, which both have weight 0",
        ),
        ({"adversarial": 0.0}, {"adversarial_ramp_steps": 3}, "adversarial_ramp_steps 3 has no effect where"),
        ({}, {"adaptive_weight_maximum": 10.0}, "adaptive_weight_maximum 10.0 has no effect without adaptive_weight"),
        ({}, {"gradient_penalty": "wgan_gp"}, "gradient_penalty wgan_gp has no effect where"),
        (
            {},
            {"discriminator_start_step": 9, "adversarial_start_step": 3},
            "adversarial_start_step 3 is before discriminator_start_step 9",
        ),
        ({}, {"adversarial_loss": "Hinge"}, "adversarial_loss is 'Hinge'; it must be one of: vanilla, hinge, non_sat"),
        ({}, {"discriminator_loss": "wgan"}, "discriminator_loss is 'wgan'; it must be one of: vanilla, hinge"),
        ({}, {"adversarial_ramp_steps": -1}, "adversarial_ramp_steps is -1; it must be at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(weights: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Objective(LossWeights(**weights), ADVERSARIES["NLD"](), **options)


def test_gradient_penalty_is_refused_where_there_is_no_second_derivative() -> None:
    with pytest.raises(InputError, match="DINODiscriminator has no second derivatives; set it to 0"):
        Objective(LossWeights(gradient_penalty=10.0), DINODiscriminator())


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_loss_weights_that_are_no_weights_are_refused(weight: float) -> None:
    with pytest.raises(InputError, match=r"loss_weights.adversarial is .*; it must be a number of at least 0"):
        LossWeights(adversarial=weight)


def test_what_small_batches_change_is_named(small_tokenizer: Build) -> None:
    quantizer = GroupedSphericalQuantizer(8, 32, 2, entropy_weight=0.1)
    plain = Objective(LossWeights(), PatchDiscriminator(channels=8, num_layers=1, norm="none"))
    assert plain.seen_in_parts(small_tokenizer().quantizer, accumulate_batches=4, ranks=2) == []
    everything = Objective(LossWeights(), ADVERSARIES["NLD"](), adaptive_weight=True)
    assert everything.seen_in_parts(quantizer, accumulate_batches=1, ranks=1) == []
    # over ranks the others are exact
    assert everything.seen_in_parts(quantizer, accumulate_batches=1, ranks=2) == ["the discriminator's batch norm"]
    parts = everything.seen_in_parts(quantizer, accumulate_batches=2, ranks=1)
    assert parts == ["entropy", "adaptive weight", "the discriminator's batch norm"]


@pytest.mark.parametrize(
    ("autocast", "adaptive"), [(False, False), (True, False), (False, True)], ids=["float32", "bf16", "adaptive"]
)
def test_loss_and_discriminator_on_one_trunk_look_once_at_each_image(
    small_tokenizer: Build, autocast: bool, adaptive: bool
) -> None:
    """Losses and gradients of both networks are those of two trunks."""

    def step(shared: bool) -> tuple[list[dict[str, Tensor]], list[Tensor], list[int]]:
        torch.manual_seed(0)
        tokenizer, discriminator = small_tokenizer(), ProjectedDiscriminator("random", head_channels=8)
        if not shared:
            discriminator.load()  # a trunk of its own
        weights = LossWeights(perceptual=0.3, adversarial=0.5)
        loss = EfficientNetLoss("random")
        objective = Objective(weights, discriminator, loss, adaptive_weight=adaptive)
        objective.load()
        assert discriminator.trunk is not None
        seen: list[int] = []
        for stem in {loss.features.body.stem, discriminator.trunk.network[0].body.stem}:  # type: ignore[index]
            stem.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
        image = torch.rand(2, 3, 32, 32) * 2 - 1
        # without autocast, whose roundings would make 3 % of a difference in the last bit
        output = tokenizer.encode(image)
        reconstruction = tokenizer.decode(output.quantized)
        with objective.within_step(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            last_layer = tokenizer.decoder.last_layer
            generated = objective.generator(image, output, reconstruction, last_layer, step=0)
            generated.total.backward()
            judged = objective.discriminate(image, reconstruction.detach())
            judged.total.backward()
        gradients = [one.grad for network in (tokenizer, discriminator) for one in network.parameters()]
        return [generated.log, judged.log], gradients, seen

    (logs, gradients, seen), (expected_logs, expected, seen_by_two) = step(True), step(False)
    assert seen == [2, 2]
    assert sum(seen_by_two) == 8
    for log, other in zip(logs, expected_logs, strict=True):
        torch.testing.assert_close(log, other, rtol=1e-5, atol=1e-6)
    for gradient, other in zip(gradients, expected, strict=True):
        assert (gradient - other).norm() <= 1e-4 * other.norm()


def test_a_trunk_of_other_weights_is_not_shared(tmp_path: Path) -> None:
    torch.save(load_efficientnet_lite0("random").state_dict(), tmp_path / "trunk.pth")
    loss, discriminator = EfficientNetLoss("random"), ProjectedDiscriminator(str(tmp_path / "trunk.pth"))
    Objective(LossWeights(), discriminator, loss).load()
    assert discriminator.trunk is not None
    assert discriminator.trunk.network[0] is not loss.features  # type: ignore[index]
