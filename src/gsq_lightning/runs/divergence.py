"""What a run does about steps whose gradients are not finite: it says where they came from, and may go back."""

import json
import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from gsq_lightning.distributed import gathered
from gsq_lightning.errors import TrainingDiverged, first_few, look_up, require
from gsq_lightning.files import left_out_on_disk_errors, write_whole
from gsq_lightning.pixels import image_of
from gsq_lightning.run_folders import RunFolder
from gsq_lightning.runs.checkpoint import RunCheckpoint
from gsq_lightning.runs.lightning_internals import go_back_to

logger = logging.getLogger(__name__)

OnDivergence = Literal["stop", "rollback"]

KEPT_BYTES = 2**27  # of the images of past batches, so that a step can be run again
MOST_FILES = 100  # of a process: by then more of them tell nothing
MOST_NAMES = 3  # in a line of the log


@dataclass
class PastBatch:
    """A batch of training since the counters were last read.

    Attributes:
        number: since the run began.
        names: of its images, or where they stand.
        image: (B, 3, H, W), or None where it is no longer kept.
    """

    number: int
    names: list[str]
    image: Tensor | None


@dataclass
class PastStep:
    """A step since the counters were last read.

    Attributes:
        step: its number.
        values: what was logged of it: scalars, still on the device.
        batches: of this rank.
    """

    step: int
    values: dict[str, Tensor]
    batches: list[PastBatch] = field(default_factory=list)


