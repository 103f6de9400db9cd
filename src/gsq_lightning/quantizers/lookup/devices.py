"""Which devices run the Triton kernels, and which of them."""

import functools
import importlib.util
import warnings

import torch

TENSOR_CORES_FROM = 4  # channels: below it differences take fewer instructions


@functools.cache
def has_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device. Warns once of a GPU where they do not."""
    if device.type != "cuda":
        return False
    reason = why_no_kernels(device)
    if reason is not None:
        warnings.warn(
            f"nearest codes on {device} are found without Triton's kernels, as exactly but slower: {reason}",
            stacklevel=2,
        )
    return reason is None


@functools.cache
def why_no_kernels(device: torch.device) -> str | None:
    """What a GPU lacks for Triton's kernels, in one line; None where they run."""
    if torch.version.hip is not None:
        return "their bound needs float16 numbers below 2^-14, which some AMD GPUs replace by 0"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"Triton needs compute capability 8.0; it is {'.'.join(map(str, capability))}"
    try:
        from gsq_lightning.quantizers.lookup.scores import to_columns

        # Builds Triton's driver, if it is the first time, and a kernel. Triton's assembler does not know every GPU that
        # its driver does: https://github.com/triton-lang/triton/issues/8539
        to_columns(torch.zeros(1, 1, device=device))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return (
            "Triton, which needs a C compiler and Python's headers (apt install gcc python3-dev), and an assembler, "
            f"ptxas, that knows this GPU, fails with {reason}"
        )
    return None
