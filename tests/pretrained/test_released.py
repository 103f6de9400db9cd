"""Checkpoints in the authors' layout, made by a network of their form that is written in reference_network.py."""

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from gsq_lightning import GSQTokenizer, InputError
from tests.pretrained.reference_network import Network, make_config

F8: dict[str, Any] = {}
F16 = {
    "channel_multipliers": [1, 1, 2, 2, 2],
    "encoder_layer_configs": [2, 1, 0, 1, 2, 2],
    "decoder_layer_configs": [1, 2, 1, 2, 1, 3],
}
F32 = {
    "channel_multipliers": [1, 1, 2, 2, 1, 2],
    "encoder_layer_configs": [1, 1, 1, 1, 1, 1, 2],
    "decoder_layer_configs": [1, 1, 1, 1, 1, 1, 2],
}
CASES = {
    "f8": F8,
    "f16": F16,
    "f32": F32,
    "without adaptive norm": {**F8, "use_adaptive_norm": False},
    "nearest upsampling": {**F8, "use_learnable_up_down_sample": False},
    "neither": {**F16, "use_adaptive_norm": False, "use_learnable_up_down_sample": False},
    "attention in the middle": {**F16, "mid_block_attn": True},
    "attention at resolutions": {**F16, "attention_resolutions": [4, 16]},
    "attention everywhere": {**F32, "mid_block_attn": True, "attention_resolutions": [8, 16, 32]},
    "kernel sizes": {
        **F8,
        "residual_conv_kernel_size": 5,
        "input_conv_kernel_size": 7,
        "output_conv_kernel_size": 1,
    },
    "vq": {**F8, "quantizer": {"quantize_type": "vq", "num_group": 4}},
    "gvq without norm": {**F8, "quantizer": {"quantize_type": "gvq", "use_l2_norm": False}},
    "l1": {**F8, "quantizer": {"use_l2_norm": False, "use_l1_norm": True}},
    "clip": {**F8, "quantizer": {"num_group": 8, "use_l2_norm": False, "force_1d_clip": True}},
}


def write(path: Path, network: Network, **others: Any) -> None:
    state = {name: weight.detach() for name, weight in network.state.items()}
    torch.save({"model_state_dict": state, "config": network.config, **others}, path)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_the_references(case: str, tmp_path: Path) -> None:
    network = Network(make_config(**CASES[case]))
    factor = 2 ** (len(network.config["channel_multipliers"]) - 1)
    image = (torch.rand(2, 3, 2 * factor, 3 * factor) * 2 - 1).requires_grad_()
    expected = network.reconstruct(image)
    weights = torch.randn_like(expected.image)
    (expected.image * weights).mean().backward()
    write(tmp_path / "checkpoint.pt", network)

    tokenizer = GSQTokenizer.from_released(tmp_path / "checkpoint.pt")
    again = image.detach().clone().requires_grad_()
    output = tokenizer.encode(again)
    reconstruction = tokenizer.decode(output.quantized)
    (reconstruction * weights).mean().backward()
    assert torch.equal(output.indices, expected.indices)
    assert len(expected.indices.unique()) > 5
    torch.testing.assert_close(tokenizer.latent(again), expected.latent, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reconstruction, expected.image, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again.grad, image.grad, atol=1e-6, rtol=1e-3)
    # of the first and last weights; those between lie on the way
    for ours, theirs in (
        (tokenizer.encoder.conv_in.weight, "encoder.conv_in.weight"),
        (tokenizer.decoder.last_layer, "decoder.final_layers.2.weight"),
    ):
        torch.testing.assert_close(ours.grad, network.state[theirs].grad, atol=1e-5, rtol=1e-3)


@pytest.fixture
def network() -> Network:
    network = Network(make_config())
    network.reconstruct(torch.zeros(1, 3, 16, 16))
    return network


def test_what_the_config_leaves_out_is_read_from_the_tensors(network: Network, tmp_path: Path) -> None:
    """The released training configs give a part of the arguments alone."""
    for name in (
        *("input_channels", "mid_block_attn", "attention_resolutions", "use_adaptive_norm"),
        *("use_learnable_up_down_sample", "residual_conv_kernel_size", "input_conv_kernel_size"),
        *("output_conv_kernel_size", "dropout_probability", "quantizer_aux_loss_weight"),
    ):
        del network.config[name]
    write(tmp_path / "checkpoint.pt", network)
    network.config = make_config()
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        reconstruction = GSQTokenizer.from_released(tmp_path / "checkpoint.pt")(image)
        torch.testing.assert_close(reconstruction, network.reconstruct(image).image, atol=1e-4, rtol=1e-4)


def test_one_number_of_blocks_stands_for_all(network: Network, tmp_path: Path) -> None:
    network.config["encoder_layer_configs"] = network.config["decoder_layer_configs"] = 1
    write(tmp_path / "checkpoint.pt", network)
    assert GSQTokenizer.from_released(tmp_path / "checkpoint.pt").shape.encoder_blocks == 1


def test_from_pretrained_reads_them_too_and_writes_ours(network: Network, tmp_path: Path) -> None:
    write(tmp_path / "checkpoint.pt", network)
    released = GSQTokenizer.from_pretrained(tmp_path / "checkpoint.pt")
    released.save_pretrained(tmp_path / "ours")
    ours = GSQTokenizer.from_pretrained(tmp_path / "ours")
    assert ours.config == GSQTokenizer.from_pretrained(tmp_path).config  # a folder as the Hub has it
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(ours(image), released(image))
    with pytest.raises(InputError, match="as GSQ's authors released them"):
        GSQTokenizer.from_released(tmp_path / "ours")


