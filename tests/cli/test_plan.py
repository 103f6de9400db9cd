"""`gsq plan` against arithmetic on paper, and against the real thing where that is small enough."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, TokenizerModule
from gsq_lightning.__main__ import main
from gsq_lightning.cli.costs import DEVICES, _Operators, count_parameters, count_step, lookup_seconds, without_values
from gsq_lightning.discriminators import PatchDiscriminator
from gsq_lightning.quantizers import FSQ

Build = Callable[..., GSQTokenizer]


def convolutions(multipliers: list[int], base: int, latent: int, size: int) -> tuple[float, float]:
    """FLOPs of an encoder and a decoder with 2 blocks per level, AGN and depth-to-space, from the paper's text."""

    def conv(inputs: int, outputs: int, side: int, kernel: int = 3) -> float:
        return 2.0 * inputs * outputs * kernel**2 * side**2

    def block(inputs: int, outputs: int, side: int) -> float:
        skip = conv(inputs, outputs, side, 1) if inputs != outputs else 0.0
        return conv(inputs, outputs, side) + conv(outputs, outputs, side) + skip

    widths = [base * multiplier for multiplier in multipliers]
    encoder, channels, side = conv(3, base, size), base, size
    for level, width in enumerate(widths):
        if level:
            side //= 2
            encoder += conv(channels, channels, side)
        encoder += (block(channels, width, side) if width != channels else 0) + 2 * block(width, width, side)
        channels = width
    encoder += 2 * block(channels, channels, side) + conv(channels, latent, side, 1)
    decoder = conv(latent, channels, side) + 2 * block(channels, channels, side)
    for level, width in reversed(list(enumerate(widths))):
        decoder += 2 * 2 * latent * channels  # scale and bias of AGN
        decoder += (block(channels, width, side) if width != channels else 0) + 2 * block(width, width, side)
        channels = width
        if level:
            decoder += conv(channels, 4 * channels, side)
            side *= 2
    return encoder, decoder + conv(channels, 3, side)


def test_flops_of_f8_are_those_of_the_formulas() -> None:
    """To 1 %, and with them the figures of the reference's network, 262 + 407 GFLOP at 256²."""
    with torch.device("meta"):
        module = TokenizerModule(GSQTokenizer(GroupedSphericalQuantizer(8, 8192)), ema_decay=None)
    with without_values(module):
        costs = count_step(module, 256, autocast=True)
    encoder, decoder = convolutions([1, 2, 2, 4], 128, 8, 256)
    assert costs.encoder == pytest.approx(encoder, rel=0.01)
    assert costs.decoder == pytest.approx(decoder, rel=0.01)
    assert (encoder / 1e9, decoder / 1e9) == pytest.approx((262, 407), abs=1)
    # twice as much backward, but for the first convolution, whose input needs no gradient
    assert costs.flops == pytest.approx(3 * (encoder + decoder), rel=0.01)
    assert costs.discriminator == 0


def kept_by_autograd(outputs: Tensor, weights: set[int]) -> int:
    """Bytes of the storages that the nodes of a graph hold."""
    found: dict[int, int] = {}
    nodes, seen = [outputs.grad_fn], set()
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            value = getattr(node, name) if name.startswith("_saved_") else None
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in weights:
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        nodes += [following for following, _ in node.next_functions]
    return sum(found.values())


def test_memory_of_activations_is_what_autograd_keeps(small_tokenizer: Build) -> None:
    tokenizer = small_tokenizer()
    module = TokenizerModule(tokenizer, ema_decay=None)
    weights = {one.untyped_storage().data_ptr() for one in tokenizer.parameters()}
    image = torch.rand(2, 3, 32, 32)
    latent = tokenizer.latent(image)
    reconstruction = tokenizer.decode(latent)
    expected = kept_by_autograd((reconstruction - image).square().mean() + latent.square().mean(), weights)
    with without_values(module):
        costs = count_step(module, 32, autocast=False)
    assert costs.kept == pytest.approx(expected / 2, rel=0.02)
    with without_values(module):
        halved = count_step(module, 32, autocast=True)
    assert 0.6 * costs.kept < halved.kept < 0.95 * costs.kept  # convolutions in bfloat16, norms in float32


