"""The LightningModule: trains a tokenizer against a discriminator, validates it, turns images into tokens."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, Self

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, DistributedSampler

from gsq_lightning.callbacks.lightning_output import leave_out_noise, replace_defaults
from gsq_lightning.callbacks.progress import Speed
from gsq_lightning.discriminators import Discriminator, as_discriminator
from gsq_lightning.errors import InputError, ModelNotFinite, look_up, require
from gsq_lightning.losses import AdversarialLoss, GradientPenalty, Loss, LossWeights, Objective, PerceptualLoss
from gsq_lightning.metrics import OriginalImages, ReconstructionMetrics
from gsq_lightning.optim.adamw import PaperAdamW
from gsq_lightning.optim.ema import EMA
from gsq_lightning.optim.nonfinite import Finding, find_nonfinite
from gsq_lightning.optim.options import (
    as_parameters_lie,
    check_lengths,
    make_optimization,
    restore_options,
    step_scheduler,
)
from gsq_lightning.optim.random_streams import seed_streams
from gsq_lightning.optim.stepping import OptimizerStep, Stepper
from gsq_lightning.pixels import image_of
from gsq_lightning.pretrained.saved import check_weights
from gsq_lightning.quantizers import QuantizerOutput
from gsq_lightning.tokenizer import GSQTokenizer
from gsq_lightning.tokens import TokenBatch

logger = logging.getLogger(__name__)
leave_out_noise()

Trained = Literal["all", "decoder"]

# weights and their averages stay in float32; float16 would need its losses scaled, for two networks
PRECISIONS = ("bf16-mixed", "32-true")
# callbacks that need one optimizer, which Lightning steps by itself
REFUSED_CALLBACKS: dict[type[Callback], str] = {
    LearningRateFinder: "set model.tokenizer_optimizer.lr",
    BatchSizeFinder: "set data.global_batch_size",
    GradientAccumulationScheduler: "set model.accumulate_batches",
    WeightAveraging: "the tokenizer has averaged weights of its own: set model.ema_decay",
    StochasticWeightAveraging: "the tokenizer has averaged weights of its own: set model.ema_decay",
}
NOTEWORTHY_SHARE = 0.01  # of the initialization in the averaged weights


class TokenizerModule(LightningModule):
    """Trains a tokenizer: GSQ-GAN with a discriminator, GSQ-VAE without (GSQ, arXiv 2412.02632, sections 3 and 4).

    One batch serves both networks: the generator's loss on tokenizer and quantizer, the discriminator's on the same
    images and the detached reconstruction; then both make a step. (The paper's reference draws a second batch for the
    discriminator, after the generator's step.) `trainer.global_step` counts generator steps, so that `max_steps` means
    the same with and without a discriminator. Logs are means over all images of a step, and carry that count. No step
    waits for the device, as long as optimizers are fused: counts and losses are read where they are logged.

    Several devices are trained with the strategy `ddp`, which is the default; others are refused.

    A subclass adds loss terms by overriding `generator_loss_terms` or `discriminator_loss_terms`.

    Args:
        tokenizer: the network that is trained.
        trained: "all" of the tokenizer, or its "decoder" alone: encoder and codebook then stay bit-identical, so that
            indices keep their meaning, and no gradients are computed for them.
        discriminator: adversary of the tokenizer, or null for a GSQ-VAE. Any module that maps (B, 3, H, W) in [-1, 1]
            to logits serves.
        perceptual_loss: distance of images over features of a frozen network, or null.
        metrics: what validation computes, or null.
        loss_weights: factors of the loss terms.
        adversarial_loss: GAN loss of the generator. The paper's best pair is non_saturating and hinge ("NH", Table 7).
        discriminator_loss: GAN loss of the discriminator.
        discriminator_start_step: generator steps before the discriminator is trained.
        adversarial_start_step: generator steps before the adversarial loss is added, not less than
            `discriminator_start_step`; 0: as soon as the discriminator is trained.
        adversarial_ramp_steps: steps over which the adversarial weight then rises from 0 to its full value.
        adaptive_weight: multiply the adversarial weight by the ratio of the gradients of reconstruction and
            adversarial loss at the decoder's last layer (VQGAN; Table 11).
        adaptive_weight_maximum: largest value of that ratio, above 0.
        gradient_penalty: kind of gradient penalty, where `loss_weights.gradient_penalty` asks for it.
        tokenizer_optimizer: optimizer of the tokenizer, any of torch.optim; in Python a function of its parameters.
        discriminator_optimizer: optimizer of the discriminator, likewise.
        tokenizer_scheduler: learning rate schedule of the tokenizer, stepped once per generator step, any of
            torch.optim.lr_scheduler; in Python a function of the optimizer.
        discriminator_scheduler: learning rate schedule of the discriminator, likewise: stepped from the first
            generator step on, also before `discriminator_start_step`.
        tokenizer_clip_norm: largest gradient norm of the tokenizer, or null for no clipping.
        discriminator_clip_norm: largest gradient norm of the discriminator, or null for no clipping.
        accumulate_batches: batches per optimizer step.
        ema_decay: decay of the running average of the tokenizer's weights (EMA), in [0, 1), or null for none. It is
            validated, predicted with and exported. It begins with the initial weights.
        ema_warmup: the decay is at first smaller, min(ema_decay, (1 + n) / (10 + n)) after n steps.
        max_skipped_steps: steps with non-finite gradients change nothing and are counted; after this many in a row the
            run stops, when the count is next read: every so many steps, or at the Trainer's `log_every_n_steps`.
        compile_networks: compile encoder, decoder and, where there is no gradient penalty, the frozen networks of
            losses and discriminator when training starts; validation runs uncompiled.
        channels_last: keep weights and images in the memory layout that is faster for convolutions on CPUs, and on GPUs
            with `compile_networks`; uncompiled it cost a fifth of the speed on an H200.

    Attributes:
        batches_seen: training batches that this rank has begun.
        stops_when_diverged: raise TrainingDiverged; false where a callback goes back instead.

    Raises:
        InputError: for values that make no sense, and options without effect.
        TrainingDiverged: from training, after `max_skipped_steps`.
    """

    def __init__(
        self,
        tokenizer: GSQTokenizer,
        discriminator: Discriminator | nn.Module | None = None,
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
        ema_warmup: bool = True,
        max_skipped_steps: int = 50,
        compile_networks: bool = False,
        channels_last: bool = False,
        trained: Trained = "all",
    ) -> None:
        super().__init__()
        adversary = None if discriminator is None else as_discriminator(discriminator)
        self.objective = Objective(
            loss_weights,
            adversary,
            perceptual_loss,
            adversarial_loss=adversarial_loss,
            discriminator_loss=discriminator_loss,
            discriminator_start_step=discriminator_start_step,
            adversarial_start_step=adversarial_start_step,
            adversarial_ramp_steps=adversarial_ramp_steps,
            adaptive_weight=adaptive_weight,
            adaptive_weight_maximum=adaptive_weight_maximum,
            gradient_penalty=gradient_penalty,
        )
        require(
            discriminator is not None or discriminator_scheduler is None,
            "discriminator_scheduler has no effect without a discriminator; leave it out",
        )
        require(
            ema_warmup or ema_decay is not None, "ema_warmup false has no effect where ema_decay is null; leave it out"
        )
        frozen_parts: dict[Trained, list[nn.Module]] = {"all": [], "decoder": [tokenizer.encoder, tokenizer.quantizer]}
        self._frozen = tuple(look_up("trained", trained, frozen_parts))  # a tuple hides them from nn.Module
        for part in self._frozen:
            part.requires_grad_(False).eval()
        self.trained: Trained = trained
        self.automatic_optimization = False

        self.tokenizer = tokenizer
        self.discriminator = adversary
        self.perceptual_loss = perceptual_loss
        self.metrics = metrics
        self.lecam = self.objective.lecam
        self.ema = None if ema_decay is None else EMA(tokenizer, ema_decay, ema_warmup)
        networks: dict[str, nn.Module] = {"tokenizer": tokenizer}
        if adversary is not None:
            networks["discriminator"] = adversary
        self.stepper = Stepper(
            networks,
            {"tokenizer": tokenizer_clip_norm, "discriminator": discriminator_clip_norm},
            accumulate_batches,
            max_skipped_steps,
        )
        self.accumulate_batches = accumulate_batches
        self.optimizers_of = {"tokenizer": tokenizer_optimizer, "discriminator": discriminator_optimizer}
        self.schedulers_of = {"tokenizer": tokenizer_scheduler, "discriminator": discriminator_scheduler}
        self.stops_when_diverged = True
        self.compile_networks = compile_networks
        self.channels_last = channels_last
        self.metric_values: dict[str, float] = {}  # of the last validation or test
        self.batches_seen = 0
        self._speed = Speed()
        self._stream_seed: int | None = None  # of what training draws at random
        self._options: dict[str, Any] = {}  # of optimizers and schedulers, as given
        self._fits = False
        self._checkpoint: dict[str, Any] | None = None  # what training resumes from, until the optimizers are made

    @property
    def evaluated_tokenizer(self) -> GSQTokenizer:
        """The network of validation and prediction: the averaged weights where there are any."""
        if self.ema is not None and self.ema.updates > 0:
            assert isinstance(self.ema.module, GSQTokenizer)
            return self.ema.module
        return self.tokenizer

    @property
    def between_steps(self) -> bool:
        """Whether no gradients are half accumulated, so that a checkpoint is complete."""
        return self.stepper.batches == 0

    @property
    def skipped_in_a_row(self) -> int:
        """Steps, up to now, in which a network's gradients were not finite; waits for the device."""
        return max(skipped.in_a_row for skipped in self.stepper.skipped_steps().values())

    @property
    def has_diverged(self) -> bool:
        """Whether `max_skipped_steps` is reached; waits for the device."""
        return self.skipped_in_a_row >= self.stepper.max_skipped_steps

    @property
    def notes(self) -> list[str]:
        """Remarks for the report of this module's metrics."""
        averaged = self.ema is not None and self.evaluated_tokenizer is self.ema.module
        share = self.ema.initial_share if self.ema is not None else 0.0
        if not averaged or share < NOTEWORTHY_SHARE:
            return []
        return [f"the averaged weights that were evaluated are still {share:.0%} initialization"]

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → reconstruction of the evaluated tokenizer."""
        with self._uncompiled():
            return self.evaluated_tokenizer(image)

    def _uncompiled(self) -> AbstractContextManager[Any]:
        return torch.compiler.set_stance("force_eager") if self.compile_networks else nullcontext()

    def train(self, mode: bool = True) -> Self:
        """As every module's, but frozen parts stay in eval mode: no dropout, no statistics of batches."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    # ------------------------------------------------------------------------------------------------ set-up

    def configure_callbacks(self) -> list[Callback]:
        """Refuses what the Trainer cannot do for two optimizers, and shows progress by steps.

        This hook comes before the Trainer's own checks.
        """
        require(
            self.trainer.gradient_clip_val is None,
            "trainer.gradient_clip_val cannot be used with two optimizers; "
            "set model.tokenizer_clip_norm and model.discriminator_clip_norm (2.0 each by default)",
        )
        require(
            self.trainer.accumulate_grad_batches == 1,
            "trainer.accumulate_grad_batches cannot be used with two optimizers; set model.accumulate_batches",
        )
        require(
            self.trainer.precision in PRECISIONS,
            f"trainer.precision {self.trainer.precision} is not supported; use {' or '.join(PRECISIONS)}",
        )
        require(
            isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy),
            f"trainer.strategy {type(self.trainer.strategy).__name__} is not supported for two networks with an "
            "optimizer each; use ddp, or leave it out",
        )
        for one in self.trainer.callbacks:  # type: ignore[attr-defined]
            for refused, instead in REFUSED_CALLBACKS.items():
                require(
                    not isinstance(one, refused),
                    f"{type(one).__name__} cannot be used with two optimizers; {instead}",
                )
            require(
                not isinstance(one, ModelCheckpoint) or one._train_time_interval is None,
                "ModelCheckpoint with train_time_interval saves nothing where a module steps two optimizers by itself; "
                "set every_n_train_steps",
            )
        replace_defaults(self.trainer)
        return []

    def setup(self, stage: str) -> None:
        self._fits = stage == "fit"
        if self._fits:
            self.load_training_networks()
            if self.channels_last:
                self.to(memory_format=torch.channels_last)
        if stage != "predict":
            self.load_metrics()

    def load_training_networks(self) -> None:
        """Gets ready what only training looks through. Raises InputError where weights are not to be had."""
        self.objective.load()

    def load_metrics(self) -> None:
        """Gets the metrics' networks ready. Raises InputError where weights are not to be had."""
        if self.metrics is not None:
            quantizer = self.tokenizer.quantizer
            self.metrics.load(quantizer.codebook_size, quantizer.num_groups, quantizer.num_codebooks)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        made = {
            name: make_optimization(
                name,
                [parameter for parameter in network.parameters() if parameter.requires_grad],
                self.optimizers_of[name],
                self.schedulers_of[name],
            )
            for name, network in self.stepper.networks.items()
        }
        if self.trainer.max_epochs == -1:  # else epochs may end the run before `max_steps`
            check_lengths(made, self.trainer.max_steps)
        self._options = {name: one.options for name, one in made.items()}
        if self._checkpoint is not None:
            restore_options(made, self._checkpoint, self._checkpoint["training_state"]["options"])
            self._checkpoint = None
        schedulers = [one.scheduler for one in made.values() if one.scheduler is not None]
        return [one.optimizer for one in made.values()], schedulers

    def on_fit_start(self) -> None:
        if self._stream_seed is None:
            self._stream_seed = int(self.trainer.strategy.broadcast(torch.initial_seed()))
        if self.ema is not None and self.ema.updates == 0:
            # not in `on_train_start`, before which callbacks save; weights may have been loaded since it was made
            self.ema.start(self.tokenizer)

    def on_train_start(self) -> None:
        self.train()  # `GSQTokenizer.from_pretrained` gives networks in eval mode, and Lightning leaves them so
        self.lay_out_optimizers()
        if self.compile_networks:  # not before: the sanity check's batches may have another size
            if self.objective.adaptive_weight:  # goes through the decoder's graph three times
                torch._functorch.config.donated_buffer = False
            # DDP's exchange, for which graphs would be cut at the ends of its buckets, is off: `Stepper` has its own
            torch._dynamo.config.optimize_ddp = False
            self.tokenizer.encoder.compile()
            self.tokenizer.decoder.compile()
            for network in self.objective.frozen_networks():
                network.compile(dynamic=False)  # batches of one size and, of images beside reconstructions, of two
        self._speed = Speed()  # without the time between the sanity check, or an earlier training, and now
        self._speed.start()
        self.stepper.reset()
        parts = self.objective.seen_in_parts(
            self.tokenizer.quantizer, self.stepper.accumulate_batches, self.trainer.world_size
        )
        if parts and self.trainer.is_global_zero:
            names = ", ".join(parts)
            logger.warning(
                "these terms are not means over images and change with accumulation or several ranks: %s", names
            )
        if (
            self.channels_last
            and not self.compile_networks
            and self.device.type == "cuda"
            and self.trainer.is_global_zero
        ):
            logger.warning("channels_last without compile_networks makes a GPU slower; set both, or neither")

    def lay_out_optimizers(self) -> None:
        """To be called when a checkpoint has been loaded into them, as it may be of another `channels_last`."""
        for optimizer in self.trainer.optimizers:
            as_parameters_lie(optimizer)

    def on_train_end(self) -> None:
        self.stepper.stop_if_diverged(self.global_step)

    def on_validation_model_zero_grad(self) -> None:
        """Keeps the gradients of a validation in the middle of an accumulation; optimizer steps clear theirs."""

    # ---------------------------------------------------------------------------------------------- training

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Has Lightning count generator steps, where it would count batches: for `self.log` and what logs by itself,
        such as LearningRateMonitor."""
        if self.trainer.training:
            self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Gradients of both networks for one batch; steps where they are due.

        Args:
            batch: the image (B, 3, H, W); or what has it as its first item, or under "image".
        """
        image = self._start_batch(batch)
        with self._without_ddp_exchange(), self.objective.within_step():
            for network, loss in self._losses(image):
                values = {f"loss_{network}": loss.total} | loss.log
                self.stepper.add(network, loss.total, values, self._backward)
        if self.stepper.completes:
            self._finish_step()

    def generator_loss_terms(self, image: Tensor, output: QuantizerOutput, reconstruction: Tensor) -> Loss:
        """What tokenizer and quantizer minimize; override it to add terms.

        Args:
            image, reconstruction: (B, 3, H, W) float32, the image in [-1, 1].
            output: of the quantizer.
        """
        last_layer = self.tokenizer.decoder.last_layer
        return self.objective.generator(image, output, reconstruction, last_layer, self.global_step)

    def discriminator_loss_terms(self, image: Tensor, reconstruction: Tensor) -> Loss:
        """The discriminator's loss; override it to add terms.

        Args:
            image, reconstruction: (B, 3, H, W) float32, without gradient.
        """
        return self.objective.discriminate(image, reconstruction)

    def _backward(self, loss: Tensor) -> None:
        """Without autocast, which would round the gradients of what was computed in float32."""
        with torch.autocast(loss.device.type, enabled=False):
            self.manual_backward(loss)

    def _start_batch(self, batch: Any) -> Tensor:
        assert self._stream_seed is not None
        seed_streams(self._stream_seed, self.batches_seen, self.trainer.global_rank)
        self.batches_seen += 1
        image = image_of(batch)
        self.stepper.start_batch(len(image), is_last=self.trainer.is_last_batch)
        self._speed.add(len(image) * self.trainer.world_size)
        return image.contiguous(memory_format=torch.channels_last) if self.channels_last else image

    def _losses(self, image: Tensor) -> Iterator[tuple[str, Loss]]:
        """Of each network; the gradients of the first are taken before the second is computed."""
        output = self._encode(image)
        reconstruction = self.tokenizer.decode(output.quantized).float()  # once for all that look at it
        yield "tokenizer", self.generator_loss_terms(image, output, reconstruction)
        if self.objective.trains_discriminator(self.global_step):
            yield "discriminator", self.discriminator_loss_terms(image, reconstruction.detach())

    def find_nonfinite(self, batch: Any, number: int) -> Finding:
        """Runs a training batch again, and says where values were not finite. Changes no state.

        Args:
            batch: as of training; all ranks with theirs.
            number: `batches_seen` before it, for the same random draws.
        """
        assert self._stream_seed is not None
        before = [buffer.clone() for buffer in self.buffers()]
        seed_streams(self._stream_seed, number, self.trainer.global_rank)
        image = image_of(batch)
        with (
            self.trainer.precision_plugin.forward_context(),
            torch.compiler.set_stance("force_eager"),  # compiled networks run no hooks
            self.objective.within_step(),
        ):
            found = find_nonfinite(self, image, lambda: ((loss.total, loss.log) for _, loss in self._losses(image)))
        for buffer, value in zip(self.buffers(), before, strict=True):
            buffer.copy_(value)
        return found

    def _encode(self, image: Tensor) -> QuantizerOutput:
        if self.trained == "all":
            return self.tokenizer.encode(image)
        with torch.no_grad():  # nor the quantizer's losses, which would move nothing
            indices = self.tokenizer.encode_indices(image)
            quantized = self.tokenizer.quantizer.indices_to_quantized(indices)
        return QuantizerOutput(quantized, indices, quantized.new_zeros(()), {})

    def _finish_step(self) -> None:
        made: Any = self.optimizers()  # Lightning's wrappers, whose step() trainer.global_step counts
        optimizers = made if isinstance(made, list) else [made]
        steps = {"tokenizer": OptimizerStep(optimizers[0].optimizer, optimizers[0].step)}
        if self.discriminator is not None:
            second = optimizers[1].optimizer
            steps["discriminator"] = OptimizerStep(second, partial(self._step_uncounted, second))
        rates = {
            f"train/learning_rate_{name}": optimizer.param_groups[0]["lr"]
            for name, optimizer in zip(steps, optimizers, strict=True)
        }
        means = self.stepper.step(steps)
        self.objective.after_step(means)
        scheduled = [name for name in steps if self.schedulers_of[name] is not None]
        for name, config in zip(scheduled, self.trainer.lr_scheduler_configs, strict=True):
            step_scheduler(name, config.scheduler)
        if self.ema is not None:
            rates["train/ema_decay"] = self.ema.decay_at(self.ema.updates)
            self.ema.update(self.tokenizer)
        self._log_step(means, rates)
        if self.stops_when_diverged and self.global_step % self.steps_between_checks == 0:
            self.stepper.stop_if_diverged(self.global_step)

    @property
    def steps_between_checks(self) -> int:
        """Steps after which the counters of skipped steps are read, which waits for the device."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return min(every or self.stepper.max_skipped_steps, self.stepper.max_skipped_steps)

    def _step_uncounted(self, optimizer: Optimizer) -> None:
        """A step that trainer.global_step does not count, as it does those of Lightning's wrapper."""
        self.trainer.strategy.optimizer_step(optimizer, lambda: None)

    def _without_ddp_exchange(self) -> AbstractContextManager[Any]:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else nullcontext()

    def _log_step(self, means: dict[str, Tensor], rates: dict[str, Any]) -> None:
        """To callbacks at each step, to loggers where it is due. Lightning's log_dict would take milliseconds.

        Args:
            means: over the images of the step.
            rates: learning rates and the decay of the average, as they were in the step; for loggers alone.
        """
        values = {f"train/{name}": value for name, value in means.items()}
        self.trainer.callback_metrics.update(values)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or self.global_step % every:
            return
        skipped = {
            f"train/skipped_steps_{name}": float(steps.in_all)
            for name, steps in self.stepper.skipped_steps().items()
            if steps.in_all
        }
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in skipped.items()})
        if self.loggers:
            numbers = torch.stack(list(values.values())).tolist()  # waits for the device, and so for all images
            rates |= {"train/images_per_second": self._speed.per_second()}
            known = {name: float(rate) for name, rate in rates.items()}
            self._log(dict(zip(values, numbers, strict=True)) | skipped | known)

    def _log(self, values: dict[str, float]) -> None:
        """To all loggers, at the generator step: Lightning's own count is a step behind."""
        self.trainer.logged_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        for target in self.loggers:
            target.log_metrics({**values, "epoch": float(self.current_epoch)}, step=self.global_step)
            target.save()

    # -------------------------------------------------------------------------------------------- validation

    def on_validation_epoch_start(self) -> None:
        self._speed.stop()
        if self.metrics is not None:
            limit = 0 if self.trainer.sanity_checking else self.trainer.limit_val_batches
            self.metrics.start(self._original_images(self.trainer.val_dataloaders, limit))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        image = image_of(batch)
        if self.metrics is None or len(image) == 0:
            return
        tokenizer = self.evaluated_tokenizer
        with self._uncompiled():
            latent = tokenizer.latent(image)
            indices = tokenizer.quantizer.latent_to_indices(latent)
            reconstruction = tokenizer.decode(tokenizer.quantizer.indices_to_quantized(indices))
        # a latent that is not finite still gets a code, behind which nobody would see it
        finite = latent.flatten(1).isfinite().all(dim=1).view(-1, 1, 1, 1)
        self.metrics.update(image, torch.where(finite, reconstruction, torch.nan), indices)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")
        self._speed.start()

    def on_test_epoch_start(self) -> None:
        if self.metrics is not None:
            limit = self.trainer.limit_test_batches
            self.metrics.start(self._original_images(self.trainer.test_dataloaders, limit))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _original_images(self, loader: Any, limit: float) -> OriginalImages | None:
        """The images of a loader, if all of them will be seen and its dataset has a fingerprint and a length; rank 0
        alone asks."""
        all_come = isinstance(limit, float) and limit == 1.0  # the integer 1 means one batch
        if not all_come or not self.trainer.is_global_zero or not isinstance(loader, DataLoader):
            return None
        if type(loader.sampler) is DistributedSampler:  # torch's own repeats images, to make shares equal
            return None
        fingerprint = getattr(loader.dataset, "fingerprint", None)
        try:
            return OriginalImages(fingerprint, len(loader.dataset)) if fingerprint else None  # type: ignore[arg-type]
        except TypeError:  # streamed shards do not say how many images they have
            return None

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
        named = {f"{prefix}/{name}": value for name, value in values.items()}  # equal on all ranks already
        fits = self.trainer.state.fn == "fit"
        self.log_dict(named, batch_size=1, logger=False if fits else None)
        if fits and not self.trainer.sanity_checking:
            self._log(named)
        elif not fits and self.loggers:
            self.log("step", float(self.global_step), batch_size=1)  # what Lightning takes for the step
        if "nonfinite_images" in values and not fits:
            raise ModelNotFinite(
                f"{values['nonfinite_images']:.0f} of {values['images']:.0f} reconstructions have values that are NaN "
                "or infinite, so there is no metric to report; validate an earlier checkpoint"
            )

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> TokenBatch:
        """A batch of images → their indices."""
        image = image_of(batch)
        number, labelled = len(image), hasattr(batch, "label")
        if number:
            indices = self.evaluated_tokenizer.encode_indices(image)
        else:  # none of them could be read
            indices = torch.empty(0, 0, 0, self.tokenizer.quantizer.num_groups, dtype=torch.int64, device=image.device)
        label = batch.label if labelled else torch.full((number,), -1, device=image.device)
        copy = batch.copy if hasattr(batch, "ends_shard") else torch.zeros_like(label)
        return TokenBatch(indices, label, copy, batch.path if labelled else [""] * number)

    # ------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is needed to rebuild tokenizer and data, to validate likewise, and to resume exactly.

        Gradients of a group that is not complete are left out: save where `between_steps` is true.
        """
        checkpoint["tokenizer_config"] = self.tokenizer.config
        checkpoint["training_state"] = {
            "batches": self.batches_seen,
            "stream_seed": self._stream_seed,
            "skipped": self.stepper.state_dict(),
            "ema_updates": 0 if self.ema is None else self.ema.updates,
            "options": self._options,
            "trained": self.trained,
        }
        settings = getattr(getattr(self.trainer, "datamodule", None), "settings", None)
        if settings is not None:
            checkpoint["data_settings"] = settings
        if self.metrics is not None:
            checkpoint["metrics"] = self.metrics.names
            checkpoint["metric_settings"] = self.metrics.options.settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        weights = checkpoint["state_dict"]
        self._fit_parts(weights)
        hint = "--init_from starts a new training from its weights"
        try:
            check_weights(self, weights, "the checkpoint")
        except InputError as error:
            if not self._fits:
                raise
            raise InputError(f"{error}; {hint}") from error
        state = checkpoint["training_state"]
        require(
            not self._fits or state["trained"] == self.trained,
            f'the checkpoint was trained with trained "{state["trained"]}", this run has "{self.trained}"; '
            f"its optimizer state does not fit; {hint}",
        )
        self.batches_seen = state["batches"]
        self._stream_seed = state["stream_seed"]
        self.restore_counts(state)
        self._checkpoint = checkpoint if self._fits else None

    def restore_counts(self, state: dict[str, Any]) -> None:
        """What belongs to weights, of the `training_state` of a checkpoint; not the place in the data."""
        self.stepper.load_state_dict(state["skipped"])
        if self.ema is not None:
            self.ema.updates = state["ema_updates"]

    def _fit_parts(self, weights: dict[str, Tensor]) -> None:
        """Leaves out, or adds as they start, the parts that only options decide on."""
        for part in ("discriminator", "lecam", "ema"):
            saved = [name for name in weights if name.startswith(f"{part}.")]
            if saved and getattr(self, part) is None:
                for name in saved:
                    del weights[name]
                if self._fits:
                    logger.warning("the %s of the checkpoint is left out: these options have none", part)
            if not saved and part == "lecam" and self.lecam is not None:
                weights |= {f"lecam.{name}": value for name, value in self.lecam.state_dict().items()}
            if not saved and part == "ema" and self.ema is not None:
                named = [(name.removeprefix("tokenizer."), name) for name in weights if name.startswith("tokenizer.")]
                weights |= {f"ema.module.{name}": weights[full].clone() for name, full in named}
