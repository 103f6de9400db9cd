"""Peak signal-to-noise ratio of uint8 images, of each and of a whole set."""

import torch
from torch import Tensor

from gsq_lightning.metrics.interface import ImageMetric, MetricValues, PixelMetric, check_shapes

PEAK = 255.0


class PeakSignalToNoise(PixelMetric):
    """10·log10(255² / MSE) of each image in dB, averaged over images, as most of the field reports it.

    Infinite where a reconstruction equals its image to the pixel.
    """

    name = "psnr"
    higher_is_better = True

    def of_each(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        return decibels(squared_errors(reconstruction, image).double() / image[0].numel())


class SetPeakSignalToNoise(ImageMetric):
    """10·log10(255² / MSE) over all pixels of all images together, in dB, as the GSQ paper's reference takes it.

    Over images of one size never above their average, since the logarithm is concave.
    """

    name = "psnr_set"
    wants = "pixels"
    higher_is_better = True
    errors: Tensor
    numbers: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("errors", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("numbers", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, reconstruction: Tensor, image: Tensor) -> None:
        """Two times (B, 3, H, W) uint8. Raises InputError for other shapes."""
        check_shapes(reconstruction, image)
        self.errors += squared_errors(reconstruction, image).sum()
        self.numbers += image.numel()

    def compute(self) -> Tensor:
        """Scalar in dB, float64."""
        return decibels(self.errors.double() / self.numbers)

    def values(self) -> MetricValues:
        return MetricValues({self.name: float(self.compute())}, [])


def squared_errors(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Two times (B, 3, H, W) uint8 → (B,) int64, summed over all values of an image: exact."""
    return (reconstruction.int() - image.int()).square().flatten(1).sum(dim=1, dtype=torch.int64)


def decibels(mean_squared_error: Tensor) -> Tensor:
    return 10.0 * torch.log10(PEAK**2 / mean_squared_error)
