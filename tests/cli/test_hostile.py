"""Files that mean harm, files that are damaged, configs that are absurd: none runs code, each ends in one line."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gsq_lightning import GSQTokenizer, InputError
from gsq_lightning.__main__ import main
from tests.cli.test_fit import TINY, error_of, images, train_tiny


class Payload:
    """What an attacker would pickle; harmless here: it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny tokenizer, with images beside it."""
    run = train_tiny(tmp_path_factory.mktemp("hostile"), train_images=4, val_images=2, steps=1)
    return run / "checkpoints" / "last.ckpt"


@pytest.fixture
def place(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(checkpoint.parents[4] / "images", tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(checkpoint: Path, path: Path, change: Any) -> str:
    state = torch.load(checkpoint, weights_only=True)
    change(state)
    torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("key", ["state_dict", "data_settings", "tokenizer_config", "callbacks", "anything"])
@pytest.mark.parametrize("command", ["validate", "fit", "from_pretrained"])
def test_a_pickle_that_would_run_code_does_not(
    checkpoint: Path, place: Path, key: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = changed(checkpoint, place / "hostile.ckpt", lambda state: state.update({key: Payload(place / "ran")}))
    if command == "from_pretrained":
        with pytest.raises(InputError, match="is not a readable checkpoint"):
            GSQTokenizer.from_pretrained(hostile)
    else:
        config = ["--config", "quickstart.yaml", *TINY, *images(Path("images"))] if command == "fit" else []
        error = error_of([command, *config, f"--ckpt_path={hostile}", "--data.root=images"], capsys)
        assert "is not a readable checkpoint" in error
    assert not (place / "ran").exists()


STRANGER = {"class_path": "os.mkdir", "init_args": {"path": "ran"}}


def name_a_stranger_as_quantizer(state: dict[str, Any]) -> None:
    state["tokenizer_config"]["quantizer"]["class"] = "os.mkdir"


def name_a_stranger_as_tokenizer(state: dict[str, Any]) -> None:
    state["tokenizer_config"] = STRANGER


def name_a_stranger_within_the_quantizer(state: dict[str, Any]) -> None:
    state["tokenizer_config"]["quantizer"]["latent_channels"] = STRANGER


def name_a_stranger_within_the_tokenizer(state: dict[str, Any]) -> None:
    state["tokenizer_config"]["norm_groups"] = STRANGER


def name_what_imports_the_stranger(state: dict[str, Any]) -> None:
    state["tokenizer_config"]["upsampling"] = "this.antigravity"


def name_a_config_file(state: dict[str, Any]) -> None:
    Path("words.yaml").write_text("class_path: os.mkdir\ninit_args: {path: ran}\n")
    state["tokenizer_config"]["channel_multipliers"] = "words.yaml"


def name_what_the_library_imports(state: dict[str, Any]) -> None:
    state["tokenizer_config"]["quantizer"]["class"] = "import_module"


@pytest.mark.parametrize(
    "change",
    [
        name_a_stranger_as_quantizer,
        name_a_stranger_as_tokenizer,
        name_a_stranger_within_the_quantizer,
        name_a_stranger_within_the_tokenizer,
        name_what_imports_the_stranger,
        name_a_config_file,
        name_what_the_library_imports,
    ],
)
@pytest.mark.parametrize("command", ["validate", "predict"])
def test_a_tokenizer_config_that_names_somebody_elses_classes_is_refused(
    checkpoint: Path, place: Path, change: Any, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = changed(checkpoint, place / "hostile.ckpt", change)
    error = error_of([command, f"--ckpt_path={hostile}", "--data.root=images"], capsys)
    assert "does not fit this version of gsq-lightning" in error
    assert not (place / "ran").exists()


def test_what_else_a_checkpoint_says_of_classes_is_not_read(checkpoint: Path, place: Path) -> None:
    """As Lightning's CLI would, which makes a module of `hyper_parameters`."""

    def change(state: dict[str, Any]) -> None:
        state["hyper_parameters"] = {"_class_path": "os.mkdir", "path": "ran", "_instantiator": "os.mkdir"}
        state["datamodule_hyper_parameters"] = {"_class_path": "os.mkdir", "path": "ran"}
        state["data_settings"]["class"] = "subprocess.Popen"
        state["metrics"] = ["psnr", STRANGER]
        state["metric_settings"] = {"antialias": STRANGER, "inception_weights": "ran", "own": [STRANGER], "names": True}
        state["recipe"] = STRANGER

    hostile = changed(checkpoint, place / "hostile.ckpt", change)
    data = ["--data.root=images", "--data.image_size=16", "--data.num_workers=0", "--model.metrics.names=[psnr]"]
    main(["validate", f"--ckpt_path={hostile}", *data])
    assert not (place / "ran").exists()


