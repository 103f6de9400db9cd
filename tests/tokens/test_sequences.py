"""What users of tokens would otherwise write by hand, and the way back."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gsq_lightning import InputError
from gsq_lightning.tokens import (
    SpecialTokens,
    add_group_offsets,
    combine_groups,
    flatten_tokens,
    grid_positions,
    remove_group_offsets,
    separate_groups,
    unflatten_tokens,
)

INDICES = torch.randint(7, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0))


def test_raster_order_goes_along_rows_and_within_a_position_along_groups() -> None:
    flat = flatten_tokens(INDICES)
    by_hand = [INDICES[1, row, column, group] for row in range(3) for column in range(4) for group in range(5)]
    assert flat[1].tolist() == by_hand
    assert torch.equal(flatten_tokens(INDICES, keep_groups=True).reshape(2, -1), flat)
    assert torch.equal(unflatten_tokens(flat, 3, 4), INDICES)
    assert torch.equal(unflatten_tokens(flatten_tokens(INDICES, keep_groups=True), 3, 4), INDICES)


@pytest.mark.parametrize("shape", [(2, 59), (2, 12, 0), (2, 13, 5), (2, 3, 4, 5)])
def test_what_is_no_grid_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"no grid of 3×4 positions"):
        unflatten_tokens(torch.zeros(shape), 3, 4)


def test_a_single_image_without_a_batch_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"shape \(3, 4, 2\); it must be \(B, h, w, G\)"):
        flatten_tokens(torch.zeros(3, 4, 2))


def test_groups_with_offsets_share_no_number() -> None:
    tokens = add_group_offsets(INDICES.to(torch.uint8), 7)
    assert [set((tokens[..., group] // 7).flatten().tolist()) for group in range(5)] == [{0}, {1}, {2}, {3}, {4}]
    assert torch.equal(remove_group_offsets(tokens, 7), INDICES)


def test_combined_groups_count_through_all_combinations() -> None:
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    assert combine_groups(every, 3).tolist() == list(range(81))
    assert torch.equal(separate_groups(torch.arange(81), 3, 4), every)
    assert torch.equal(separate_groups(combine_groups(INDICES, 7), 7, 5), INDICES)


def test_the_largest_combination_that_fits_int64_survives() -> None:
    largest = torch.full((1, 7), 2**9 - 1)
    assert combine_groups(largest, 2**9).tolist() == [2**63 - 1]
    assert torch.equal(separate_groups(combine_groups(largest, 2**9), 2**9, 7), largest)
    with pytest.raises(InputError, match=r"8 indices of 512 codes do not fit into one"):
        combine_groups(torch.zeros(1, 8), 2**9)
    with pytest.raises(InputError, match=r"65536\^4 is above 2\^63"):
        combine_groups(torch.zeros(1, 4), 2**16)


@pytest.mark.parametrize("group", [add_group_offsets, combine_groups])
def test_indices_of_another_codebook_or_that_are_none_are_refused(group: Callable[[Tensor, int], Tensor]) -> None:
    """They would be numbers of other groups' codes."""
    for indices, message in (
        (INDICES, "range from 0 to 6; the codebook has 6 codes, so 0 to 5 are allowed"),
        (INDICES - 6, "range from -6 to 0"),
        (INDICES.float(), "float32; they must be of an integer type"),
    ):
        with pytest.raises(InputError, match=message):
            group(indices, 6)


def test_positions_are_those_of_the_flattened_grid() -> None:
    rows, columns, groups = grid_positions(3, 4, 5).unbind(1)
    assert torch.equal(INDICES[0, rows, columns, groups], flatten_tokens(INDICES)[0])
    rows, columns = grid_positions(3, 4).unbind(1)
    assert torch.equal(INDICES[0, rows, columns], flatten_tokens(INDICES, keep_groups=True)[0])


def test_special_tokens_are_above_all_codes_and_lead_back_to_labels() -> None:
    special = SpecialTokens(num_codes=7, num_classes=3)
    label = torch.tensor([-1, 0, 2])
    numbers = {special.start, special.mask, *special.of_class(torch.arange(3)).tolist()}
    assert numbers == {7, 8, 9, 10, 11} == set(range(7, special.vocabulary_size))
    sequence = special.prepend(torch.tensor([[1, 2], [3, 4], [5, 6]]), label)
    assert sequence.tolist() == [[special.start, 1, 2], [9, 3, 4], [11, 5, 6]]
    assert torch.equal(special.label_of(sequence[:, 0]), label)
    assert special.prepend(torch.zeros(2, 1)).tolist() == [[special.start, 0]] * 2
    with pytest.raises(InputError, match="label is 3, of 3"):
        special.of_class(torch.tensor([3]))
