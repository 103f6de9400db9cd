"""The LightningModule: trains a tokenizer against a discriminator, validates it, turns images into tokens."""

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, DistributedSampler

from gsq_lightning.discriminators import Discriminator
from gsq_lightning.errors import InputError, ModelNotFinite, TrainingDiverged
from gsq_lightning.losses import (
    AdversarialLoss,
    GradientPenalty,
    LeCamRegularizer,
    LossWeights,
    PerceptualLoss,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from gsq_lightning.metrics import OriginalImages, ReconstructionMetrics
from gsq_lightning.optim.adamw import PaperAdamW
from gsq_lightning.optim.random_streams import seed_streams
from gsq_lightning.pretrained.saved import check_weights
from gsq_lightning.tokenizer import GSQTokenizer

logger = logging.getLogger(__name__)

# what cannot be written into a checkpoint as plain data when the module is made in Python
OBJECTS = (
    "tokenizer",
    "discriminator",
    "perceptual_loss",
    "metrics",
    "loss_weights",
    "tokenizer_optimizer",
    "discriminator_optimizer",
    "tokenizer_scheduler",
    "discriminator_scheduler",
)

# weights and their averages stay in float32; float16 would need its losses scaled, for two networks
PRECISIONS = ("bf16-mixed", "32-true")


class TokenBatch(NamedTuple):
    """What prediction makes of a batch of images.

    Attributes:
        indices: (B, h, w, G) int64.
        label: (B,) int64, -1 where an image has none.
        path: B file names.
    """

    indices: Tensor
    label: Tensor
    path: list[str]


class TokenizerModule(LightningModule):
    """Trains a tokenizer: GSQ-GAN with a discriminator, GSQ-VAE without (GSQ, arXiv 2412.02632, sections 3 and 4).

    One batch serves both networks: a generator step on tokenizer and quantizer, then a discriminator step on the same
    images and the detached reconstruction. `trainer.global_step` counts generator steps, so that `max_steps` means
    the same with and without a discriminator.

    With several devices the `gsq` command brings the strategy along; in Python give the Trainer
    `DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)`.

    Args:
        tokenizer: what is trained.
        discriminator: its adversary, or none.
        perceptual_loss: or none.
        metrics: what validation computes, or none.
        loss_weights: factors of the loss terms.
        adversarial_loss: of the generator. The paper's best pair is non_saturating and hinge ("NH", Table 7).
        discriminator_loss: of the discriminator.
        discriminator_start_step: generator steps before the discriminator is trained.
        adversarial_start_step: generator steps before the adversarial loss counts; never before the discriminator
            is trained.
        adversarial_ramp_steps: steps over which the adversarial weight then rises from 0 to its full value.
        adaptive_weight: multiply the adversarial weight by the ratio of the gradients of reconstruction and
            adversarial loss at the decoder's last layer (VQGAN; Table 11).
        adaptive_weight_maximum: largest value of that ratio, above 0.
        gradient_penalty: which one, where `loss_weights.gradient_penalty` asks for it.
        tokenizer_optimizer, discriminator_optimizer: parameters → optimizer.
        tokenizer_scheduler, discriminator_scheduler: optimizer → schedule, stepped once per generator step.
        tokenizer_clip_norm, discriminator_clip_norm: largest gradient norm of each network, or none.
        accumulate_batches: batches per optimizer step.
        ema_decay: of the running average of the tokenizer's weights that is validated and exported, in [0, 1), or
            none. The average starts as a copy after the first step.
        max_skipped_steps: steps with non-finite gradients are skipped and counted; after this many in a row the
            run stops.
        compile_networks: compile encoder and decoder when training starts; validation runs uncompiled.
        channels_last: keep weights and images in the layout that CUDA's convolutions prefer.

    Raises:
        InputError: for values that make no sense.
        TrainingDiverged: from training, after `max_skipped_steps`.
    """

    def __init__(
        self,
        tokenizer: GSQTokenizer,
        discriminator: Discriminator | None = None,
        perceptual_loss: PerceptualLoss | None = None,
        metrics: ReconstructionMetrics | None = None,
        loss_weights: LossWeights = LossWeights(),  # noqa: B008 - frozen
        adversarial_loss: AdversarialLoss = "non_saturating",
        discriminator_loss: AdversarialLoss = "hinge",
        discriminator_start_step: int = 0,
        adversarial_start_step: int = 0,
        adversarial_ramp_steps: int = 0,
        adaptive_weight: bool = False,
        adaptive_weight_maximum: float = 1e4,
        gradient_penalty: GradientPenalty = "r1",
        tokenizer_optimizer: OptimizerCallable = PaperAdamW,
        discriminator_optimizer: OptimizerCallable = PaperAdamW,
        tokenizer_scheduler: LRSchedulerCallable | None = None,
        discriminator_scheduler: LRSchedulerCallable | None = None,
        tokenizer_clip_norm: float | None = 2.0,
        discriminator_clip_norm: float | None = 2.0,
        accumulate_batches: int = 1,
        ema_decay: float | None = 0.999,
        max_skipped_steps: int = 50,
        compile_networks: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if accumulate_batches < 1:
            raise InputError(f"accumulate_batches is {accumulate_batches}; it must be at least 1")
        if ema_decay is not None and not 0.0 <= ema_decay < 1.0:
            raise InputError(f"ema_decay is {ema_decay}; it must be at least 0 and below 1, or null for no average")
        for name, norm in (
            ("tokenizer_clip_norm", tokenizer_clip_norm),
            ("discriminator_clip_norm", discriminator_clip_norm),
        ):
            if norm is not None and not norm > 0:
                raise InputError(f"{name} is {norm}; it must be above 0, or null for no clipping")
        for name, steps in (
            ("discriminator_start_step", discriminator_start_step),
            ("adversarial_start_step", adversarial_start_step),
            ("adversarial_ramp_steps", adversarial_ramp_steps),
        ):
            if steps < 0:
                raise InputError(f"{name} is {steps}; it must be at least 0")
        if max_skipped_steps < 1:
            raise InputError(f"max_skipped_steps is {max_skipped_steps}; it must be at least 1")
        if not adaptive_weight_maximum > 0:
            raise InputError(f"adaptive_weight_maximum is {adaptive_weight_maximum}; it must be above 0")
        if loss_weights.gradient_penalty > 0 and discriminator and not discriminator.supports_gradient_penalty:
            raise InputError(
                f"loss_weights.gradient_penalty is {loss_weights.gradient_penalty}, but {type(discriminator).__name__} "
                "has no second derivatives; set it to 0, or use PatchDiscriminator or StyleGANDiscriminator"
            )
        # from the command line the arguments arrive as plain data, which can rebuild the module
        self.save_hyperparameters(ignore=() if _given_hyperparameters.get() is not None else OBJECTS)
        self.automatic_optimization = False

        self.tokenizer = tokenizer
        self.discriminator = discriminator
        self.perceptual_loss = perceptual_loss
        self.metrics = metrics
        self.loss_weights = loss_weights
        self.adversarial_loss: AdversarialLoss = adversarial_loss
        self.discriminator_loss: AdversarialLoss = discriminator_loss
        self.discriminator_start_step = discriminator_start_step
        self.adversarial_start_step = adversarial_start_step
        self.adversarial_ramp_steps = adversarial_ramp_steps
        self.adaptive_weight = adaptive_weight
        self.adaptive_weight_maximum = adaptive_weight_maximum
        self.gradient_penalty: GradientPenalty = gradient_penalty
        self.tokenizer_optimizer = tokenizer_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.tokenizer_scheduler = tokenizer_scheduler
        self.discriminator_scheduler = discriminator_scheduler
        self.tokenizer_clip_norm = tokenizer_clip_norm
        self.discriminator_clip_norm = discriminator_clip_norm
        self.accumulate_batches = accumulate_batches
        self.ema_decay = ema_decay
        self.max_skipped_steps = max_skipped_steps
        self.compile_networks = compile_networks
        self.channels_last = channels_last
        self.lecam = LeCamRegularizer() if loss_weights.lecam > 0 else None
        self.ema: AveragedModel | None = None
        if ema_decay is not None:
            self.ema = AveragedModel(tokenizer, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)).requires_grad_(False)
        self._skipped_in_a_row = {"tokenizer": 0, "discriminator": 0}
        self._skipped_in_all = {"tokenizer": 0, "discriminator": 0}
        self._batches = 0  # of training, on this process
        self._batches_since_step = 0
        self._stream_seed: int | None = None  # of what training draws at random
        self._accumulated: dict[str, Tensor] = {}  # gradients of batches before a checkpoint that was loaded
        self.metric_values: dict[str, float] = {}  # of the last validation or test

    @property
    def evaluated_tokenizer(self) -> GSQTokenizer:
        """The averaged tokenizer once it has been averaged, else the one that is trained."""
        if self.ema is not None and int(self.ema.n_averaged) > 0:
            module = self.ema.module
            assert isinstance(module, GSQTokenizer)
            return module
        return self.tokenizer

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → reconstruction of the evaluated tokenizer."""
        return self.evaluated_tokenizer(image)

    # ------------------------------------------------------------------------------------------------ set-up

    def configure_callbacks(self) -> list[Callback]:
        """Refuses what the Trainer cannot do for two optimizers; this hook comes before the Trainer's own checks."""
        if self.trainer.gradient_clip_val is not None:
            raise InputError(
                "trainer.gradient_clip_val cannot be used with two optimizers; "
                "set model.tokenizer_clip_norm and model.discriminator_clip_norm (2.0 each by default)"
            )
        if self.trainer.accumulate_grad_batches != 1:
            raise InputError(
                "trainer.accumulate_grad_batches cannot be used with two optimizers; set model.accumulate_batches"
            )
        if self.trainer.precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision {self.trainer.precision} is not supported; use {' or '.join(PRECISIONS)}"
            )
        return []

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.load_training_networks()
            if self.channels_last:
                self.to(memory_format=torch.channels_last)
            if self.compile_networks:
                self.tokenizer.encoder.compile()
                self.tokenizer.decoder.compile()
        if stage in ("fit", "validate", "test"):
            self.load_metrics()

    def on_validation_model_zero_grad(self) -> None:
        """Keeps the gradients of a validation in the middle of an accumulation; optimizer steps clear theirs."""

    def on_fit_start(self) -> None:
        if self._stream_seed is None:
            self._stream_seed = int(self.trainer.strategy.broadcast(torch.initial_seed()))

    def on_train_start(self) -> None:
        """Takes up the gradients of a checkpoint that was written between two optimizer steps."""
        for name, parameter in self._trained_parameters():
            if name in self._accumulated:
                parameter.grad = self._accumulated[name].to(parameter)
        self._accumulated = {}

    def load_training_networks(self) -> None:
        """Gets ready what only training looks through. Raises InputError where weights are not to be had."""
        if self.perceptual_loss is not None and self.loss_weights.perceptual > 0:
            self.perceptual_loss.load()
        if self.discriminator is not None:
            self.discriminator.load()

    def load_metrics(self) -> None:
        """Gets the metrics' networks ready. Raises InputError where weights are not to be had."""
        if self.metrics is not None:
            quantizer = self.tokenizer.quantizer
            self.metrics.load(quantizer.codebook_size, quantizer.num_groups, quantizer.num_codebooks)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        try:
            return self._make_optimizers()
        except (TypeError, ValueError) as error:
            raise InputError(f"an optimizer or scheduler refuses its options: {error}") from error

    def _make_optimizers(self) -> OptimizerLRScheduler:
        optimizers = [self.tokenizer_optimizer(self.tokenizer.parameters())]
        schedulers = []
        if self.tokenizer_scheduler is not None:
            schedulers.append(self.tokenizer_scheduler(optimizers[0]))
        if self.discriminator is not None:
            optimizers.append(self.discriminator_optimizer(self.discriminator.parameters()))
            if self.discriminator_scheduler is not None:
                schedulers.append(self.discriminator_scheduler(optimizers[1]))
        return optimizers, schedulers

    # ---------------------------------------------------------------------------------------------- training

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One batch (its first item, or itself, is the image): generator step, then discriminator step."""
        assert self._stream_seed is not None
        seed_streams(self._stream_seed, self._batches, self.trainer.global_rank)
        self._batches += 1
        image = _image_of(batch)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        discriminates = self.discriminator is not None and self.global_step >= self.discriminator_start_step
        completes = self._batches_since_step + 1 >= self.accumulate_batches or self.trainer.is_last_batch
        self._batches_since_step = 0 if completes else self._batches_since_step + 1
        with (
            nullcontext() if completes else self._without_gradient_exchange(),
            self.discriminator.within_step() if self.discriminator is not None else nullcontext(),
        ):
            reconstruction = self._generator_backward(image, self._adversarial_weight() if discriminates else 0.0)
            stepped = completes and self._step_tokenizer()
            if discriminates and self.loss_weights.discriminator > 0:
                self._discriminator_backward(image, reconstruction.detach())
                if completes:
                    self._step_discriminator()
        if stepped:
            self._after_generator_step()

    def _adversarial_weight(self) -> float:
        """λadv at this step: 0 before its start, then up a ramp."""
        since = self.global_step - max(self.adversarial_start_step, self.discriminator_start_step)
        if since < 0:
            return 0.0
        share = min(1.0, (since + 1) / self.adversarial_ramp_steps) if self.adversarial_ramp_steps else 1.0
        return self.loss_weights.adversarial * share

    def _generator_backward(self, image: Tensor, adversarial_weight: float) -> Tensor:
        """Adds the generator's gradients; returns the reconstruction."""
        weights = self.loss_weights
        output = self.tokenizer.encode(image)
        reconstruction = self.tokenizer.decode(output.quantized)

        terms = {"loss_reconstruction": F.mse_loss(reconstruction.float(), image.float())}
        loss = weights.reconstruction * terms["loss_reconstruction"]
        if self.perceptual_loss is not None and weights.perceptual > 0:
            terms["loss_perceptual"] = self.perceptual_loss(reconstruction, image)
            loss = loss + weights.perceptual * terms["loss_perceptual"]
        if adversarial_weight > 0:
            terms["loss_adversarial"] = self._judged(reconstruction)
            weight: float | Tensor = adversarial_weight
            if self.adaptive_weight:
                terms["adaptive_weight"] = adaptive_weight(
                    loss,
                    terms["loss_adversarial"],
                    self.tokenizer.decoder.last_layer,
                    self.adaptive_weight_maximum,
                )
                weight = adversarial_weight * terms["adaptive_weight"]
            loss = loss + weight * terms["loss_adversarial"]
        terms["loss_quantizer"] = output.loss
        terms |= {f"quantizer_{name}": value for name, value in output.terms.items()}
        loss = loss + weights.quantizer * output.loss
        terms["loss_tokenizer"] = loss

        self.manual_backward(loss / self.accumulate_batches)
        self._log_training(terms)
        return reconstruction

    def _judged(self, reconstruction: Tensor) -> Tensor:
        """The generator's GAN loss; the discriminator's weights get no gradient of it."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(False)
        loss = generator_loss(self.discriminator(reconstruction), self.adversarial_loss)
        self.discriminator.requires_grad_(True)
        return loss

    def _discriminator_backward(self, image: Tensor, reconstruction: Tensor) -> None:
        """Adds the discriminator's gradients."""
        assert self.discriminator is not None
        weights = self.loss_weights
        real, fake = self.discriminator.forward_pair(image, reconstruction)
        terms = {"loss_discriminator": discriminator_loss(real, fake, self.discriminator_loss)}
        loss = weights.discriminator * terms["loss_discriminator"]
        if self.lecam is not None:
            terms["loss_lecam"] = self.lecam(real, fake)
            loss = loss + weights.lecam * terms["loss_lecam"]
        if weights.gradient_penalty > 0:
            terms["loss_gradient_penalty"] = gradient_penalty(
                self.discriminator, image, reconstruction, self.gradient_penalty
            )
            loss = loss + weights.gradient_penalty * terms["loss_gradient_penalty"]
        self.manual_backward(loss / self.accumulate_batches)
        self._log_training(terms)
        self._log_training(
            {
                "logits_real": real.float().mean(),
                "logits_fake": fake.float().mean(),
                "accuracy_real": (real > 0).float().mean(),
                "accuracy_fake": (fake < 0).float().mean(),
            }
        )

    def _step_tokenizer(self) -> bool:
        optimizer = self._optimizers[0]
        norm = self._clip(self.tokenizer, self.tokenizer_clip_norm, "tokenizer")
        if stepped := self._is_finite(norm, "tokenizer"):
            optimizer.step()
        optimizer.zero_grad()
        return stepped

    def _step_discriminator(self) -> None:
        assert self.discriminator is not None
        optimizer = self._optimizers[1]
        norm = self._clip(self.discriminator, self.discriminator_clip_norm, "discriminator")
        if self._is_finite(norm, "discriminator"):
            # not optimizer.step(), which would count as a step of trainer.global_step
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
        optimizer.zero_grad()

    def _after_generator_step(self) -> None:
        schedulers = self.lr_schedulers()
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers] if schedulers else []:
            scheduler.step()  # type: ignore[call-arg]
        if self.ema is not None:
            self.ema.update_parameters(self.tokenizer)

    def _clip(self, network: nn.Module, clip_norm: float | None, name: str) -> Tensor:
        """Clips the gradients of a network; returns their norm from before."""
        norm = nn.utils.clip_grad_norm_(network.parameters(), math.inf if clip_norm is None else clip_norm)
        self._log_training({f"gradient_norm_{name}": norm})
        return norm

    def _is_finite(self, norm: Tensor, name: str) -> bool:
        """Whether to step. Gradients are summed over processes before, so that all of them decide alike."""
        if bool(norm.isfinite()):
            self._skipped_in_a_row[name] = 0
            return True
        self._skipped_in_a_row[name] += 1
        self._skipped_in_all[name] += 1
        self._log_training({f"skipped_steps_{name}": torch.tensor(float(self._skipped_in_all[name]))})
        skipped = self._skipped_in_a_row[name]
        if skipped >= self.max_skipped_steps:
            raise TrainingDiverged(
                f"the gradients of the {name} were not finite {skipped} times in a row, last at step "
                f"{self.global_step}; its weights are those of the last good step. Lower the learning rate, or start "
                "from an earlier checkpoint"
            )
        return False

    def _without_gradient_exchange(self) -> AbstractContextManager:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    @property
    def _optimizers(self) -> list[LightningOptimizer]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _log_training(self, terms: dict[str, Tensor]) -> None:
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, batch_size=1)

    # -------------------------------------------------------------------------------------------- validation

    def on_validation_epoch_start(self) -> None:
        if self.metrics is not None:
            limit = 0 if self.trainer.sanity_checking else self.trainer.limit_val_batches
            self.metrics.start(self._original_images(self.trainer.val_dataloaders, limit))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        image = _image_of(batch)
        if self.metrics is None or len(image) == 0:
            return
        tokenizer = self.evaluated_tokenizer
        latent = tokenizer.latent(image)
        indices = tokenizer.quantizer.latent_to_indices(latent)
        reconstruction = tokenizer.decode(tokenizer.quantizer.indices_to_quantized(indices))
        # a latent that is not finite still gets a code, behind which nobody would see it
        finite = latent.flatten(1).isfinite().all(dim=1).view(-1, 1, 1, 1)
        self.metrics.update(image, torch.where(finite, reconstruction, torch.nan), indices)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        if self.metrics is not None:
            limit = self.trainer.limit_test_batches
            self.metrics.start(self._original_images(self.trainer.test_dataloaders, limit))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _original_images(self, loader: Any, limit: float) -> OriginalImages | None:
        """The images of a loader, where all are to come and its data set can tell; the first process alone asks it."""
        all_come = isinstance(limit, float) and limit == 1.0  # the integer 1 means one batch
        if not all_come or not self.trainer.is_global_zero or not isinstance(loader, DataLoader):
            return None
        if type(loader.sampler) is DistributedSampler:  # torch's own repeats images, to make shares equal
            return None
        fingerprint = getattr(loader.dataset, "fingerprint", None)
        return OriginalImages(fingerprint, len(loader.dataset)) if fingerprint else None  # type: ignore[arg-type]

    def _log_metrics(self, prefix: str) -> None:
        if self.metrics is None:
            return
        try:
            values = self.metrics.compute()
        except InputError:
            if self.trainer.sanity_checking:  # of so few images some metrics are not defined
                return
            raise
        seen = self.metrics.seen
        if seen is not None and seen.images > 0:
            height, width = seen.largest.tolist()
            # proportional to the pixels: a mean over images where they differ
            values["bits_per_pixel"] = self.tokenizer.bits_per_image(height, width) / (height * width)
            values["bits_per_image"] = values["bits_per_pixel"] * int(seen.pixels) / int(seen.images)
        self.metric_values = values
        # equal on all processes already
        self.log_dict({f"{prefix}/{name}": value for name, value in values.items()}, batch_size=1)
        if "nonfinite_images" in values and self.trainer.state.fn != "fit":
            raise ModelNotFinite(
                f"{values['nonfinite_images']:.0f} of {values['images']:.0f} reconstructions have values that are NaN "
                "or infinite, so there is no metric to report; validate an earlier checkpoint"
            )

    def predict_step(self, batch: Any, batch_idx: int) -> TokenBatch:
        """A batch of images → their indices."""
        image = _image_of(batch)
        if len(image) == 0:  # none of them could be read
            return TokenBatch(torch.empty(0, 0, 0, 0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), [])
        indices = self.evaluated_tokenizer.encode_indices(image)
        no_label = torch.full((len(image),), -1, device=image.device)
        return TokenBatch(indices, getattr(batch, "label", no_label), getattr(batch, "path", [""] * len(image)))

    # ------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is needed to rebuild the tokenizer, and to go on as if nothing had happened."""
        checkpoint["tokenizer_config"] = self.tokenizer.config
        settings = getattr(getattr(self.trainer, "datamodule", None), "settings", None)
        if settings is not None:
            checkpoint["data_settings"] = settings
        checkpoint["training_state"] = {
            "batches": self._batches,
            "batches_since_step": self._batches_since_step,
            "accumulate_batches": self.accumulate_batches,
            "stream_seed": self._stream_seed,
            "skipped_in_a_row": dict(self._skipped_in_a_row),
            "skipped_in_all": dict(self._skipped_in_all),
            # averaged over processes, each of which has seen batches of its own
            "accumulated_gradients": {
                name: self.trainer.strategy.reduce(parameter.grad.detach().clone(), reduce_op="mean")
                for name, parameter in self._trained_parameters()
                if parameter.grad is not None
            },
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_weights(self, checkpoint["state_dict"], "the checkpoint")
        state = checkpoint.get("training_state")
        if state is not None:
            self._batches = state["batches"]
            self._stream_seed = state["stream_seed"]
            self._skipped_in_a_row = dict(state["skipped_in_a_row"])
            self._skipped_in_all = dict(state["skipped_in_all"])
            self._accumulated = state["accumulated_gradients"]
            self._batches_since_step = self._share_of_step(checkpoint)

    def _share_of_step(self, checkpoint: dict[str, Any]) -> int:
        """Batches since the last step, in batches of this module's size; counts those of the epoch likewise."""
        state = checkpoint["training_state"]
        now = self.accumulate_batches
        before, since = state.get("accumulate_batches", now), state.get("batches_since_step", 0)
        if before == now:
            return since
        share, rest = divmod(since * now, before)
        if rest:
            logger.warning("%d of %d batches of a step begin anew, as accumulate_batches has changed", since, before)
            self._accumulated, share = {}, 0
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        current = loop.get("epoch_loop.batch_progress", {}).get("current", {})
        ready = current.get("ready", 0)
        for name in current:  # a batch whose hooks run is not completed yet
            current[name] = (ready - since) // before * now + share - (ready - current[name])
        return share

    def _trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Of tokenizer and discriminator, by name."""
        networks = {"tokenizer": self.tokenizer, "discriminator": self.discriminator}
        for prefix, network in networks.items():
            if network is not None:
                for name, parameter in network.named_parameters():
                    yield f"{prefix}.{name}", parameter


def _image_of(batch: Any) -> Tensor:
    """The image of a batch: the batch itself, or its first item."""
    return batch if isinstance(batch, Tensor) else batch[0]
