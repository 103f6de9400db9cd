"""What a training starts from: all or some of the weights of another."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gsq_lightning import GSQTokenizer, InputError
from gsq_lightning.discriminators import PatchDiscriminator
from gsq_lightning.pretrained.initial import Taken, read_initial, start_from
from tests.pretrained.reference_network import Network, make_config
from tests.pretrained.test_released import write
from tests.test_training import Build


@pytest.fixture
def checkpoint(small_tokenizer: Build, tmp_path: Path) -> Path:
    """Of a training: its averaged weights are 1 more than the others, its discriminator has 4 channels."""
    tokenizer, adversary = small_tokenizer(), PatchDiscriminator(channels=4, num_layers=1)
    state = {f"tokenizer.{name}": value for name, value in tokenizer.state_dict().items()}
    state |= {f"ema.module.{name.removeprefix('tokenizer.')}": value + 1 for name, value in state.items()}
    state |= {f"discriminator.{name}": value for name, value in adversary.state_dict().items()}
    content = {"tokenizer_config": tokenizer.config, "training_state": {"ema_updates": 5}, "state_dict": state}
    torch.save(content, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def started(path: Path, tokenizer: GSQTokenizer, adversary: nn.Module | None = None, **options: Any) -> Taken:
    weights = options.pop("weights", "ema")
    return start_from(read_initial(path, weights), tokenizer, tokenizer.config, adversary, **options)


@pytest.mark.parametrize(("weights", "more"), [("ema", 1), ("raw", 0)])
def test_averaged_or_raw_weights_and_the_discriminator(
    small_tokenizer: Build, checkpoint: Path, weights: str, more: int
) -> None:
    state = torch.load(checkpoint)["state_dict"]
    tokenizer, adversary = small_tokenizer(), PatchDiscriminator(channels=4, num_layers=1)
    taken = started(checkpoint, tokenizer, adversary, weights=weights)
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, state[f"tokenizer.{name}"] + more)
    for name, value in adversary.state_dict().items():
        assert torch.equal(value, state[f"discriminator.{name}"])
    assert str(taken) == f"{len(taken.loaded)} tensors are those of {checkpoint}"


def test_some_by_name(small_tokenizer: Build, checkpoint: Path) -> None:
    """The decoder but for its last layer, into a tokenizer with another codebook."""
    state = torch.load(checkpoint)["state_dict"]
    tokenizer = small_tokenizer(codebook_size=64)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    taken = started(checkpoint, tokenizer, include=["decoder.*"], exclude=["decoder.final.*"])
    for name, value in tokenizer.state_dict().items():
        loads = name.startswith("decoder.") and not name.startswith("decoder.final.")
        assert torch.equal(value, state[f"ema.module.{name}"] if loads else before[name]), name
        assert name in (taken.loaded if loads else taken.fresh)
    assert {name.partition(".")[0] for name in taken.left_out} == {"discriminator"}
    assert taken.settings == ["quantizer.codebook_size 32 → 64"]


def test_what_does_not_fit_is_one_line_and_changes_nothing(small_tokenizer: Build, checkpoint: Path) -> None:
    tokenizer = small_tokenizer(codebook_size=64)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    message = (
        r"do not fit in 1 tensor: quantizer.codebook: \(32, 4\) in the file, \(64, 4\) in the model. "
        "Settings differ: quantizer.codebook_size 32 → 64$"
    )
    with pytest.raises(InputError, match=message):
        started(checkpoint, tokenizer)
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    with pytest.raises(InputError, match=r"discriminator.net.0.weight: \("):
        started(checkpoint, small_tokenizer(), PatchDiscriminator(channels=8, num_layers=1))
    with pytest.raises(InputError, match=r"discriminator.net.0.weight: unknown to the model"):
        started(checkpoint, small_tokenizer(), nn.Module())
    with pytest.raises(InputError, match=r"'dekoder.\*' matches no tensor; there are encoder.\*, quantizer.\*"):
        started(checkpoint, small_tokenizer(), include=["dekoder.*"])
    with pytest.raises(InputError, match="leave nothing"):
        started(checkpoint, small_tokenizer(), exclude=["*"])


def test_exports_and_released_files(small_tokenizer: Build, tmp_path: Path) -> None:
    source, target = small_tokenizer(), small_tokenizer()
    source.save_pretrained(tmp_path / "export")
    assert not started(tmp_path / "export", target).fresh
    assert all(torch.equal(target.state_dict()[name], value) for name, value in source.state_dict().items())

    network = Network(make_config())
    network.reconstruct(torch.zeros(1, 3, 16, 16))
    (tmp_path / "released").mkdir()
    write(tmp_path / "released" / "checkpoint.pt", network)
    expected = GSQTokenizer.from_released(tmp_path / "released")
    for place in ("released", "released/checkpoint.pt"):
        target = GSQTokenizer.from_config(expected.config)
        started(tmp_path / place, target)
        assert all(torch.equal(target.state_dict()[name], value) for name, value in expected.state_dict().items())
