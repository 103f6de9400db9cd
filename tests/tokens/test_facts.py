"""Which shards of tokens belong together."""

from dataclasses import replace
from typing import Any

import pytest

from gsq_lightning.tokens.facts import TokenFacts

FACTS = TokenFacts(
    tokenizer_hash="a",
    precision="32-true",
    num_groups=2,
    codebook_size=32,
    downsample_factor=4,
    height=4,
    width=4,
    split="val",
    images=6,
    shards=2,
    images_per_shard=3,
    copies=["plain"],
    data_fingerprint="b",
    class_names=["cats", "dogs"],
    file_type="safetensors",
    version="1.0",
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer_hash", "c"),
        ("precision", "bf16-mixed"),
        ("data_fingerprint", "c"),
        ("split", "train"),
        ("images", 7),
        ("shards", 3),
        ("images_per_shard", 4),
        ("copies", ["plain", "mirrored"]),
        ("class_names", ["dogs", "cats"]),
        ("file_type", "parquet"),
    ],
)
def test_shards_that_differ_in_one_fact_do_not_belong_together(name: str, value: Any) -> None:
    assert FACTS.difference(replace(FACTS, **{name: value})) is not None


def test_shards_of_another_version_belong_together() -> None:
    assert FACTS.difference(replace(FACTS, version="1.1")) is None
