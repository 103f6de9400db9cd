import threading
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gsq_lightning import pretrained
from gsq_lightning.errors import InputError
from gsq_lightning.pretrained import FrozenNetwork, fixed_random_weights, read_hub_weights, read_weights

URL = "https://example.invalid/files/network-1234.pth"
STATE = {"weight": torch.arange(6.0).view(2, 3)}

Read = Callable[[str], dict[str, Tensor]]


def from_url(weights: str) -> dict[str, Tensor]:
    return read_weights(weights, URL, "the loss", "loss.weights")


def from_hub(weights: str) -> dict[str, Tensor]:
    return read_hub_weights(weights, "owner/network", "the loss", "loss.weights")


@pytest.fixture(autouse=True)
def caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Empty ones."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_reachable", lambda url: False)


@pytest.mark.parametrize("read", [from_url, from_hub])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_by_path_is_read(read: Read, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"network{suffix}"
    if suffix == ".pth":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    torch.testing.assert_close(read(str(path)), STATE)


@pytest.mark.parametrize("read", [from_url, from_hub])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_named(read: Read, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"network{suffix}"
    path.write_bytes(b"not weights")
    with pytest.raises(InputError, match=f"the loss: {path} cannot be read as weights"):
        read(str(path))


@pytest.mark.parametrize(("read", "file"), [(from_url, "network-1234.pth"), (from_hub, "model.safetensors of owner/")])
def test_a_missing_file_is_named(read: Read, file: str) -> None:
    with pytest.raises(InputError, match=f"loss.weights is 'nowhere.pth'.* the path of {file}"):
        read("nowhere.pth")


@pytest.mark.usefixtures("offline")
def test_without_network_the_message_says_what_to_do(caches: Path) -> None:
    for read, command, cache in [
        (from_url, f"curl -L --create-dirs -o {caches}/torch/checkpoints/network-1234.pth {URL}", "torch/checkpoints"),
        (from_hub, "hf download owner/network model.safetensors", "hub"),
    ]:
        with pytest.raises(InputError) as error:
            read("pretrained")
        message = str(error.value)
        assert message.startswith("the loss needs ")
        assert f"{command};" in message
        assert str(caches / cache) in message
        assert "set loss.weights to the path of that file" in message


@pytest.mark.usefixtures("offline")
def test_a_file_in_the_cache_needs_no_network(caches: Path) -> None:
    (caches / "torch" / "checkpoints").mkdir(parents=True)
    torch.save(STATE, caches / "torch" / "checkpoints" / "network-1234.pth")
    torch.testing.assert_close(from_url("pretrained"), STATE)

    repository = caches / "hub" / "models--owner--network"  # as the Hub's own client lays it out
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(STATE, repository / "snapshots" / ("0" * 40) / "model.safetensors")
    torch.testing.assert_close(from_hub("pretrained"), STATE)


def test_with_network_the_file_is_fetched(monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    asked: list[str] = []

    def reachable(url: str) -> bool:
        asked.append(url)
        return True

    def download(repository: str, filename: str) -> str:
        save_file(STATE, caches / filename)
        return str(caches / filename)

    monkeypatch.setattr(pretrained, "_reachable", reachable)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path: torch.save(STATE, path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    torch.testing.assert_close(from_url("pretrained"), STATE)
    assert [path.name for path in (caches / "torch" / "checkpoints").iterdir()] == ["network-1234.pth"]
    torch.testing.assert_close(from_hub("pretrained"), STATE)
    assert asked[0] == URL
    assert asked[1].endswith("/owner/network/resolve/main/model.safetensors")


@pytest.mark.parametrize("read", [from_url, from_hub])
def test_a_failed_download_is_one_line(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise urllib.error.URLError("no space\nleft")

    monkeypatch.setattr(pretrained, "_reachable", lambda url: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(InputError, match=r"the loss: .* could not be fetched: .*no space"):
        read("pretrained")


def test_the_hubs_offline_switch_counts_as_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(url: str) -> bool:
        raise AssertionError("must not ask")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(pretrained, "_reachable", ask)
    with pytest.raises(InputError, match="no network"):
        from_hub("pretrained")


@pytest.mark.parametrize("read", [from_url, from_hub])
def test_a_network_that_hangs_costs_two_seconds_at_most(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where packets are dropped, or looking up the server's name takes its minute."""
    over = threading.Event()

    def hang(*args: object, **options: object) -> None:
        over.wait(10)
        raise TimeoutError

    monkeypatch.setattr("urllib.request.urlopen", hang)
    start = time.monotonic()
    with pytest.raises(InputError, match="no network"):
        read("pretrained")
    assert time.monotonic() - start < 2.0
    over.set()


def test_a_server_that_refuses_is_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise urllib.error.HTTPError(URL, 403, "forbidden", None, None)  # type: ignore[arg-type]

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert pretrained._reachable(URL)


def test_random_weights_are_fixed_and_leave_the_random_stream_alone(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    layers = []
    for _ in range(2):
        with fixed_random_weights("the loss"):
            layers.append(nn.Linear(3, 3))
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert torch.equal(torch.rand(3), expected)
    assert "the loss has random weights" in caplog.text


def test_a_frozen_network_is_out_of_sight_but_moves_along() -> None:
    holder = nn.Sequential(FrozenNetwork(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())))
    frozen = holder[0].network
    holder.train().requires_grad_(True)
    assert not list(holder.parameters())
    assert not list(holder.buffers())
    assert not holder.state_dict()
    assert not any(module.training for module in frozen.modules())
    assert not any(weight.requires_grad for weight in frozen.parameters())
    holder.double()
    assert frozen[0].weight.dtype == frozen[1].running_mean.dtype == torch.float64