def test_every_tensor_is_accounted_for(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    network.state["quantizers.usage"] = torch.zeros(64)
    write(path, network)
    with pytest.raises(InputError, match=r"1 of its tensors are no part of the network.*: quantizers.usage"):
        GSQTokenizer.from_released(path)
    del network.state["quantizers.usage"], network.state["decoder.blocks.0.net.3.bias"]
    write(path, network)
    with pytest.raises(InputError, match=r"in 1 tensor: decoder.blocks.0.net.3.bias: missing in the file"):
        GSQTokenizer.from_released(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": {"quantize_type": "lfq"}}, "quantize_type is 'lfq'; it must be one of: vq, gvq, gsq"),
        ({"quantizer": {"use_l1_norm": True}}, "use_l2_norm and use_l1_norm are both on"),
        ({"input_channels": 1}, "input_channels is 1; images have 3"),
        ({"channel_multipliers": None}, "its config does not describe a tokenizer"),
        ({"hidden_channels": "${width}"}, r"refers to another value by '\$\{width\}'"),
        ({"encoder_layer_configs": [1, 1]}, "one per level of channel_multipliers and one for the middle"),
    ],
)
def test_configs_that_do_not_work_are_refused(
    network: Network, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    network.config = make_config(**changes)
    write(tmp_path / "checkpoint.pt", network)
    with pytest.raises(InputError, match=message):
        GSQTokenizer.from_released(tmp_path / "checkpoint.pt")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


def test_code_in_a_checkpoint_is_named_and_not_run(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network.config["note"] = Evil()
    write(tmp_path / "checkpoint.pt", network)
    with pytest.raises(InputError, match=r"it holds \w+\.mkdir; only plain data"):
        GSQTokenizer.from_released(tmp_path / "checkpoint.pt")
    assert not Path("executed").exists()


def omegaconf_container(value: Any, classes: dict[str, type]) -> Any:
    """What OmegaConf 2 makes of plain data, as far as pickle sees it."""
    notes = classes["ContainerMetadata" if isinstance(value, dict | list) else "Metadata"]()
    notes.__dict__.update(ref_type=Any, object_type=dict, key_type=Any, resolver_cache=None, flags={})
    if isinstance(value, dict):
        made = classes["DictConfig"]()
        content: Any = {name: omegaconf_container(inner, classes) for name, inner in value.items()}
    elif isinstance(value, list):
        made = classes["ListConfig"]()
        content = [omegaconf_container(inner, classes) for inner in value]
    else:
        made = classes["AnyNode"]()
        made.__dict__.update(_metadata=notes, _parent=None, _val=value)
        return made
    for node in content.values() if isinstance(content, dict) else content:
        node._parent = made
    made.__dict__.update(_metadata=notes, _parent=None, _content=content)
    return made


def test_containers_of_omegaconf_are_read_as_plain_ones(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = network.config
    with monkeypatch.context() as patch:
        classes = {}
        for module, names in {
            "omegaconf": [],
            "omegaconf.base": ["ContainerMetadata", "Metadata"],
            "omegaconf.dictconfig": ["DictConfig"],
            "omegaconf.listconfig": ["ListConfig"],
            "omegaconf.nodes": ["AnyNode"],
        }.items():
            patch.setitem(sys.modules, module, types.ModuleType(module))
            for name in names:
                classes[name] = type(name, (), {"__module__": module})
                setattr(sys.modules[module], name, classes[name])
        network.config = omegaconf_container(plain, classes)
        write(tmp_path / "whole.pt", network)
        network.config = {**plain, "channel_multipliers": omegaconf_container(plain["channel_multipliers"], classes)}
        write(tmp_path / "part.pt", network)
    network.config = plain
    write(tmp_path / "plain.pt", network)
    expected = GSQTokenizer.from_released(tmp_path / "plain.pt").config
    for name in ("whole", "part"):
        assert GSQTokenizer.from_released(tmp_path / f"{name}.pt").config == expected


def test_names_of_the_hub(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from gsq_lightning.pretrained import export

    asked: list[tuple[str, str | None, bool]] = []

    def fetched(name: str, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((name, revision, local_files_only))
        assert "checkpoint.pt" in allow_patterns
        return str(tmp_path)

    write(tmp_path / "checkpoint.pt", network)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    for online in (True, False):
        monkeypatch.setattr(export, "reachable", lambda url, online=online: online)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        for load in (GSQTokenizer.from_released, GSQTokenizer.from_pretrained):
            assert load("HelmholtzAI-FZJ/GSQ-F8-D8-V64k", "v1").downsample_factor == 8
            # without network what was fetched before is taken, at once
            assert asked[-1] == ("HelmholtzAI-FZJ/GSQ-F8-D8-V64k", "v1", not online)
    with pytest.raises(InputError, match="holds weights of one kind"):
        GSQTokenizer.from_pretrained(tmp_path / "checkpoint.pt", weights="raw")
    with pytest.raises(InputError, match="there is no no/such/place, and it is no name of a repository"):
        GSQTokenizer.from_pretrained("no/such/place")

    def not_cached(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("nothing")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
    with pytest.raises(InputError, match=r"the Hugging Face Hub does not answer.*hf download owner/name$"):
        GSQTokenizer.from_pretrained("owner/name")
