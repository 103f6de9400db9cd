"""Accumulation, gradient exchange, clipping and the optimizer step of each network."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from gsq_lightning.distributed import world_size
from gsq_lightning.errors import TrainingDiverged, require


class OptimizerStep(NamedTuple):
    """One network's optimizer and its step.

    Attributes:
        optimizer: of the network.
        take: makes the step.
    """

    optimizer: Optimizer
    take: Callable[[], object]


class SkippedSteps(NamedTuple):
    """Steps of a network that changed nothing, because its gradients were not finite."""

    in_a_row: int = 0
    in_all: int = 0


class Stepper:
    """Collects the gradients of a group of batches, then makes one step of each network.

    A group is `accumulate_batches` batches, or fewer where an epoch ends. A step takes the mean gradient over all
    images that came, of all batches of the group and all ranks, so that accumulated, distributed and whole batches
    give the same update. A step with gradients that are not finite is skipped and counted.

    Nothing here synchronizes with the device: it decides and counts by itself whether gradients are finite. That needs
    a fused optimizer of torch; any other one waits for the gradients in each step. `skipped_steps` and
    `stop_if_diverged` synchronize, so call them once in many steps.

    Gradients are summed over the ranks here, once per network and group, while the next network's backward pass runs.
    DistributedDataParallel's own exchange has to be off: in each backward pass it would wait for both networks.

    Args:
        networks: what is trained, by name.
        clip_norms: largest gradient norm of each network, above 0, or None.
        accumulate_batches: of a group, at least 1.
        max_skipped_steps: of a network in a row, at least 1, after which `stop_if_diverged` ends the run.

    Attributes:
        batches: of the group that have come; 0 between two steps.
        completes: whether the batch at hand is the last of its group.

    Raises:
        InputError: for values that make no sense.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        clip_norms: Mapping[str, float | None],
        accumulate_batches: int,
        max_skipped_steps: int,
    ) -> None:
        require(accumulate_batches >= 1, f"accumulate_batches is {accumulate_batches}; it must be at least 1")
        require(max_skipped_steps >= 1, f"max_skipped_steps is {max_skipped_steps}; it must be at least 1")
        for name, norm in clip_norms.items():
            require(
                norm is None or norm > 0,
                f"{name}_clip_norm is {norm}; it must be above 0, or null for no clipping",
            )
        self.networks = dict(networks)
        self.clip_norms = dict(clip_norms)
        self.accumulate_batches = accumulate_batches
        self.max_skipped_steps = max_skipped_steps
        self._skipped = {name: torch.zeros(2, dtype=torch.int64) for name in networks}  # in a row, in all
        self.reset()

    def reset(self) -> None:
        """Forgets the gradients of a group that was not completed. Call it where the networks have come to a device."""
        for name, network in self.networks.items():
            network.zero_grad()
            self._skipped[name] = self._skipped[name].to(_device_of(network))
        self._clear()

    def start_batch(self, images: int, is_last: bool) -> None:
        """Counts a batch.

        Args:
            images: in it, on this rank.
            is_last: whether it is the last of its epoch, so that the group ends with it.
        """
        self.batches += 1
        self.completes = is_last or self.batches >= self.accumulate_batches
        self._images_of_batch = images
        self._images += images

    def add(self, network: str, loss: Tensor, log: Mapping[str, Tensor], backward: Callable[[Tensor], None]) -> None:
        """Adds the gradients of the batch at hand.

        Args:
            network: whose loss it is.
            loss: mean over the images of the batch.
            log: what is logged of it, means over the images too.
            backward: called with the loss, summed over images.
        """
        backward(loss * self._images_of_batch)
        for name, value in log.items():
            total = value.detach().float() * self._images_of_batch
            self._totals[name] = self._totals[name] + total if name in self._totals else total
        if self.completes:
            self._exchanges[network] = GradientSum(self.networks[network])

    @torch.no_grad()
    def step(self, steps: Mapping[str, OptimizerStep]) -> dict[str, Tensor]:
        """Completes the group.

        Args:
            steps: of each network.

        Returns:
            Means of all that was logged, over the images of the group on all ranks, and the norms of the gradients
            before clipping: scalars on the device.
        """
        images, means = self._mean_log()
        for name, exchange in self._exchanges.items():
            exchange.average_over(images)
            limit = self.clip_norms[name]
            parameters = self.networks[name].parameters()
            norm = nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
            skips = ~norm.isfinite()
            if not _decides_on_device(steps[name].optimizer):
                if skips:
                    self.networks[name].zero_grad()  # optimizers leave weights without gradients alone
                steps[name].take()
            else:
                with _skipped_where(steps[name].optimizer, skips):
                    steps[name].take()
            self.networks[name].zero_grad()
            in_a_row, in_all = self._skipped[name]
            self._skipped[name] = torch.stack([(in_a_row + 1) * skips, in_all + skips])
            means[f"gradient_norm_{name}"] = norm
        self._clear()
        return means

    def skipped_steps(self) -> dict[str, SkippedSteps]:
        """Of each network so far; waits for the device."""
        return {name: SkippedSteps(*counts.tolist()) for name, counts in self._skipped.items()}

    def stop_if_diverged(self, at_step: int) -> None:
        """Waits for the device.

        Args:
            at_step: number of the last step, for the message.

        Raises:
            TrainingDiverged: after too many steps in a row without finite gradients. Weights are those of the last
                good one.
        """
        for name, skipped in self.skipped_steps().items():
            if skipped.in_a_row >= self.max_skipped_steps:
                raise TrainingDiverged(
                    f"the gradients of the {name} were not finite {skipped.in_a_row} times in a row, last at step "
                    f"{at_step}; its weights are those of the last good step. Lower the learning rate, or start from "
                    "an earlier checkpoint"
                )

    def state_dict(self) -> dict[str, dict[str, int]]:
        return {name: skipped._asdict() for name, skipped in self.skipped_steps().items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, int]]) -> None:
        self._skipped = {
            name: torch.tensor(SkippedSteps(**state.get(name, {})), dtype=torch.int64, device=_device_of(network))
            for name, network in self.networks.items()
        }

    def _mean_log(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Images of the group on all ranks, and the mean over them of what is logged."""
        some = next(iter(self._totals.values()))
        totals = torch.stack([torch.full_like(some, self._images), *self._totals.values()])
        if world_size() > 1:
            distributed.all_reduce(totals)
        images = totals[0]
        return images, dict(zip(self._totals, (totals[1:] / images).unbind(), strict=True))

    def _clear(self) -> None:
        self.batches = 0
        self.completes = False
        self._images_of_batch = 0
        self._images = 0
        self._totals: dict[str, Tensor] = {}
        self._exchanges: dict[str, GradientSum] = {}


class GradientSum:
    """The gradients of a network, being summed over ranks in the background.

    Args:
        network: after its backward pass; the same parameters have gradients on all ranks.
    """

    def __init__(self, network: nn.Module) -> None:
        self.gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        self.flat: Tensor | None = None
        if world_size() > 1:
            self.flat = torch.cat([gradient.flatten() for gradient in self.gradients])
            self.work = distributed.all_reduce(self.flat, async_op=True)

    def average_over(self, images: Tensor) -> None:
        """Waits for the sum, and divides it by a number of images, a scalar."""
        if self.flat is None:
            torch._foreach_div_(self.gradients, images)
            return
        self.work.wait()
        parts = self.flat.div_(images).split([gradient.numel() for gradient in self.gradients])
        # into the gradients' own layout, as fused optimizers need it
        torch._foreach_copy_(
            self.gradients, [part.view_as(gradient) for part, gradient in zip(parts, self.gradients, strict=True)]
        )


def _device_of(network: nn.Module) -> torch.device:
    return next(network.parameters(), torch.empty(0)).device  # a network may have none before it is loaded


def _decides_on_device(optimizer: Optimizer) -> bool:
    """Whether the optimizer's kernels take a flag on the device that makes them change nothing.

    That is how `torch.amp.GradScaler` has fused optimizers skip a step; the attribute is its sign of those that can.
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False) and all(
        group.get("fused") for group in optimizer.param_groups
    )


@contextmanager
def _skipped_where(optimizer: Optimizer, skips: Tensor) -> Iterator[None]:
    """Within it, a step of a fused optimizer changes neither weights nor its state where `skips`, a scalar, is true."""
    optimizer.found_inf = skips.float()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