def test_bytes_of_states_and_checkpoint(small_tokenizer: Build) -> None:
    module = TokenizerModule(small_tokenizer(), PatchDiscriminator(channels=8, num_layers=1, norm="none"))
    networks = [module.tokenizer, module.discriminator]
    moments = 0
    for network in networks:
        assert network is not None
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
        moments += sum(value.nbytes for value in states)
    assert module.ema is not None
    weights = sum(one.nbytes for part in (*networks, module.ema) for one in part.parameters())  # type: ignore[union-attr]
    gradients = sum(one.nbytes for part in networks for one in part.parameters())  # type: ignore[union-attr]
    parameters = count_parameters(module)
    assert parameters.checkpoint(averages=True) == weights + moments
    assert parameters.memory(averages=True, ranks=1, autocast=False) == weights + gradients + moments
    exchanged = parameters.memory(averages=True, ranks=2, autocast=False)
    assert exchanged == weights + 3 * gradients + moments  # and DDP's buckets


def test_frozen_networks_are_counted_once() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._held = (nn.Linear(10, 10),)

    module = TokenizerModule(GSQTokenizer(GroupedSphericalQuantizer(8, 16), base_channels=32, norm_groups=4))
    module.perceptual_loss = Held()  # type: ignore[assignment]
    assert count_parameters(module).frozen == 110 * 4


@pytest.mark.parametrize(
    ("dimension", "codebook_size", "milliseconds"),
    [
        (4, 262144, 2.054),  # comparisons
        (8, 8192, 0.0695),  # products
        (8, 262144, 2.222),
        (16, 262144, 4.445),
        (64, 8192, 0.4514),
        (2, 262144, 6.163),  # of two differences, two products with sums and a comparison: twelve
        (1, 262144, 0.0),
    ],
)
def test_limits_of_the_lookup(dimension: int, codebook_size: int, milliseconds: float) -> None:
    """Of 131,072 vectors on an H100: products at 989.4 TFLOP/s, ordinary units at 66.9, comparisons at a fourth."""
    quantizer = GroupedSphericalQuantizer(dimension, codebook_size, normalization="none")
    assert 1e3 * lookup_seconds(quantizer, 131072, DEVICES["h100"]) == pytest.approx(milliseconds, rel=1e-3)


def test_lookups_that_sort_take_no_time() -> None:
    with pytest.warns(UserWarning, match="ℓ2 normalization with 2"):
        on_circle = GroupedSphericalQuantizer(2, 99)
    assert lookup_seconds(on_circle, 131072, DEVICES["h100"]) == 0
    assert lookup_seconds(FSQ([8, 5, 5]), 131072, DEVICES["h100"]) == 0


