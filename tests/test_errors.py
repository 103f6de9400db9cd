"""Checks of arguments."""

from typing import Literal

import pytest

from gsq_lightning.errors import InputError, how_many, one_of


def test_a_word_of_a_literal_is_given_back_and_another_refused_with_the_list() -> None:
    assert one_of("crop", "center", Literal["center", "random"]) == "center"
    for wrong in ("centre", None, ["center"]):
        with pytest.raises(InputError, match=r"crop is .*; it must be one of: center, random"):
            one_of("crop", wrong, Literal["center", "random"])


def test_a_number_has_its_noun() -> None:
    assert [how_many(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [how_many(number, "file is", "files are") for number in (1, 2)] == ["1 file is", "2 files are"]
