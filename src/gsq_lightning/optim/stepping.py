"""From the gradients of a group of batches to one optimizer step of each network."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from gsq_lightning.distributed import world_size
from gsq_lightning.errors import TrainingDiverged, require


class StepOutcome(NamedTuple):
    """What became of a group.

    Attributes:
        stepped: of each network that had gradients, whether its optimizer made a step.
        means: of all that was logged, over the images of the group on all ranks; with the norms of the gradients
            before clipping, and how many steps have been skipped, where any have.
    """

    stepped: dict[str, bool]
    means: dict[str, Tensor]


@dataclass
class SkippedSteps:
    """Steps of a network that were not made because its gradients were not finite."""

    in_a_row: int = 0
    in_all: int = 0


class Stepper:
    """Collects the gradients of a group of batches, then makes one step of each network.

    A group is `accumulate_batches` batches, or fewer where an epoch ends. A step takes the mean gradient over all
    images that came, of all batches of the group and all ranks, so that accumulated, distributed and whole batches
    give the same update. A network whose gradients are not finite makes no step; that is counted.

    Gradients are summed over the ranks here, once per network and group, while the next network's backward pass runs.
    DistributedDataParallel's own exchange has to be off: in each backward pass it would wait for both networks.

    Args:
        networks: what is trained, by name.
        clip_norms: largest gradient norm of each network, above 0, or None.
        accumulate_batches: of a group, at least 1.
        max_skipped_steps: of a network in a row, at least 1, after which the run ends.

    Attributes:
        batches: of the group that have come; 0 between two steps.
        completes: whether the batch at hand is the last of its group.
        skipped: steps that were not made, of each network.

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
        self.skipped = {name: SkippedSteps() for name in networks}
        self.reset()

    def reset(self) -> None:
        """Forgets the gradients of a group that was not completed."""
        for network in self.networks.values():
            network.zero_grad()
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
    def step(self, take: Mapping[str, Callable[[], object]], at_step: int) -> StepOutcome:
        """Completes the group.

        Args:
            take: of each network, what makes its optimizer's step.
            at_step: number of the step, for messages.

        Raises:
            TrainingDiverged: after too many steps in a row that were not made. Weights are those of the last good one.
        """
        images, means = self._mean_log()
        norms = {}
        for name, exchange in self._exchanges.items():
            exchange.average_over(images)
            limit = self.clip_norms[name]
            parameters = self.networks[name].parameters()
            norms[name] = nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
        # one wait for the device, for all networks
        finite = torch.stack(list(norms.values())).isfinite().tolist()
        stepped = dict(zip(norms, finite, strict=True))
        for name, is_finite in stepped.items():
            if is_finite:
                take[name]()
            self.networks[name].zero_grad()
            self._count(name, is_finite)
        self._clear()
        self._stop_if_diverged(at_step)
        means |= {f"gradient_norm_{name}": norm for name, norm in norms.items()}
        means |= {
            f"skipped_steps_{name}": torch.tensor(float(skipped.in_all))
            for name, skipped in self.skipped.items()
            if skipped.in_all
        }
        return StepOutcome(stepped, means)

    def state_dict(self) -> dict[str, dict[str, int]]:
        return {name: asdict(skipped) for name, skipped in self.skipped.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        self.skipped = {name: SkippedSteps(**state.get(name, {})) for name in self.networks}

    def _mean_log(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Images of the group on all ranks, and the mean over them of what is logged."""
        some = next(iter(self._totals.values()))
        totals = torch.stack([torch.full_like(some, self._images), *self._totals.values()])
        if world_size() > 1:
            distributed.all_reduce(totals)
        images = totals[0]
        return images, dict(zip(self._totals, (totals[1:] / images).unbind(), strict=True))

    def _count(self, name: str, stepped: bool) -> None:
        skipped = self.skipped[name]
        skipped.in_a_row = 0 if stepped else skipped.in_a_row + 1
        skipped.in_all += not stepped

    def _stop_if_diverged(self, at_step: int) -> None:
        for name, skipped in self.skipped.items():
            if skipped.in_a_row >= self.max_skipped_steps:
                raise TrainingDiverged(
                    f"the gradients of the {name} were not finite {skipped.in_a_row} times in a row, last at step "
                    f"{at_step}; its weights are those of the last good step. Lower the learning rate, or start from "
                    "an earlier checkpoint"
                )

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
