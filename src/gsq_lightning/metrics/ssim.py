"""Structural similarity (Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861), as scikit-image has it.

Two ways of treating the rim differ by 0.1 at 32×32 pixels. scikit-image averages over the places where the window lies
within the image; torchmetrics also over the rim, where it sees reflected pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gsq_lightning.errors import require
from gsq_lightning.metrics.interface import PixelMetric

WINDOW = 11  # pixels of the Gaussian window
SIGMA = 1.5  # its standard deviation
RIM = WINDOW // 2
STABILIZERS = ((0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2)  # C1 and C2 of the paper's equation 13
PIXELS_AT_ONCE = 2**18  # 2 MiB for each of about ten maps, which the caches of a CPU hold
PIXELS_ON_GPU = 2**24  # 128 MiB for each: starting the operators for each image would take longer than they do


class StructuralSimilarity(PixelMetric):
    """SSIM averaged over images.

    Args:
        rim: average also over the 5 pixels at the rim, where the window sees reflected pixels, as torchmetrics and
            the GSQ paper's reference do.
    """

    name = "ssim"
    higher_is_better = True

    def __init__(self, rim: bool = False) -> None:
        super().__init__()
        self.rim = rim
        window = f"{WINDOW}×{WINDOW} Gaussian window"
        self.protocol = f"{window}, rim reflected and included" if rim else f"{window} within the image"

    def of_each(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Two times (B, 3, H, W) uint8 → (B,). Raises InputError below 11 pixels each way."""
        require(
            min(image.shape[-2:]) >= WINDOW,
            f"SSIM needs images of at least {WINDOW}×{WINDOW} pixels, these have {image.shape[-2]}×{image.shape[-1]}; "
            "leave ssim out of the metrics",
        )
        return structural_similarity(reconstruction, image, self.rim)


def structural_similarity(first: Tensor, second: Tensor, rim: bool = False) -> Tensor:
    """Two times (B, 3, H, W) uint8 → (B,) float64, the mean of SSIM over channels and places.

    Args:
        first, second: images.
        rim: see `StructuralSimilarity`.
    """
    images = max(1, (PIXELS_AT_ONCE if first.device.type == "cpu" else PIXELS_ON_GPU) // first[0].numel())
    return torch.cat([_of_few(*parts, rim) for parts in zip(first.split(images), second.split(images), strict=True)])


def _of_few(first: Tensor, second: Tensor, rim: bool) -> Tensor:
    x, y = first.double(), second.double()
    if rim:
        x, y = (F.pad(image, (RIM, RIM, RIM, RIM), mode="reflect") for image in (x, y))
    mean_x, mean_y = _blurred(x), _blurred(y)
    products = mean_x * mean_y
    squares = mean_x.square() + mean_y.square()
    covariance = _blurred(x * y) - products
    variances = _blurred(x * x + y * y) - squares
    c1, c2 = STABILIZERS
    ssim = (2.0 * products + c1) * (2.0 * covariance + c2) / ((squares + c1) * (variances + c2))
    return ssim.mean(dim=(1, 2, 3))


def _blurred(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, H - 10, W - 10): the window's mean, along rows and then along columns."""
    places = torch.arange(WINDOW, dtype=torch.float64) - RIM
    gaussian = torch.exp(-0.5 * (places / SIGMA).square())
    weights: list[float] = (gaussian / gaussian.sum()).tolist()
    for dim in (-1, -2):
        size = x.shape[dim] - WINDOW + 1
        blurred = x.narrow(dim, 0, size) * weights[0]
        for start in range(1, WINDOW):
            blurred.add_(x.narrow(dim, start, size), alpha=weights[start])
        x = blurred
    return x
