"""Peak signal-to-noise ratio of uint8 images, of each and of a whole set."""

import torch
from torch import Tensor
from torchmetrics import Metric

PEAK = 255.0


class PeakSignalToNoise(Metric):
    """10·log10(255² / MSE) of each image in dB, averaged over images, as most of the field reports it.

    Infinite where a reconstruction equals its image to the pixel.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, reconstruction: Tensor, image: Tensor) -> None:
        """Two times (B, 3, H, W) uint8."""
        errors = squared_errors(reconstruction, image).double() / image[0].numel()
        self.total += decibels(errors).sum()
        self.count += len(image)

    def compute(self) -> Tensor:
        """Scalar in dB, float64."""
        return self.total / self.count


class SetPeakSignalToNoise(Metric):
    """10·log10(255² / MSE) over all pixels of all images together, in dB, as the GSQ paper's reference takes it.

    Over images of one size never above their average, since the logarithm is concave.
    """

    full_state_update = False
    higher_is_better = True
    errors: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("errors", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("values", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, reconstruction: Tensor, image: Tensor) -> None:
        """Two times (B, 3, H, W) uint8."""
        self.errors += squared_errors(reconstruction, image).sum()
        self.values += image.numel()

    def compute(self) -> Tensor:
        """Scalar in dB, float64."""
        return decibels(self.errors.double() / self.values)


def squared_errors(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Two times (B, 3, H, W) uint8 → (B,) int64, summed over all values of an image: exact."""
    return (reconstruction.int() - image.int()).square().flatten(1).sum(dim=1, dtype=torch.int64)


def decibels(mean_squared_error: Tensor) -> Tensor:
    return 10.0 * torch.log10(PEAK**2 / mean_squared_error)