class Divergence(Callback):
    """Explains steps that were skipped because gradients were not finite, and goes back where there are too many.

    Nothing waits for the device in a step: numbers are read where the module reads its counters. Of each streak of such
    steps the first leaves a file, `nonfinite/batch=N.json` in the run's folder, with the names of its images, its loss
    terms, and the first module whose output was not finite, for which the step is run again; and a line in the log.

    Args:
        on_divergence: after the module's `max_skipped_steps` in a row: "stop", with TrainingDiverged, or "rollback":
            weights, optimizers and steps go back to the last checkpoint, and training goes on after the batches that
            were seen since. Where it diverges again before the next checkpoint, it stops.
        run: where the files go; none where nothing is to be written.

    Raises:
        InputError: for another word, or rollback without checkpoints.
        TrainingDiverged: from training.
    """

    def __init__(self, on_divergence: OnDivergence = "stop", run: RunFolder | None = None) -> None:
        self.goes_back: bool = look_up("on_divergence", on_divergence, {"stop": False, "rollback": True})
        self.run = run
        self.returned_to: int | None = None  # step of the checkpoint that training last went back to
        self._steps: deque[PastStep] = deque()
        self._batches: list[PastBatch] = []
        self._in_streak = False
        self._files = 0

    def state_dict(self) -> dict[str, Any]:
        return {"returned_to": self.returned_to}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.returned_to = state_dict["returned_to"]

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and self.goes_back:
            found = [one for one in trainer.checkpoint_callbacks if isinstance(one, RunCheckpoint)]
            require(bool(found), "on_divergence rollback needs checkpoints, and this training writes none")
            self._checkpoints = found[0]
            pl_module.stops_when_diverged = False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._forget()
        if self.goes_back:
            self._checkpoints.save(trainer)  # so that there is always one with the options of now

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        image = image_of(batch)
        names = getattr(batch, "path", None)
        if not names:
            first = batch_idx * len(image)
            names = [f"epoch {trainer.current_epoch}, image {first + number}" for number in range(len(image))]
        self._batches.append(PastBatch(pl_module.batches_seen, list(names), image))
        self._drop_images()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not pl_module.between_steps:
            return
        values = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        self._steps.append(PastStep(trainer.global_step, values, self._batches))
        self._batches = []
        if trainer.global_step % pl_module.steps_between_checks == 0 or trainer.global_step == trainer.max_steps:
            self._explain(trainer, pl_module)
            if self.goes_back and pl_module.has_diverged:
                self._go_back(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._explain(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, TrainingDiverged):  # of all ranks, at the same step
            self._explain(trainer, pl_module)

    # ------------------------------------------------------------------------------------------------ explaining

    def _explain(self, trainer: Trainer, pl_module: Any) -> None:
        """Reads what became of past steps, and reports the first of each streak of those that were skipped."""
        steps, self._steps = list(self._steps), deque()
        for step, is_bad in zip(steps, _are_bad(steps), strict=True):
            if is_bad and not self._in_streak and self._files < MOST_FILES:
                self._files += 1
                self._report(trainer, pl_module, step)
            self._in_streak = is_bad

    def _report(self, trainer: Trainer, pl_module: Any, step: PastStep) -> None:
        at_hand = all(gathered(all(one.image is not None for one in step.batches)))
        own: list[dict[str, Any]] = []
        for batch in step.batches:
            # on all ranks or on none, as losses may exchange values
            found = pl_module.find_nonfinite(batch.image, batch.number) if at_hand else None
            own.append(
                {
                    "images": batch.names,
                    "first_not_finite": found and found.module,
                    "gradients_not_finite": found.gradients if found else [],
                    "terms": {name: _plain(value) for name, value in (found.terms if found else {}).items()},
                }
            )
        ranks = gathered(own)
        if not trainer.is_global_zero:
            return
        means = {name.removeprefix("train/"): float(value) for name, value in step.values.items()}
        norms = {name: mean for name, mean in means.items() if name.startswith("gradient_norm_")}
        networks = [name.removeprefix("gradient_norm_") for name, norm in norms.items() if not math.isfinite(norm)]
        content = {
            "step": step.step,
            "epoch": trainer.current_epoch,
            "networks": networks,
            "means": {name: _plain(mean) for name, mean in means.items()},
            "ranks": ranks,
        }
        place = ""
        if self.run is not None:
            path = self.run.nonfinite / f"batch={step.batches[0].number}.json"
            with left_out_on_disk_errors(str(path)):
                write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
            place = f"; {path}"
        logger.warning(
            "step %d was skipped: the gradients of the %s were not finite; %s%s",
            step.step,
            " and the ".join(networks),
            _first_cause(ranks),
            place,
        )

    def _drop_images(self) -> None:
        """Keeps the images of the batch at hand, and of earlier ones as far as they are few bytes."""
        *earlier, newest = [batch for step in self._steps for batch in step.batches] + self._batches
        assert newest.image is not None
        kept = newest.image.nbytes
        for batch in reversed(earlier):
            if batch.image is not None:
                kept += batch.image.nbytes
                if kept > KEPT_BYTES:
                    batch.image = None

    def _forget(self) -> None:
        self._steps.clear()
        self._batches = []

    # --------------------------------------------------------------------------------------------- going back

    def _go_back(self, trainer: Trainer, pl_module: Any) -> None:
        step, path = self._checkpoints.saved_step, self._checkpoints.last_path
        if step is None or path is None or step == self.returned_to:
            why = (
                "there is no checkpoint"
                if path is None
                else f"it had gone back to the checkpoint, of step {step}, before"
            )
            raise TrainingDiverged(
                f"training diverged at step {trainer.global_step}, and {why}. Lower the learning rate, or look at the "
                "images that are named in nonfinite/"
            )
        skipped = trainer.global_step - step
        go_back_to(trainer, path)
        self.returned_to = step
        self._in_streak = False
        self._forget()
        metrics = trainer.callback_metrics
        for name in [name for name in metrics if name.startswith("train/")]:
            del metrics[name]  # the norms of a discriminator that starts later would be taken for those of each step
        self._checkpoints.save(trainer)  # with the place in the data, so that a resumed run skips these batches too
        if trainer.is_global_zero:
            logger.warning(
                "training diverged: weights and optimizers went back to the checkpoint of step %d, and it goes on "
                "after the batches of the %d steps since",
                step,
                skipped,
            )


def _are_bad(steps: Sequence[PastStep]) -> list[bool]:
    """Whether the gradients of each step were not finite; waits for the device once."""
    norms = [
        torch.stack([value.detach().float() for name, value in step.values.items() if "gradient_norm_" in name]).sum()
        for step in steps
    ]
    return [not math.isfinite(norm) for norm in torch.stack(norms).tolist()] if norms else []


def _plain(value: float) -> float | str:
    """As JSON has it, which has no NaN."""
    return value if math.isfinite(value) else str(value)


def _first_cause(ranks: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Of the first batch in which something is not finite, or of the first one where nothing was found."""
    batches = [(rank, batch) for rank, found in enumerate(ranks) for batch in found]
    # what is not finite on one rank may come to the others in means over ranks, and from there into their gradients
    causes = [(rank, batch) for rank, batch in batches if batch["first_not_finite"]]
    causes += [(rank, batch) for rank, batch in batches if batch["gradients_not_finite"]]
    rank, batch = [*causes, *batches][0]
    if batch["first_not_finite"]:
        where = f"first {batch['first_not_finite']}"
    elif batch["gradients_not_finite"]:
        where = f"of {batch['gradients_not_finite'][-1]}, though all outputs were finite"
    else:
        where = "run again, it was finite" if batch["terms"] else "its images are no longer kept"
    names = first_few(batch["images"], MOST_NAMES)
    return f"{where} (rank {rank}, {names})"
