"""Weights of pretrained networks: where they come from, and what is said where they cannot be had."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import alexnet

from gsq_lightning import InputError
from gsq_lightning.__main__ import main
from gsq_lightning.losses import LPIPS
from gsq_lightning.metrics import MetricName, ReconstructionMetrics
from gsq_lightning.metrics.inception import INCEPTION_URL, load_inception
from gsq_lightning.pretrained import hub as network
from gsq_lightning.pretrained import weights as pretrained
from gsq_lightning.pretrained.frozen import FrozenNetwork
from gsq_lightning.pretrained.weights import read_weights, recorded_files

URL = "https://example.invalid/weights-1234.pth"


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
    owner.to(torch.float64)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(owner.frozen(x), owner.frozen(x))  # no dropout
    owner.frozen(x).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in owner.frozen.network.parameters())


def test_missing_weights_are_named_with_command_and_option(offline: Path) -> None:
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        read_weights("pretrained", URL, "the example", "model.example.weights")
    cached = offline / "torch" / "hub" / "checkpoints" / "weights-1234.pth"
    for part in (
        "the example needs weights-1234.pth",
        f"curl -L --create-dirs -o {cached} {URL}",
        "model.example.weights",
    ):
        assert part in str(error.value)
    assert time.monotonic() - start < 2.0


def test_a_server_that_never_answers_counts_as_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = threading.Event()

    def wait(*_: Any, **__: Any) -> None:
        given_up.wait(60)
        raise TimeoutError

    monkeypatch.setattr(network.urllib.request, "urlopen", wait)
    start = time.monotonic()
    assert not pretrained.reachable(URL)
    assert time.monotonic() - start < 2.0
    given_up.set()


def test_weights_come_from_the_cache_or_a_path(offline: Path) -> None:
    cached = offline / "torch" / "hub" / "checkpoints" / "weights-1234.pth"
    cached.parent.mkdir(parents=True)
    torch.save({"a": torch.ones(2)}, cached)
    with recorded_files() as files:
        for weights in ("pretrained", str(cached)):
            assert torch.equal(read_weights(weights, URL, "the example", "option")["a"], torch.ones(2))
    assert files == [("the example", cached)] * 2


@pytest.mark.parametrize("content", [b"", b"half a file", b"PK\x03\x04rest"])
def test_damaged_weights_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights.pth cannot be read as weights.*remove it or fetch it anew"):
        read_weights(str(path), URL, "the example", "option")


def test_a_path_that_leads_nowhere_is_named() -> None:
    with pytest.raises(
        InputError, match=r"option is '/no/such\.pth'; it takes .pretrained. or the path of weights-1234"
    ):
        read_weights("/no/such.pth", URL, "the example", "option")


class _Payload:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return eval, ("__import__('pathlib').Path('payload-ran').touch()",)


def test_weights_that_would_run_code_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Payload()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="cannot be read as weights"):
        read_weights("weights.pth", URL, "the example", "option")
    assert not (tmp_path / "payload-ran").exists()


def test_inception_is_read_from_its_published_file(offline: Path) -> None:
    original = load_inception("random")
    path = offline / INCEPTION_URL.rsplit("/", 1)[-1]
    torch.save(original.state_dict(), path)
    loaded = load_inception(str(path))
    for ours, theirs in zip(loaded.parameters(), original.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(InputError, match="rFID needs weights-inception"):
        load_inception("pretrained")


@pytest.mark.parametrize(
    ("name", "file", "option"),
    [
        ("lpips_alex", "alexnet-owt-7be5be79.pth", "model.metrics.alexnet_weights"),
        ("lpips_vgg", "vgg16-397923af.pth", "model.metrics.vgg16_weights"),
        ("inception_score", "weights-inception-2015-12-05-6726825d.pth", "model.metrics.inception_weights"),
        ("rfid_clean_fid", "weights-inception-2015-12-05-6726825d.pth", "model.metrics.inception_weights"),
        ("rfd_dinov2", "vit_small_patch14_reg4_dinov2", "model.metrics.dinov2_weights"),
    ],
)
def test_each_network_of_the_metrics_says_what_is_missing(
    offline: Path, name: MetricName, file: str, option: str
) -> None:
    metrics = ReconstructionMetrics([name])  # made without asking for anything
    with pytest.raises(InputError) as error:
        metrics.load()
    assert file in str(error.value)
    assert option in str(error.value)


def test_weights_of_metrics_are_recorded(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(offline)
    torch.save({f"features.{name}": value for name, value in alexnet().features.state_dict().items()}, "alex.pth")
    metrics = ReconstructionMetrics(["psnr", "lpips_alex"], alexnet_weights="alex.pth")
    with recorded_files() as files:
        metrics.load()
    assert files == [("LPIPS (alex)", Path("alex.pth"))]


def test_loading_happens_when_asked_for_and_not_before(offline: Path) -> None:
    loss = LPIPS()
    with pytest.raises(InputError, match=r"LPIPS needs vgg16-397923af\.pth"):
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


def test_the_weights_command_says_when_there_is_nothing_to_fetch(capsys: pytest.CaptureFixture[str]) -> None:
    main(["weights", "--config", "quickstart.yaml"])
    assert "needs no pretrained weights" in capsys.readouterr().out