def with_place(checkpoint: Path, path: Path, option: str, place_of_images: str) -> str:
    def change(state: dict[str, Any]) -> None:
        state["data_settings"] |= {"root": None, "train": None, "val": None, option: place_of_images}
        state["data_settings"]["source"] = "webdataset"

    return changed(checkpoint, path, change)


@pytest.mark.parametrize(
    "place_of_images",
    [
        "pipe:mkdir ran",
        "a.tar::pipe:mkdir ran; cat a.tar",
        "pip{e:mkdir ran #,e:true}",
        "p${WDS_I}pe:mkdir ran",
        "https://host/a.tar';mkdir ran;'",
        "sftp://-oProxyCommand=mkdir/a.tar",
        "/pipe:mkdir ran",
        "images",  # not absolute: whose it is depends on where the command is started
    ],
)
@pytest.mark.parametrize("option", ["root", "val"])
def test_a_place_of_the_data_that_is_not_a_local_path_is_not_taken_from_a_checkpoint(
    checkpoint: Path, place: Path, place_of_images: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = with_place(checkpoint, place / "hostile.ckpt", option, place_of_images)
    assert "data.root is missing" in error_of(["validate", f"--ckpt_path={hostile}"], capsys)
    assert not (place / "ran").exists()


@pytest.mark.parametrize("option", ["root", "val"])
def test_a_place_in_a_checkpoint_is_not_opened_beside_one_that_is_given(
    checkpoint: Path, place: Path, option: str
) -> None:
    hostile = with_place(checkpoint, place / "hostile.ckpt", option, "pipe:mkdir ran")
    main(["validate", f"--ckpt_path={hostile}", "--data.root=images", "--data.source=auto", "--data.num_workers=0"])
    assert not (place / "ran").exists()


@pytest.mark.parametrize("name", ["os", "QuantizerOutput", "Quantizer", "__builtins__", "spherical", 7, None, ["a"]])
def test_an_export_may_only_name_a_quantizer(checkpoint: Path, tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "exported"
    GSQTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantizer"]["class"] = name
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="does not fit this version"):
        GSQTokenizer.from_pretrained(folder)


def test_weights_of_another_shape_are_named(checkpoint: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(state: dict[str, Any]) -> None:
        weights = state["state_dict"]
        weights["ema.module.encoder.conv_in.weight"] = torch.zeros(2, 3)
        weights["ema.module.intruder"] = weights.pop("ema.module.encoder.conv_in.bias")

    broken = changed(checkpoint, place / "broken.ckpt", change)
    error = error_of(["validate", f"--ckpt_path={broken}", "--data.root=images"], capsys)
    for part in (
        "do not fit this model in 3 tensors",
        "encoder.conv_in.weight: (2, 3) in the file, (8, 3, 3, 3) in the model",
        "encoder.conv_in.bias: missing in the file",
        "intruder: unknown to the model",
    ):
        assert part in error


ABSURD = [
    "--model.tokenizer.quantizer.codebook_size=0",
    "--model.tokenizer.quantizer.codebook_size=-3",
    "--model.tokenizer.quantizer.codebook_size=1000000000000",
    "--model.tokenizer.quantizer.codebook_size=99999999999999999999999999",
    "--model.tokenizer.quantizer.num_groups=0",
    "--model.tokenizer.quantizer.num_groups=3",
    "--model.tokenizer.quantizer.latent_channels=0",
    "--model.tokenizer.quantizer.commitment_weight=-1",
    "--model.tokenizer.quantizer.commitment_weight=nan",
    "--model.tokenizer.quantizer.normalization=l7",
    "--model.tokenizer.channel_multipliers=[]",
    "--model.tokenizer.channel_multipliers=[1,-2]",
    "--model.tokenizer.channel_multipliers=[1,1000000000]",
    "--model.tokenizer.base_channels=1000000000",
    "--model.tokenizer.base_channels=0",
    "--model.tokenizer.norm_groups=0",
    "--model.tokenizer.norm_groups=-4",
    "--model.tokenizer.encoder_blocks=-1",
    "--model.tokenizer.residual_kernel_size=2",
    "--model.tokenizer.dropout=1.5",
    "--model.tokenizer.dropout=nan",
    "--model.discriminator.channels=0",
    "--model.discriminator.num_layers=-1",
    "--model.discriminator.num_layers=60",
    "--model.loss_weights.reconstruction=-1",
    "--model.loss_weights.adversarial=nan",
    "--model.loss_weights.perceptual=inf",
    "--model.tokenizer_optimizer.lr=-1",
    "--model.tokenizer_optimizer.lr=nan",
    "--model.tokenizer_optimizer.betas=[2,3]",
    "--model.tokenizer_optimizer.weight_decay=-1",
    "--model.tokenizer_clip_norm=nan",
    "--model.tokenizer_clip_norm=-1",
    "--model.ema_decay=nan",
    "--model.ema_decay=1",
    "--model.accumulate_batches=0",
    "--model.accumulate_batches=3",
    "--model.max_skipped_steps=0",
    "--model.discriminator_start_step=-5",
    "--model.metrics.names=[psnr,psnr]",
    "--model.metrics.names=[fid]",
    "--model.metrics.names=[ssim,7]",
    "--data.image_size=7",
    "--data.image_size=0",
    "--data.image_size=-16",
    "--data.image_size=1.5",
    "--data.image_size=sixteen",
    "--data.image_size=1000000000",
    "--data.global_batch_size=0",
    "--data.global_batch_size=-4",
    "--data.global_batch_size=1000000000000",
    "--data.val_batch_size=-1",
    "--data.val_crop_ratio=nan",
    "--data.num_workers=-1",
    "--data.num_workers=abc",
    "--data.crop_scale=[nan,1]",
    "--data.seed=-1",
    "--data.root=\U0001f40d",
    "--data.root=",
    "--trainer.max_steps=-7",
    "--trainer.devices=0",
    "--trainer.precision=int8",
    "--trainer.gradient_clip_val=1",
    "--checkpoint.every_n_train_steps=-1",
    "--reconstructions.num_images=-1",
    "--reconstructions.columns=0",
    "--tokens.images_per_shard=0",
    "--seed_everything=-1",
    "--nonsense=1",
    "--model=7",
    "--model.tokenizer=null",
    "--data=null",
    "--trainer.logger=7",
    "--config=/dev/null/x",
]


@pytest.mark.parametrize("flag", ABSURD)
def test_absurd_values_end_in_one_line(place: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(
        ["fit", "--config", "quickstart.yaml", *TINY, *images(Path("images")), "--trainer.max_steps=1", flag], capsys
    )
    assert len(error) < 1500


CONFIGS = {
    "nothing but a word": "hello",
    "a list": "- 1\n- 2\n",
    "broken": "model: [1, 2",
    "another tag": "model: !!python/object/apply:os.mkdir ['ran']",
    "deep": "model: " + "[" * 3000 + "]" * 3000,
    "twice": "data:\n  image_size: 16\ndata: 7\n",
    "another section": "optimizer:\n  lr: 1\n",
    "text for a number": "data:\n  init_args:\n    image_size: many\n",
    "a stranger": "model:\n  tokenizer:\n    class_path: os.mkdir\n    init_args:\n      path: ran\n",
    "a command as an optimizer": "model:\n  tokenizer_optimizer:\n    class_path: os.system\n",
    "a command as a callback": "trainer: {callbacks: {class_path: subprocess.Popen, init_args: {args: [touch, ran]}}}",
    "control characters": "model: \x00\x01",
    "not UTF-8": "model: \udcff\udcfe",
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_absurd_config_files_end_in_one_line(place: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("absurd.yaml").write_bytes(CONFIGS[kind].encode("utf-8", "surrogateescape"))
    flags = [*images(Path("images")), "--trainer.max_steps=1"]
    error = error_of(["fit", "--config", "quickstart.yaml", "--config", "absurd.yaml", *TINY, *flags], capsys)
    assert len(error) < 3000
    assert not (place / "ran").exists()


def test_a_folder_and_a_picture_are_no_configs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no config file images" in error_of(["fit", "--config", "images"], capsys)
    picture = next((place / "images" / "train").iterdir())
    assert "cannot be read as YAML" in error_of(["fit", "--config", str(picture)], capsys)
