"""What holds for every quantizer."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from gsq_lightning import GroupedSphericalQuantizer, InputError, Quantizer
from tests.quantizers.test_baselines import QUANTIZERS

EVERY: dict[str, Callable[[], Quantizer]] = {
    **QUANTIZERS,
    "gsq": lambda: GroupedSphericalQuantizer(12, 50, num_groups=3),
    "gsq_per_group": lambda: GroupedSphericalQuantizer(12, 50, num_groups=3, per_group_codebooks=True),
    "gsq_channels_last": lambda: GroupedSphericalQuantizer(12, 50, num_groups=3, channel_dim=-1),
}
each_quantizer = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())


def some_indices(quantizer: Quantizer) -> torch.Tensor:
    return torch.randint(quantizer.codebook_size, (2, 5, 3, quantizer.num_groups))


@each_quantizer
def test_indices_that_have_no_code_are_refused(make: Callable[[], Quantizer]) -> None:
    """They would wrap around, or name a code of another group."""
    quantizer = make()
    indices = some_indices(quantizer)
    indices[0, 0, 0] = 0
    for outside in (quantizer.codebook_size, -1):
        wrong = indices.clone()
        wrong[0, 0, 0, 0] = outside
        with pytest.raises(InputError, match=f"so 0 to {quantizer.codebook_size - 1} are allowed"):
            quantizer.indices_to_quantized(wrong)
    wider = torch.cat([indices, indices[..., :1]], dim=-1)
    for wrong in (wider, indices[..., :-1], indices.new_zeros(())):
        with pytest.raises(InputError, match=f"the last dimension must have the {quantizer.num_groups} groups"):
            quantizer.indices_to_quantized(wrong)
    for wrong in (indices.float(), indices > 3):
        with pytest.raises(InputError, match="they must be of an integer type"):
            quantizer.indices_to_quantized(wrong)
    with pytest.raises(InputError, match=r"of the type ndarray; .*torch\.as_tensor converts"):
        quantizer.indices_to_quantized(indices.numpy())


@each_quantizer
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.uint16])
def test_indices_of_any_integer_type_have_their_codes(make: Callable[[], Quantizer], kind: torch.dtype) -> None:
    quantizer = make()
    indices = some_indices(quantizer)
    assert torch.equal(quantizer.indices_to_quantized(indices.to(kind)), quantizer.indices_to_quantized(indices))


@each_quantizer
def test_copies_and_pickles_have_the_same_codes(make: Callable[[], Quantizer]) -> None:
    """Processes that are spawned, such as those of ddp_spawn, get a pickle."""
    quantizer = make().eval()
    indices = some_indices(quantizer)
    expected = quantizer.indices_to_quantized(indices)
    found = quantizer.latent_to_indices(expected)  # which keeps what the lookup prepared
    for other in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(other.indices_to_quantized(indices), expected)
        assert torch.equal(other.latent_to_indices(expected), found)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((16, 64.0, 4), "codebook_size is 64.0; it must be a whole number"),
        (("16", 64, 4), "latent_channels is '16'; it must be a whole number"),
        ((16, 64, None), "num_groups is None; it must be a whole number"),
        ((16, 0, 4), "codebook_size is 0; it must be at least 1"),
    ],
)
def test_sizes_are_whole_numbers(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GroupedSphericalQuantizer(*sizes)
    quantizer = GroupedSphericalQuantizer(np.int64(16), np.int32(64), np.uint8(4))
    assert type(quantizer.codebook_size) is type(quantizer.latent_channels) is type(quantizer.num_groups) is int