@pytest.mark.parametrize(
    ("overlays", "images_per_second", "gib"), [([], 62.81, 35.0), (["--config", "fast.yaml"], 92.57, 15.5)]
)
def test_the_plan_is_what_was_measured(
    overlays: list[str], images_per_second: float, gib: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """f8 at 256² in batches of 16, one H200: benchmarks/RESULTS.md, "On a GPU"."""
    main(["plan", "--config", "f8.yaml", *overlays, "--device", "h200", "--data.global_batch_size", "16"])
    shown = capsys.readouterr().out
    assert float(re.search(r"images +([\d.]+) per second", shown)[1]) == pytest.approx(images_per_second, rel=0.15)
    assert float(re.search(r"activations +([\d.]+) GiB", shown)[1]) == pytest.approx(gib, rel=0.15)


def test_the_command_prints_a_table_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Its figures follow from each other: rate from FLOPs and MFU, steps from images, hours from steps."""
    main(
        [
            *("plan", "--config", "tiny_imagenet.yaml", "--gpus", "2", "--device", "a100", "--mfu", "0.25"),
            *("--train_images", "100000", "--model.perceptual_loss=null", "--model.discriminator=PatchDiscriminator"),
            *("--trainer.precision=bf16-mixed", "--data.global_batch_size=128", "--trainer.max_steps=1000"),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    table = {line[2:21].strip(): line[21:].split() for line in lines if line.startswith("  ")}
    step = float(table["a step"][0].replace(",", ""))  # the later row of that name: milliseconds
    rate = float(table["images"][0].replace(",", ""))
    assert step == pytest.approx(128 / rate * 1e3, rel=0.02)
    assert table["an epoch"][0] == str(100000 // 128)
    assert table["images kept"][:2] == ["128", "MiB"]  # runs/divergence.py
    assert table["the run"][0] == "1,000"
    hours = float(table["a step"][0]) / 1e3 * 1000 * 2 / 3600
    assert float(next(line for line in lines if "GPU-hours" in line).split()[0]) == pytest.approx(hours, abs=0.06)


def test_operators_are_those_that_compute() -> None:
    image = torch.ones(2, 3, requires_grad=True)
    with _Operators() as operators:
        ((image.view(6) * 2).unsqueeze(0) + torch.empty(6)).sum().backward()
    assert operators.count == 3 + 2  # mul, add, sum; the gradient's first one, and its mul


def test_a_small_step_takes_as_long_as_issuing_its_operators(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever its batch, until computing takes longer; each accumulated batch issues them again."""
    found = [planned(capsys), planned(capsys, "--data.global_batch_size", "80")]
    found.append(planned(capsys, "--model.accumulate_batches", "2"))
    issued = [re.fullmatch(r"([\d.]+) ms to issue ([\d,]+), 10 µs each .*", rows["its operators"]) for rows in found]
    times, operators = zip(*(match.groups() for match in issued if match), strict=True)
    assert operators[0] == operators[1]
    assert float(operators[2].replace(",", "")) == 2 * float(operators[0].replace(",", ""))
    assert [rows["a step"].split()[0] for rows in found] == list(times)
    assert times[0] == f"{1e-2 * float(operators[0].replace(',', '')):.1f}"
    large = planned(capsys, "--data.global_batch_size", "3480")
    assert large["its operators"] == found[0]["its operators"]
    assert float(large["a step"].split()[0]) > float(times[0])


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """Rows of the table, by their names."""
    main(["plan", "--config", "quickstart.yaml", *arguments])
    lines = capsys.readouterr().out.splitlines()
    return {line[2:21].strip(): " ".join(line[21:].split()) for line in lines if line.startswith("  ")}


def test_images_are_those_of_the_data(image_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An epoch of the recipe's crops; of a folder's files; of ImageNet where no place is named; as an option says."""
    crops = planned(capsys)
    assert crops["an epoch"].startswith("435 steps")  # 3,480 crops in batches of eight
    assert crops["the run"].startswith("870 steps 2.0 epochs")
    assert "to be read" not in crops
    imagenet = ("--data", "gsq_lightning.data.ImageNetDataModule", "--data.image_size", "64")
    unnamed = planned(capsys, *imagenet, "--data.global_batch_size", "8")
    assert unnamed["training images"] == "1,281,167 ImageNet's: no --data.root is given"
    assert unnamed["an epoch"].startswith(f"{1_281_167 // 8:,} steps")
    assert unnamed["to be read"].endswith("115 kB an image, ImageNet's mean")
    assert unnamed["a validation"].endswith("of 50,000 images, forward alone")
    files = sorted((image_root / "train").rglob("*.*"))
    mean = sum(file.stat().st_size for file in files) / len(files)
    found = planned(capsys, *imagenet, "--data.global_batch_size", "3", "--data.root", str(image_root))
    assert found["training images"] == f"{len(files)} in the data"
    assert found["an epoch"].startswith(f"{len(files) // 3} steps")
    assert found["to be read"].endswith(f"{mean / 1e3:,.0f} kB an image, their mean")
    assert found["a validation"].endswith(f"of {len(list((image_root / 'val').rglob('*.*')))} images, forward alone")
    options = ("--train_images", "80", "--val_images", "7", "--data.root", "/not/looked/at")
    given = planned(capsys, *imagenet, *options)
    assert given["training images"] == "80 as --train_images says"
    assert given["an epoch"].startswith("10 steps")
    assert given["a validation"].endswith("of 7 images, forward alone")


@pytest.mark.parametrize(
    ("options", "epoch", "run"),
    [
        (["--trainer.limit_train_batches", "100"], "50 steps", "870 steps 17.4 epochs"),  # two batches a step
        (["--trainer.limit_train_batches", "0.5"], "217 steps", "870 steps 4.0 epochs"),
        (["--trainer.max_epochs", "1"], "435 steps", "435 steps 1.0 epochs"),
        (["--trainer.max_epochs", "3"], "435 steps", "870 steps 2.0 epochs"),
        (["--trainer.max_epochs", "3", "--trainer.max_steps", "-1"], "435 steps", "1,305 steps 3.0 epochs"),
        (["--trainer.max_steps", "-1"], "435 steps", None),
    ],
)
def test_steps_are_those_of_the_trainers_options(
    options: list[str], epoch: str, run: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = planned(capsys, "--model.accumulate_batches", "2", *options)
    assert rows["an epoch"].startswith(epoch)
    assert rows.get("the run", "").startswith(run or "")
    assert ("the run" in rows) == (run is not None)


@pytest.mark.parametrize(("limit", "images"), [("0", None), ("1", 8), ("0.7", 16), ("1.0", 24)])
def test_a_validation_is_as_long_as_the_trainers_options_say(
    limit: str, images: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--data.val_batch_size", "4", "--trainer.devices", "2", "--trainer.limit_val_batches", limit)
    validation = planned(capsys, *options).get("a validation")  # of 24 tiles, in six batches a GPU or three
    assert (validation is None) if images is None else f"of {images} images" in str(validation)


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        (["--trainer.devices", "-1"], 1),
        (["--trainer.devices", "2"], 2),
        (["--trainer.devices", "[0,1]"], 2),
        (["--trainer.devices", "0,1"], 2),
        (["--trainer.devices", "4", "--trainer.num_nodes", "2"], 8),
        (["--trainer.devices", "4", "--gpus", "2"], 2),
    ],
)
def test_gpus_are_those_of_the_trainer(options: list[str], gpus: int, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "--config", "quickstart.yaml", *options])
    assert capsys.readouterr().out.startswith(f"quickstart.yaml on {gpus} × h100\n")


@pytest.mark.parametrize("name", ["bsq", "fsq"])
def test_quantizers_with_constants_of_their_own_are_planned(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "--config", "tiny_imagenet.yaml", "--config", f"quantizers/{name}.yaml"])
    assert "8 × 8 × 1" in capsys.readouterr().out


def test_what_does_not_fit_is_accumulated_in_equal_batches(capsys: pytest.CaptureFixture[str]) -> None:
    """What the plan advises is itself planned without complaint, and one batch fewer would not fit."""
    arguments = ["plan", "--config", "f16.yaml", "--device", "h200", "--model.discriminator=null"]
    main([*arguments, "--model.discriminator_start_step=0"])
    shown = capsys.readouterr().out
    advice = int(re.search(r"--model.accumulate_batches (\d+)", shown)[1])
    largest = int(re.search(r"largest batch +(\d+)", shown)[1])
    assert 512 % advice == 0
    assert 512 / advice <= largest < 512 / (advice / 2)
    main([*arguments, "--model.discriminator_start_step=0", f"--model.accumulate_batches={advice}"])
    assert "does not fit" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus is 0; it must be at least 1"),
        (["--mfu", "40"], "--mfu is 40.0; it must be above 0 and at most 1"),
        (["--gpus", "7"], "global_batch_size 512 does not divide over 7 device(s)"),
        (["--train_images", "0"], "--train_images is 0; it must be at least 1"),
        (["--train_images", "500"], "there are 500 training images, fewer than data.global_batch_size 512"),
        (["--data.root", "nowhere"], "nowhere"),
        (["--device", "h1000"], "invalid choice: 'h1000'"),
        (["--gpu", "3"], "there is no option --gpu"),
    ],
)
def test_what_cannot_be_planned_ends_in_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["plan", "--config", "f16.yaml", *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
