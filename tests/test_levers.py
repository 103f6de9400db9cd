"""What makes a training step fast changes neither losses nor weights.

Levers of benchmarks/training.py that other files have: one batch for both networks and fused optimizers
(test_paper_steps.py), compiled networks (test_training.py), a reconstruction that is judged once
(discriminators/test_projected.py), a trunk that two losses share (losses/test_objective.py), upsampling and its
convolution in one (networks/test_layers.py).
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, TokenizerModule
from gsq_lightning.discriminators import ProjectedDiscriminator
from gsq_lightning.losses import EfficientNetLoss, LossWeights
from gsq_lightning.metrics import ReconstructionMetrics
from tests.data.test_data import quiet_trainer


class Watch(Callback):
    """Losses and gradients of each step."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self.gradients.append({name: one.grad.clone() for name, one in named if one.grad is not None})

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.losses.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.1)


def as_quickstart(**settings: Any) -> TokenizerModule:
    """Layers and losses of quickstart.yaml, four channels to a group too, but two levels and random trunks."""
    torch.manual_seed(0)
    tokenizer = GSQTokenizer(
        GroupedSphericalQuantizer(8, 32, 2),
        channel_multipliers=(1, 2),
        base_channels=8,
        encoder_blocks=1,
        decoder_blocks=1,
        upsampling="nearest",
        norm_groups=2,
    )
    return TokenizerModule(
        tokenizer,
        ProjectedDiscriminator("random", head_channels=8),
        EfficientNetLoss("random"),
        ReconstructionMetrics(["psnr"]),
        tokenizer_optimizer=sgd,
        discriminator_optimizer=sgd,
        **settings,
    )


def loader() -> DataLoader[Tensor]:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return DataLoader(images, batch_size=2)  # type: ignore[arg-type]


def trained(module: TokenizerModule, folder: Path, **settings: Any) -> tuple[Watch, Trainer]:
    """After two steps and a validation."""
    watch = Watch()
    options = {"num_sanity_val_steps": 0, "limit_val_batches": 1.0, "enable_checkpointing": False}
    trainer = quiet_trainer(2, folder, callbacks=[watch], **options, **settings)
    trainer.fit(module, loader(), loader())
    return watch, trainer


def test_channels_last_changes_the_layout_alone(tmp_path: Path) -> None:
    plain, fast = as_quickstart(), as_quickstart(channels_last=True)
    (expected, trainer), (got, fast_trainer) = trained(plain, tmp_path), trained(fast, tmp_path)
    layouts = [
        module.tokenizer.decoder.last_layer.is_contiguous(memory_format=torch.channels_last) for module in (plain, fast)
    ]
    assert layouts == [False, True]
    for losses, others in zip(got.losses, expected.losses, strict=True):
        assert losses == pytest.approx(others, rel=1e-4, abs=1e-5)
    for gradients, of_others in zip(got.gradients, expected.gradients, strict=True):
        assert gradients.keys() == of_others.keys()
        for name, gradient in gradients.items():
            difference = (gradient - of_others[name]).norm()
            assert difference <= 1e-3 * of_others[name].norm() + 1e-6, name
    assert float(fast_trainer.callback_metrics["val/psnr"]) == pytest.approx(
        float(trainer.callback_metrics["val/psnr"]), rel=1e-4
    )


@pytest.mark.parametrize("penalty", [0.0, 1.0], ids=["", "with gradient penalty"])
def test_compiled_frozen_networks_give_the_same_losses_and_gradients(
    penalty: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []

    def compile_without_code(network: nn.Module, dynamic: bool | None = None) -> None:
        compiled.append(network)
        network._compiled_call_impl = torch.compile(network._call_impl, backend="aot_eager", dynamic=dynamic)

    monkeypatch.setattr(nn.Module, "compile", compile_without_code)
    losses = LossWeights(gradient_penalty=penalty)
    plain = as_quickstart(loss_weights=losses, adaptive_weight=True)
    fast = as_quickstart(loss_weights=losses, adaptive_weight=True, compile_networks=True)
    (expected, trainer), (got, fast_trainer) = trained(plain, tmp_path), trained(fast, tmp_path)
    names = [type(network).__name__ for network in compiled]
    assert names == ["Encoder", "Decoder"] + ["Body", "Body", "RandomProjection"] * (penalty == 0)
    for values, others in zip(got.losses, expected.losses, strict=True):
        assert values == pytest.approx(others, rel=1e-4, abs=1e-5)
    for gradients, of_others in zip(got.gradients, expected.gradients, strict=True):
        assert gradients.keys() == of_others.keys()
        for name, gradient in gradients.items():
            difference = (gradient - of_others[name]).norm()
            assert difference <= 1e-3 * of_others[name].norm() + 1e-6, name
    psnr, expected_psnr = (float(one.callback_metrics["val/psnr"]) for one in (fast_trainer, trainer))
    assert psnr == pytest.approx(expected_psnr, rel=1e-4)


def test_bf16_on_a_cpu_computes_convolutions_alone_in_it(tmp_path: Path) -> None:
    """Weights, their average, codes, losses and metrics stay in float32, the lookup in float64; losses change by a few
    hundredths at most."""
    module = as_quickstart()
    dtypes: set[torch.dtype] = set()
    module.tokenizer.decoder.conv_in.register_forward_hook(lambda _, inputs, output: dtypes.add(output.dtype))
    latents: list[Tensor] = []
    indices: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        latents.append(inputs[0].detach())
        indices.append(output.indices)

    codebook = module.tokenizer.quantizer.codebook.detach().clone().double()
    module.tokenizer.quantizer.register_forward_hook(note)
    watch, trainer = trained(module, tmp_path, precision="bf16-mixed")
    assert dtypes == {torch.bfloat16}
    assert latents[0].dtype == torch.bfloat16
    points = latents[0].double().unflatten(1, (2, 4)).permute(0, 3, 4, 1, 2)  # (B, h, w, G, d)
    distances = torch.cdist(points / points.norm(dim=-1, keepdim=True), codebook / codebook.norm(dim=-1, keepdim=True))
    assert torch.equal(indices[0], distances.argmin(dim=-1))
    assert module.ema is not None
    assert {value.dtype for network in (module, module.ema) for value in network.parameters()} == {torch.float32}

    psnr = float(trainer.callback_metrics["val/psnr"])
    in_float32 = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (in_full,) = in_float32.validate(module, loader(), verbose=False)
    assert psnr == pytest.approx(in_full["val/psnr"], abs=0.1)

    expected, _ = trained(as_quickstart(), tmp_path)
    names = [name for name in expected.losses[0] if name.startswith("train/loss")]
    for losses, others in zip(watch.losses, expected.losses, strict=True):
        assert [losses[name] for name in names] == pytest.approx([others[name] for name in names], rel=0.05)
