"""Checks of arguments."""

from typing import Literal

import pytest

from gsq_lightning.errors import InputError, one_of


def test_a_word_of_a_literal_is_given_back_and_another_refused_with_the_list() -> None:
    assert one_of("crop", "center", Literal["center", "random"]) == "center"
    for wrong in ("centre", None, ["center"]):
        with pytest.raises(InputError, match=r"crop is .*; it must be one of: center, random"):
            one_of("crop", wrong, Literal["center", "random"])
