"""The frozen vision networks of discriminators, losses and metrics, and the preparation of their input."""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsq_lightning.errors import InputError, require
from gsq_lightning.pretrained.weights import PublishedWeights, fixed_random_weights, load_state, read_weights

# the files that timm 1.0 takes for `vit_small_patch14_reg4_dinov2.lvd142m` (arXiv 2304.07193, 2309.16588) and
# `resnet50.a1_in1k` (arXiv 2110.00476), and torchvision for `VGG16_Weights.IMAGENET1K_V1` (arXiv 1409.1556) and
# `AlexNet_Weights.IMAGENET1K_V1` (arXiv 1404.5997)
DINOV2 = PublishedWeights.on_the_hub("dinov2", "timm/vit_small_patch14_reg4_dinov2.lvd142m")
RESNET50 = PublishedWeights.on_the_hub("resnet50", "timm/resnet50.a1_in1k")
VGG16 = PublishedWeights("vgg16", "https://download.pytorch.org/models/vgg16-397923af.pth")
ALEXNET = PublishedWeights("alexnet", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth")

LPIPSTrunk = Literal["alex", "vgg"]
LPIPS_TRUNKS: dict[LPIPSTrunk, PublishedWeights] = {"alex": ALEXNET, "vgg": VGG16}

DINOV2_CHANNELS = 384
DINOV2_BLOCKS = 12
DINOV2_PATCH_SIZE = 14
DINOV2_PREFIX_TOKENS = 5  # class and four registers

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of pixels in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageNetInput(nn.Module):
    """Images as networks trained on ImageNet want them, in float32.

    Args:
        size: height and width of what comes out; an image of another size or shape is resized to this square by area
            interpolation.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", (0.5 / std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((0.5 - mean) / std).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → (B, 3, size, size), each channel with ImageNet's mean 0 and deviation 1."""
        image = image.float()
        if image.shape[-2:] != (self.size, self.size):
            image = F.interpolate(image, size=(self.size, self.size), mode="area")
        return image * self.scale + self.shift


def require_dinov2_size(input_size: int) -> None:
    """Raises InputError for the side of an image that is no whole number of patches."""
    require(
        input_size >= DINOV2_PATCH_SIZE and input_size % DINOV2_PATCH_SIZE == 0,
        f"input_size is {input_size}; it must be a multiple of {DINOV2_PATCH_SIZE}, such as 518 or 224",
    )


def load_dinov2(weights: str, image_size: int) -> Any:
    """DINOv2 ViT-S/14 with registers, timm's VisionTransformer, its position embedding resampled to `image_size`.

    Args:
        weights: "pretrained", the path of the Hub's model.safetensors or of Meta's dinov2_vits14_reg4_pretrain.pth,
            or "random" (tests).
        image_size: height and width of its input, a multiple of 14.

    Raises:
        InputError: where the weights cannot be had or do not fit.
    """
    name = "vit_small_patch14_reg4_dinov2"
    if weights == "random":
        import timm

        with fixed_random_weights("DINOv2"):
            # a layer scale of 1, not of 1e-5 as at the start of training: blocks that do nothing would test nothing
            return timm.create_model(name, img_size=image_size, init_values=1.0)
    state = read_weights(weights, DINOV2)
    # imported late: without weights the error is not to wait for it
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    network: Any = timm.create_model(name, img_size=image_size)
    return load_state(network, checkpoint_filter_fn(state, network), "DINOv2 ViT-S/14 with registers")


def load_resnet50(weights: str) -> nn.Module:
    """timm's ResNet-50, 1000 logits.

    Args:
        weights: "pretrained", the path of the Hub's model.safetensors, or "random" (tests).

    Raises:
        InputError: where the weights cannot be had or do not fit.
    """
    if weights == "random":
        import timm

        with fixed_random_weights("ResNet-50"):
            return timm.create_model("resnet50")
    state = read_weights(weights, RESNET50)
    import timm

    return load_state(timm.create_model("resnet50"), state, "ResNet-50")


def load_vgg16(weights: str) -> nn.Module:
    """torchvision's VGG-16, 1000 logits.

    Args:
        weights: "pretrained", the path of vgg16-397923af.pth, or "random" (tests).

    Raises:
        InputError: where the weights cannot be had or do not fit.
    """
    if weights == "random":
        from torchvision.models import vgg16

        with fixed_random_weights("VGG-16"):
            return vgg16()
    state = read_weights(weights, VGG16)
    from torchvision.models import vgg16

    return load_state(vgg16(init_weights=False), state, "VGG-16")


def load_lpips(trunk: LPIPSTrunk, weights: str) -> nn.Module:
    """The lpips package's network (arXiv 1801.03924), version 0.1: two times (B, 3, H, W) in [-1, 1] → (B, 1, 1, 1).

    Its calibration comes with the package, the trunk is torchvision's.

    Args:
        trunk: "alex" for AlexNet, "vgg" for VGG16.
        weights: of the trunk: "pretrained", the path of alexnet-owt-7be5be79.pth or vgg16-397923af.pth, or "random"
            (tests).

    Raises:
        InputError: where the weights cannot be had or do not fit.
    """

    def build() -> Any:
        import lpips

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips asks torchvision by an argument that is deprecated
            return lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False)

    if weights == "random":
        with fixed_random_weights("LPIPS"):
            return build()
    state = read_weights(weights, LPIPS_TRUNKS[trunk])
    network = build()
    try:
        for part in network.net.children():
            for index, layer in part.named_children():
                if isinstance(layer, nn.Conv2d):
                    layer.load_state_dict({name: state[f"features.{index}.{name}"] for name in ("weight", "bias")})
    except (KeyError, RuntimeError) as error:
        name = "AlexNet" if trunk == "alex" else "VGG16"
        raise InputError(f"{weights!r} does not hold the weights of torchvision's {name}") from error
    return network
