"""What each network minimizes (GSQ, arXiv 2412.02632, sections 3 and 4).

tokenizer      λrec · mse + λp · perceptual + λadv · adversarial + λq · quantizer
discriminator  λdisc · gan + lecam + gradient penalty

Defaults are the paper's. λadv may start late and rise, or be scaled by the ratio of gradients (adaptive weight).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields

from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.discriminators import Discriminator, ProjectedDiscriminator
from gsq_lightning.errors import one_of, require, require_at_least
from gsq_lightning.losses.adversarial import AdversarialLoss, discriminator_loss, generator_loss
from gsq_lightning.losses.efficientnet import EfficientNetLoss
from gsq_lightning.losses.perceptual import PerceptualLoss
from gsq_lightning.losses.regularizers import (
    ADAPTIVE_WEIGHT_MAXIMUM,
    GradientPenalty,
    LeCamRegularizer,
    adaptive_weight,
    gradient_penalty,
)
from gsq_lightning.pretrained.efficientnet import EfficientNetFeatures
from gsq_lightning.pretrained.frozen import FrozenNetwork
from gsq_lightning.quantizers import Quantizer, QuantizerOutput


@dataclass(frozen=True)
class LossWeights:
    """Factors of the loss terms. Defaults are the paper's (section 4).

    At 0 the perceptual, adversarial, LeCam and gradient penalty terms are not computed. Reconstruction and quantizer
    always are, for the log.

    Args:
        reconstruction: λrec, of the mean squared error over pixels in [-1, 1].
        perceptual: λp, of the perceptual loss.
        adversarial: λadv, of the generator's GAN loss.
        quantizer: λq, of the quantizer's own loss; by default λrec, which multiplies it too in the paper's reference,
            and must then be above 0.
        discriminator: λdisc, of the discriminator's GAN loss.
        lecam: weight of the LeCam regularizer in the discriminator's loss (0.001 in Table 11).
        gradient_penalty: weight of the gradient penalty in the discriminator's loss (10 in Table 11).
    """

    reconstruction: float = 1.0
    perceptual: float = 1.0
    adversarial: float = 0.1
    quantizer: float | None = None
    discriminator: float = 1.0
    lecam: float = 0.0
    gradient_penalty: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            weight = getattr(self, field.name)
            require(
                weight is None or 0 <= weight < math.inf,
                f"loss_weights.{field.name} is {weight}; it must be a number of at least 0 (0 leaves it out)",
            )

    @property
    def of_quantizer(self) -> float:
        """λq."""
        return self.reconstruction if self.quantizer is None else self.quantizer


class Loss:
    """A sum of weighted terms: one table gives the loss and its log.

    Attributes:
        terms: by name, each a scalar and its factor.
        observed: scalars that are logged only, by name.
    """

    def __init__(self) -> None:
        self.terms: dict[str, tuple[Tensor, float | Tensor]] = {}
        self.observed: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor, weight: float | Tensor = 1.0) -> None:
        """Adds a term, a mean over images; logged, without its factor, as `loss_NAME`.

        Raises:
            InputError: for what is no scalar.
        """
        require(value.ndim == 0, f"the loss term {name} has shape {tuple(value.shape)}; it must be a scalar")
        self.terms[name] = (value, weight)

    def observe(self, name: str, value: Tensor) -> None:
        """Logs a scalar, a mean over images."""
        self.observed[name] = value.detach()

    @property
    def total(self) -> Tensor:
        """The loss to minimize."""
        first, *others = (weight * value for value, weight in self.terms.values())
        return sum(others, start=first)

    @property
    def log(self) -> dict[str, Tensor]:
        return {f"loss_{name}": value.detach() for name, (value, _) in self.terms.items()} | self.observed


class Objective:
    """The losses of both networks at each step.

    Args:
        weights: factors of the terms.
        discriminator: or none: then no option that needs one may be given.
        perceptual_loss: or none.
        others: see `TokenizerModule`.

    Attributes:
        lecam: has state that belongs into checkpoints; None where its weight is 0.

    Raises:
        InputError: for values that make no sense, and options without effect.
    """

    def __init__(
        self,
        weights: LossWeights,
        discriminator: Discriminator | None = None,
        perceptual_loss: PerceptualLoss | None = None,
        adversarial_loss: AdversarialLoss = "non_saturating",
        discriminator_loss: AdversarialLoss = "hinge",
        discriminator_start_step: int = 0,
        adversarial_start_step: int = 0,
        adversarial_ramp_steps: int = 0,
        adaptive_weight: bool = False,
        adaptive_weight_maximum: float = ADAPTIVE_WEIGHT_MAXIMUM,
        gradient_penalty: GradientPenalty = "r1",
    ) -> None:
        self.weights = weights
        self.perceptual_loss = perceptual_loss
        self.discriminator = discriminator
        self.adversarial_loss: AdversarialLoss = adversarial_loss
        self.discriminator_loss: AdversarialLoss = discriminator_loss
        self.discriminator_start_step = discriminator_start_step
        self.adversarial_start_step = adversarial_start_step
        self.adversarial_ramp_steps = adversarial_ramp_steps
        self.adaptive_weight = adaptive_weight
        self.adaptive_weight_maximum = adaptive_weight_maximum
        self.gradient_penalty: GradientPenalty = gradient_penalty
        self.lecam = LeCamRegularizer() if weights.lecam > 0 else None
        self._shared: EfficientNetFeatures | None = None  # used by both perceptual loss and discriminator
        self._check_options()

    def _check_options(self) -> None:
        """Raises InputError for values that make no sense, and options without effect."""
        weights, maximum = self.weights, self.adaptive_weight_maximum
        one_of("adversarial_loss", self.adversarial_loss, AdversarialLoss)
        one_of("discriminator_loss", self.discriminator_loss, AdversarialLoss)
        one_of("gradient_penalty", self.gradient_penalty, GradientPenalty)
        require(maximum > 0, f"adaptive_weight_maximum is {maximum}; it must be above 0")
        require(
            self.adaptive_weight or maximum == ADAPTIVE_WEIGHT_MAXIMUM,
            f"adaptive_weight_maximum {maximum} has no effect without adaptive_weight; leave it out",
        )
        require(
            weights.gradient_penalty > 0 or self.gradient_penalty == "r1",
            f"gradient_penalty {self.gradient_penalty} has no effect where loss_weights.gradient_penalty is 0; "
            "leave it out",
        )
        require(
            weights.quantizer is not None or weights.reconstruction > 0,
            "loss_weights.reconstruction 0 leaves the codebook untrained, as loss_weights.quantizer is the same where "
            "it is not given; give it",
        )
        terms = {
            weights.reconstruction,
            weights.perceptual if self.perceptual_loss else 0.0,
            weights.adversarial if self.discriminator else 0.0,
        }
        require(max(terms) > 0, "no loss term has a weight above 0: there is nothing that the decoder would learn from")
        steps = {
            "discriminator_start_step": self.discriminator_start_step,
            "adversarial_start_step": self.adversarial_start_step,
            "adversarial_ramp_steps": self.adversarial_ramp_steps,
        }
        require_at_least(0, **steps)
        if self.discriminator is not None:
            self._check_adversarial_options(self.discriminator)
            return
        penalties = {"loss_weights.lecam": weights.lecam, "loss_weights.gradient_penalty": weights.gradient_penalty}
        for name, value in {**steps, "adaptive_weight": self.adaptive_weight, **penalties}.items():
            require(not value, f"{name} {value} has no effect without a discriminator; set it to {type(value)(0)}")

    def _check_adversarial_options(self, discriminator: Discriminator) -> None:
        """Those that concern the discriminator and the adversarial loss."""
        weights, start = self.weights, self.adversarial_start_step
        require(
            weights.discriminator > 0,
            "loss_weights.discriminator is 0: the discriminator would judge without being trained; leave it out",
        )
        require(
            weights.gradient_penalty == 0 or discriminator.supports_gradient_penalty,
            f"loss_weights.gradient_penalty is {weights.gradient_penalty}, but {type(discriminator).__name__} has no "
            "second derivatives; set it to 0, or use PatchDiscriminator or StyleGANDiscriminator",
        )
        for name in ("adversarial_start_step", "adversarial_ramp_steps"):
            require(
                weights.adversarial > 0 or getattr(self, name) == 0,
                f"{name} {getattr(self, name)} has no effect where loss_weights.adversarial is 0; set it to 0",
            )
        require(
            weights.adversarial > 0 or not self.adaptive_weight,
            "adaptive_weight has no effect where loss_weights.adversarial is 0; set it to false",
        )
        require(
            not self.adaptive_weight
            or max(weights.reconstruction, weights.perceptual if self.perceptual_loss else 0) > 0,
            "adaptive_weight is the ratio to reconstruction and perceptual loss, which both have weight 0: the "
            "adversarial loss would have none either; set it to false",
        )
        require(
            start == 0 or start >= self.discriminator_start_step,
            f"adversarial_start_step {start} is before discriminator_start_step {self.discriminator_start_step}, from "
            "which on there is an adversarial loss; set it to 0",
        )

    def load(self) -> None:
        """Loads the networks that only training uses. Raises WeightsMissing."""
        self.load_perceptual_loss()
        self.load_discriminator()

    def load_perceptual_loss(self) -> None:
        """Loads it, where its weight is above 0. Raises WeightsMissing."""
        if self.perceptual_loss is not None and self.weights.perceptual > 0:
            self.perceptual_loss.load()

    def load_discriminator(self) -> None:
        """Loads it; called after `load_perceptual_loss`, whose network it may share. Raises WeightsMissing."""
        loss, discriminator = self.perceptual_loss, self.discriminator
        if (
            isinstance(loss, EfficientNetLoss)
            and loss.network is not None
            and isinstance(discriminator, ProjectedDiscriminator)
            and loss.weights == discriminator.weights
        ):
            self._shared = loss.features
            discriminator.share_trunk(loss.features)
        if discriminator is not None:
            discriminator.load()

    def frozen_networks(self) -> list[nn.Module]:
        """What perceptual loss and discriminator look through, to be compiled.

        None where there is a gradient penalty: the compiler has no second derivatives.
        """
        if self.weights.gradient_penalty > 0:
            return []
        parts = [part for part in (self.perceptual_loss, self.discriminator) if part is not None]
        return [one.network for part in parts for one in part.modules() if isinstance(one, FrozenNetwork)]

    def trains_discriminator(self, step: int) -> bool:
        return self.discriminator is not None and step >= self.discriminator_start_step

    def adversarial_weight(self, step: int) -> float:
        """λadv at a generator step: 0 before its start, then up the ramp."""
        since = step - max(self.adversarial_start_step, self.discriminator_start_step)
        if self.discriminator is None or since < 0:
            return 0.0
        share = min(1.0, (since + 1) / self.adversarial_ramp_steps) if self.adversarial_ramp_steps else 1.0
        return self.weights.adversarial * share

    def seen_in_parts(self, quantizer: Quantizer, accumulate_batches: int, ranks: int) -> list[str]:
        """Terms that are no means over images: accumulated or distributed, a batch gives them other gradients."""
        terms = []
        if accumulate_batches > 1:
            terms += quantizer.whole_batch_terms + ["adaptive weight"] * self.adaptive_weight
        if self.discriminator is not None and (accumulate_batches > 1 or ranks > 1):
            norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
            if any(isinstance(module, norms) for module in self.discriminator.modules()):
                terms.append("the discriminator's batch norm")
        return terms

    @contextmanager
    def within_step(self) -> Iterator[None]:
        """Surrounds both losses of a batch."""
        with ExitStack() as stack:
            for part in (self.discriminator, self._shared):
                if part is not None:
                    stack.enter_context(part.within_step())
            yield

    def generator(
        self, image: Tensor, output: QuantizerOutput, reconstruction: Tensor, last_layer: Tensor, step: int
    ) -> Loss:
        """What tokenizer and quantizer minimize.

        Args:
            image, reconstruction: (B, 3, H, W), the image in [-1, 1].
            output: of the quantizer.
            last_layer: weight of the decoder's last layer, for the adaptive weight.
            step: generator steps so far.
        """
        loss = Loss()
        loss.add("reconstruction", F.mse_loss(reconstruction.float(), image.float()), self.weights.reconstruction)
        if self.perceptual_loss is not None and self.weights.perceptual > 0:
            loss.add("perceptual", self.perceptual_loss(reconstruction, image), self.weights.perceptual)
        weight = self.adversarial_weight(step)
        if self.discriminator is not None and weight > 0:
            with frozen(self.discriminator):
                adversarial = generator_loss(self.discriminator(reconstruction), self.adversarial_loss)
            factor: float | Tensor = weight
            if self.adaptive_weight:
                ratio = adaptive_weight(loss.total, adversarial, last_layer, self.adaptive_weight_maximum)
                loss.observe("adaptive_weight", ratio)
                factor = weight * ratio
            loss.add("adversarial", adversarial, factor)
        loss.add("quantizer", output.loss, self.weights.of_quantizer)
        for name, value in output.terms.items():
            loss.observe(f"quantizer_{name}", value)
        return loss

    def discriminate(self, image: Tensor, reconstruction: Tensor) -> Loss:
        """The discriminator's loss.

        Args:
            image, reconstruction: (B, 3, H, W), the image in [-1, 1]; no gradient flows to them.
        """
        assert self.discriminator is not None
        loss = Loss()
        real, fake = self.discriminator.forward_pair(image, reconstruction)
        loss.add("discriminator", discriminator_loss(real, fake, self.discriminator_loss), self.weights.discriminator)
        if self.lecam is not None:
            loss.add("lecam", self.lecam(real, fake), self.weights.lecam)
        if self.weights.gradient_penalty > 0:
            penalty = gradient_penalty(self.discriminator, image, reconstruction, self.gradient_penalty)
            loss.add("gradient_penalty", penalty, self.weights.gradient_penalty)
        loss.observe("logits_real", real.float().mean())
        loss.observe("logits_fake", fake.float().mean())
        loss.observe("accuracy_real", (real > 0).float().mean())
        loss.observe("accuracy_fake", (fake < 0).float().mean())
        return loss

    def after_step(self, means: Mapping[str, Tensor]) -> None:
        """Updates LeCam's averages from the log of a step: means over all its images."""
        if self.lecam is not None and "logits_real" in means:
            self.lecam.update(means["logits_real"], means["logits_fake"])


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within it, the network's parameters get no gradients; afterwards `requires_grad` is restored."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
