"""Training the decoder alone: what the tokenizer's indices mean stays as it was."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from gsq_lightning import GSQTokenizer, InputError, TokenizerModule
from gsq_lightning.quantizers import ResidualVQ
from gsq_lightning.runs import RunCheckpoint
from tests.test_training import Build, discriminator, fit, images, sgd, trainer, weights

PARTS = ("encoder.", "quantizer.")


def with_residual_vq(_: Build) -> GSQTokenizer:
    return GSQTokenizer(ResidualVQ(8, 16, 2), (1, 2), 8, 1, 1, dropout=0.5, norm_groups=4)


MAKERS: dict[str, Callable[[Build], GSQTokenizer]] = {"gsq": lambda build: build(), "rvq": with_residual_vq}


def loader() -> Any:
    return torch.utils.data.DataLoader(images(), batch_size=2)  # type: ignore[arg-type]


class Watch(Callback):
    """Notes gradients of frozen parts, and modules that are in training mode, while a step is made."""

    def __init__(self) -> None:
        self.gradients: list[str] = []
        self.in_training: set[str] = set()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        tokenizer: Any = pl_module.tokenizer
        self.gradients += [name for name, value in tokenizer.named_parameters() if value.grad is not None]
        self.in_training |= {name for name, one in tokenizer.named_modules() if one.training}


@pytest.mark.parametrize("kind", MAKERS)
def test_encoder_and_codebook_stay_bit_identical(small_tokenizer: Build, tmp_path: Path, kind: str) -> None:
    """Also under weight decay, averaging, dropout, and validation in between."""
    tokenizer = MAKERS[kind](small_tokenizer)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    indices = tokenizer.eval().encode_indices(images())
    module, watch = TokenizerModule(tokenizer.train(), discriminator(), trained="decoder", ema_decay=0.5), Watch()
    module.train()  # as whoever trains it otherwise may say
    fit(module, tmp_path, max_steps=4, callbacks=[watch])
    assert module.ema is not None
    for network in (module.tokenizer, module.ema.module):
        after = network.state_dict()
        for name, value in before.items():
            frozen = name.startswith(PARTS)
            assert torch.equal(after[name], value) == frozen, name
    assert torch.equal(module.eval().tokenizer.encode_indices(images()), indices)
    assert {name.partition(".")[0] for name in watch.gradients} == {"decoder"}
    assert not [name for name in watch.in_training if name.startswith(("encoder", "quantizer"))]


def test_the_decoder_gets_the_gradient_it_would_get_with_the_rest(small_tokenizer: Build, tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    options: dict[str, Any] = {"tokenizer_optimizer": sgd, "tokenizer_clip_norm": None}
    stepped = {}
    for trained in ("all", "decoder"):
        module = TokenizerModule(copy.deepcopy(tokenizer), discriminator(), trained=trained, **options)  # type: ignore[arg-type]
        torch.manual_seed(0)
        module.discriminator.load_state_dict(discriminator().state_dict())  # type: ignore[union-attr]
        fit(module, tmp_path, max_steps=1)
        stepped[trained] = weights(module.tokenizer.decoder)
    for name, value in weights(tokenizer.decoder).items():
        assert not torch.equal(value, stepped["all"][name])
        torch.testing.assert_close(stepped["decoder"][name], stepped["all"][name])


def test_a_checkpoint_of_a_whole_training_is_not_resumed_as_one_of_the_decoder(
    small_tokenizer: Build, tmp_path: Path
) -> None:
    trainer(tmp_path, max_steps=1, callbacks=[RunCheckpoint(dirpath=str(tmp_path))], enable_checkpointing=True).fit(
        TokenizerModule(small_tokenizer()), loader()
    )
    module = TokenizerModule(small_tokenizer(), trained="decoder")
    with pytest.raises(InputError, match='trained "all", this run has "decoder"'):
        trainer(tmp_path, max_steps=2).fit(module, loader(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)


def test_other_words_are_refused(small_tokenizer: Build) -> None:
    with pytest.raises(InputError, match="trained is 'encoder'; it must be one of: all, decoder"):
        TokenizerModule(small_tokenizer(), trained="encoder")  # type: ignore[arg-type]
