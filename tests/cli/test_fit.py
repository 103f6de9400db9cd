"""The command, called in this process, as a user would type it."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from gsq_lightning import GSQTokenizer
from gsq_lightning.__main__ import main
from gsq_lightning.cli.source import data_default
from gsq_lightning.data import TokenDataset
from gsq_lightning.reports import read_report
from tests.conftest import WITHOUT_WEIGHTS, write_images

TINY = [
    "--model.tokenizer.base_channels=8",
    "--model.tokenizer.channel_multipliers=[1,2]",
    "--model.tokenizer.encoder_blocks=1",
    "--model.tokenizer.decoder_blocks=1",
    "--model.tokenizer.norm_groups=4",
    "--model.channels_last=false",
    "--model.tokenizer.quantizer.codebook_size=16",
    *WITHOUT_WEIGHTS,
    "--model.discriminator.channels=4",
    "--model.discriminator.num_layers=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def images(root: Path, size: int = 16) -> list[str]:
    return [
        "--data=ImageNetDataModule",
        f"--data.root={root}",
        f"--data.image_size={size}",
        "--data.global_batch_size=4",
        "--data.num_workers=0",
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny tokenizer, trained for three steps on images beside it."""

    return train_tiny(tmp_path_factory.mktemp("trained"), train_images=8, val_images=5, steps=3)


def train_tiny(folder: Path, train_images: int, val_images: int, steps: int) -> Path:
    """Makes `images/` in a folder and trains on them from there; the run's folder."""
    write_images(folder / "images" / "train", train_images)
    write_images(folder / "images" / "val", val_images, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", "quickstart.yaml", *TINY, *images(Path("images")), f"--trainer.max_steps={steps}"])
    return folder / "runs" / "quickstart" / "version_0"


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a wrong command ends with; exit code 2."""
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gsq: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_fit_trains_validates_and_says_where_everything_is(trained: Path) -> None:
    assert (trained / "reconstructions.png").is_file()
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    assert list(trained.glob("events.out.tfevents.*"))
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["tokenizer"]["init_args"]["quantizer"]["init_args"]["codebook_size"] == 16


def test_validate_needs_a_checkpoint_and_images_alone(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = trained / "checkpoints" / "last.ckpt"
    main(["validate", f"--ckpt_path={checkpoint}", f"--data.root={trained.parents[2] / 'images'}"])
    output = capsys.readouterr().out
    for name in ("PSNR", "SSIM", "rfd_random", "codebook usage", "codebook perplexity", "bits per pixel"):
        assert name in output
    assert (trained / "checkpoints" / "validate" / "last" / "reconstructions.png").is_file()
    # again into the same folder
    main(["validate", f"--ckpt_path={checkpoint}", f"--data.root={trained.parents[2] / 'images' / 'val'}"])


def test_another_root_leaves_the_places_of_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    """Where it was trained on images that train and val named, which would come before root."""
    source = trained.parents[2] / "images"
    places = [f"--data.train={source / 'train'}", f"--data.val={source / 'val'}"]
    logger = [f"--trainer.logger.save_dir={tmp_path / 'runs'}", "--trainer.max_steps=1"]
    flags = [flag for flag in images(source) if not flag.startswith("--data.root")]
    main(["fit", "--config", "quickstart.yaml", *TINY, *flags, *places, *logger])
    checkpoint = tmp_path / "runs" / "quickstart" / "version_0" / "checkpoints" / "last.ckpt"
    write_images(tmp_path / "others", 3)
    (tmp_path / "others.yaml").write_text(f"data:\n  init_args:\n    root: {tmp_path / 'others'}\n")
    for names, number in ((["--config", str(tmp_path / "others.yaml")], 3), (["--data.root", str(source)], 5), ([], 5)):
        main(["validate", f"--ckpt_path={checkpoint}", *names])
        report = read_report(checkpoint.parent / "validate" / "last" / "metrics.json")
        assert report.metrics["images"] == number
    main(["validate", f"--ckpt_path={checkpoint}", f"--data.root={tmp_path / 'others'}"])
    assert read_report(checkpoint.parent / "validate" / "last" / "metrics.json").metrics["images"] == 3


def test_photographs_of_ones_own_are_trained_on_and_what_was_held_out_is_validated(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 24)
    root = f"--data.root={tmp_path / 'photos'}"
    sizes = ["--data.image_size=16", "--data.short_side=32"]
    small = [*sizes, "--data.global_batch_size=4", "--data.num_workers=0"]
    logger = [f"--trainer.logger.save_dir={tmp_path / 'runs'}", "--trainer.max_steps=1", "--data.val_share=0.25"]
    main(["fit", "--config", "quickstart.yaml", *TINY, root, *small, *logger])
    checkpoint = tmp_path / "runs" / "quickstart" / "version_0" / "checkpoints" / "last.ckpt"
    trained = read_report(tmp_path / "runs" / "quickstart" / "version_0" / "metrics.json")
    assert 1 < trained.metrics["images"] < 12
    write_images(tmp_path / "others", 9)
    for names, number in (([], trained.metrics["images"]), ([root], trained.metrics["images"])):
        main(["validate", f"--ckpt_path={checkpoint}", *names])
        report = read_report(checkpoint.parent / "validate" / "last" / "metrics.json")
        assert (report.metrics["images"], report.originals) == (number, trained.originals)
    main(["validate", f"--ckpt_path={checkpoint}", f"--data.root={tmp_path / 'others'}"])
    assert read_report(checkpoint.parent / "validate" / "last" / "metrics.json").metrics["images"] == 9
    tokens = f"--tokens.folder={tmp_path / 'tokens'}"
    main(["predict", f"--ckpt_path={checkpoint}", f"--data.root={tmp_path / 'others'}", tokens])
    (shard,) = (tmp_path / "tokens" / "val").glob("*.safetensors")
    assert len(load_file(shard)["indices"]) == 9


def test_tokens_leave_out_images_that_cannot_be_read(trained: Path, tmp_path: Path) -> None:
    """Also where a batch has none but those."""
    write_images(tmp_path / "images", 2)
    (tmp_path / "images" / "image_000.jpg").write_bytes(b"no image")
    flags = ["--data.on_error=skip", "--data.val_batch_size=1", f"--tokens.folder={tmp_path / 'tokens'}"]
    checkpoint = trained / "checkpoints" / "last.ckpt"
    main(["predict", f"--ckpt_path={checkpoint}", f"--data.root={tmp_path / 'images'}", *flags])
    (shard,) = (tmp_path / "tokens" / "val").glob("*.safetensors")
    assert len(load_file(shard)["indices"]) == 2


def test_a_folder_of_damaged_images_gives_no_tokens_but_an_error(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    arguments = [f"--ckpt_path={trained / 'checkpoints' / 'last.ckpt'}", f"--data.root={tmp_path / 'images'}"]
    line = error_of(["predict", *arguments, "--data.on_error=skip", f"--tokens.folder={tmp_path / 'tokens'}"], capsys)
    assert "no tokens were written" in line


def test_a_report_counts_images_that_could_not_be_read(trained: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "val", 3)
    (tmp_path / "val" / "broken.jpg").write_bytes(b"no image")
    checkpoint = trained / "checkpoints" / "last.ckpt"
    place = f"--trainer.default_root_dir={tmp_path}"
    main(["validate", f"--ckpt_path={checkpoint}", f"--data.root={tmp_path}", "--data.on_error=skip", place])
    report = read_report(tmp_path / "metrics.json")
    assert report.metrics["images"] == 3
    assert report.notes[0] == "3 of 4 images were validated; the others could not be read"


def test_validate_writes_a_report_beside_the_checkpoint(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With all that a number depends on; and the fit before it one of its own."""
    checkpoint = trained / "checkpoints" / "last.ckpt"
    after_fit = read_report(trained / "metrics.json")
    arguments = [f"--ckpt_path={checkpoint}", f"--data.root={trained.parents[2] / 'images'}"]
    main(["validate", *arguments, "--name=again", "--compare", str(trained), str(trained / "metrics.json")])
    report = read_report(checkpoint.parent / "validate" / "last" / "metrics.json")
    for one in (report, after_fit):
        assert one.checkpoint_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        assert (one.recipe, one.step, one.metrics["images"]) == ("quickstart.yaml + 16 flags", 3, 5)
        assert one.tokenizer == "f2, D = 8, G = 2, V = 16"
        assert (one.image_size, one.preparation) == ("16×16", "short side to 16, center crop of 16×16")
        assert one.precision == "32-true"
        assert one.versions["torch"] == torch.__version__.split("+")[0]
        assert "three convolutions" in one.protocols["rfd_random"]
    assert report.metrics == pytest.approx(after_fit.metrics, rel=1e-6)
    assert (report.name, after_fit.name) == ("again", "quickstart/version_0")
    output = capsys.readouterr().out
    assert output.count("| quickstart/version_0 ") >= 2
    assert "not comparable" not in output
    rows = (checkpoint.parent / "validate" / "last" / "metrics.md").read_text()
    assert "| again |" in rows


def test_an_exported_tokenizer_validates_like_its_checkpoint(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained / "checkpoints" / "last.ckpt"
    GSQTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "exported")
    data = [f"--data.root={trained.parents[2] / 'images'}", "--data.num_workers=0"]
    names = "--model.metrics.names=[psnr,codebook]"
    main(["validate", f"--ckpt_path={checkpoint}", *data, names])
    main(["validate", f"--ckpt_path={tmp_path / 'exported'}", *data, names, "--data.image_size=16"])
    reports = [
        read_report(folder / "metrics.json")
        for folder in (checkpoint.parent / "validate" / "last", tmp_path / "exported-report" / "validate")
    ]
    assert reports[0].metrics == reports[1].metrics
    assert reports[1].name == "exported"
    main(["compare", str(checkpoint), str(tmp_path / "exported")])
    assert "| exported " in capsys.readouterr().out
    line = error_of(["fit", f"--ckpt_path={tmp_path / 'exported'}", "--config=quickstart.yaml"], capsys)
    assert "is an exported tokenizer, which cannot be resumed; --init_from starts from its weights" in line
    assert sorted(path.name for path in (tmp_path / "exported").iterdir()) == ["config.json", "model.safetensors"]


def test_an_export_knows_the_size_of_its_images_or_says_that_it_does_not(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    checkpoint = trained / "checkpoints" / "last.ckpt"
    main(["export", str(checkpoint), str(tmp_path / "exported")])
    assert GSQTokenizer.from_pretrained(tmp_path / "exported").hash == GSQTokenizer.from_pretrained(checkpoint).hash
    GSQTokenizer.from_config(GSQTokenizer.from_pretrained(checkpoint).config).save_pretrained(tmp_path / "saved")
    data = [f"--data.root={trained.parents[2] / 'images'}", "--data.num_workers=0", "--model.metrics.names=[psnr]"]
    for name, size in (("exported", "16×16"), ("saved", "256×256")):
        main(["validate", f"--ckpt_path={tmp_path / name}", *data])
        assert read_report(tmp_path / f"{name}-report" / "validate" / "metrics.json").image_size == size
    assert [line for line in caplog.messages if line.startswith("image size")] == [
        f"image size 256: {tmp_path / 'saved'} does not say its own, --data.image_size does"
    ]
    config = tmp_path / "exported" / "config.json"
    config.write_text(config.read_text().replace('"image_size": 16', '"image_size": -1'))
    assert "its image_size is -1" in error_of(["validate", f"--ckpt_path={tmp_path / 'exported'}", *data], capsys)


def test_notes_come_once_below_the_table(
    trained: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--model.metrics.ssim_rim=true", "--model.metrics.names=[ssim]"]
    main(["validate", f"--ckpt_path={trained}", f"--data.root={trained.parents[2] / 'images'}", *flags])
    note = "the rim, where the window sees reflected pixels, is included: ssim"
    assert capsys.readouterr().out.count(f"  note: {note}") == 1
    assert note not in caplog.text


def test_what_to_compare_with_is_looked_for_first(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = trained / "checkpoints" / "last.ckpt"
    arguments = [f"--ckpt_path={checkpoint}", f"--data.root={trained.parents[2] / 'images'}"]
    assert "there is no nowhere.json" in error_of(["validate", *arguments, "--compare", "nowhere.json"], capsys)


def test_a_changed_image_is_noticed_by_the_next_validation(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statistics of the others are not taken for those of the new ones."""
    from tests.conftest import write_images

    paths = write_images(tmp_path / "images", 5, seed=3)
    monkeypatch.setenv("GSQ_CACHE", str(tmp_path))
    checkpoint = trained / "checkpoints" / "last.ckpt"
    validate = ["validate", f"--ckpt_path={checkpoint}", f"--data.root={tmp_path / 'images'}"]

    def distance() -> float:
        main(validate)
        return read_report(checkpoint.parent / "validate" / "last" / "metrics.json").metrics["rfd_random"]

    first = distance()
    assert distance() == first
    assert len(list((tmp_path / "statistics").iterdir())) == 1
    paths[0].write_bytes(paths[1].read_bytes())
    changed = distance()
    assert changed != first
    assert len(list((tmp_path / "statistics").iterdir())) == 2
    monkeypatch.setenv("GSQ_CACHE", str(tmp_path / "empty"))
    assert distance() == changed


def test_a_broken_checkpoint_ends_in_one_line_and_code_1(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in checkpoint["state_dict"].items():
        if "decoder.conv_in" in name:
            value.fill_(float("nan"))
    torch.save(checkpoint, tmp_path / "broken.ckpt")
    with pytest.raises(SystemExit) as exit_info:
        main(["validate", f"--ckpt_path={tmp_path / 'broken.ckpt'}", f"--data.root={trained.parents[2] / 'images'}"])
    assert exit_info.value.code == 1
    assert "gsq: error: 5 of 5 reconstructions have values that are NaN or infinite" in capsys.readouterr().err
    assert not (tmp_path / "validate" / "broken" / "metrics.json").exists()


def test_a_folder_that_takes_no_report_is_refused_before_anything_is_computed(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "own.ckpt")
    (tmp_path / "validate").write_text("a file in the way")
    root = trained.parents[2] / "images"
    arguments = ["validate", "--ckpt_path", str(tmp_path / "own.ckpt"), f"--data.root={root}"]
    error = error_of(arguments, capsys)
    assert f"nothing can be written to {tmp_path}/validate/own" in error
    assert "--trainer.default_root_dir" in error
    main([*arguments, "--trainer.default_root_dir", str(tmp_path / "elsewhere")])
    assert (tmp_path / "elsewhere" / "metrics.json").is_file()


def test_test_reports_like_validate(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        ["test", f"--ckpt_path={trained / 'checkpoints' / 'last.ckpt'}", f"--data.root={trained.parents[2] / 'images'}"]
    )
    assert "PSNR" in capsys.readouterr().out


def test_predict_writes_tokens_that_the_exported_tokenizer_decodes(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints" / "last.ckpt"
    main(
        [
            "predict",
            f"--ckpt_path={checkpoint}",
            f"--data.root={trained.parents[2] / 'images'}",
            f"--tokens.folder={tmp_path / 'tokens'}",
        ]
    )
    (shard,) = (load_file(path) for path in (tmp_path / "tokens" / "val").glob("*.safetensors"))
    tokenizer = GSQTokenizer.from_pretrained(checkpoint)
    assert shard["indices"].shape == (5, 8, 8, 2)
    assert tokenizer.decode_indices(shard["indices"].long()).shape == (5, 3, 16, 16)


@pytest.mark.parametrize("given", [None, ["a", "b"]])
def test_classes_of_a_checkpoint_number_names_and_do_not_name_the_numbers_of_other_images(
    trained: Path, tmp_path: Path, given: list[str] | None
) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["data_settings"] |= {"class_names": given, "trained_class_names": ["an ape", "cat", "eel"]}
    torch.save(checkpoint, tmp_path / "named.ckpt")
    write_images(tmp_path / "named" / "cat", 1)
    write_images(tmp_path / "named" / "eel", 1)
    (tmp_path / "numbered.txt").write_text("named/cat/image_000.png 4\nnamed/eel/image_000.png 9\n")
    for place, labels, names in (("named", [1, 2], ["an ape", "cat", "eel"]), ("numbered.txt", [4, 9], None)):
        for split in ("val", "train") if place == "numbered.txt" else ("val",):
            folder = tmp_path / f"tokens of {place}" / split
            flags = [
                f"--data.{split}={tmp_path / place}",
                f"--tokens.split={split}",
                f"--tokens.folder={folder.parent}",
            ]
            main(["predict", f"--ckpt_path={tmp_path / 'named.ckpt'}", *flags])
            tokens = TokenDataset(folder)
            assert (tokens.labels.tolist(), tokens.class_names) == (labels, names)


def test_data_modules_get_the_names_of_classes_that_they_take() -> None:
    settings = {"class_names": ["a"], "trained_class_names": ["a"]}
    assert data_default({"class": "TokenDataModule", **settings}, True) == {
        "class_path": "gsq_lightning.data.TokenDataModule",
        "init_args": {},
    }
    images = data_default({"class": "ImageNetDataModule", **settings}, True)
    assert images is not None
    assert images["init_args"] == settings


def printed_config(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main([*arguments, "--print_config"])
    assert exit_info.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


def test_flags_beat_configs_beat_the_checkpoint(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = f"--ckpt_path={trained / 'checkpoints' / 'last.ckpt'}"
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {ema_decay: 0.5, accumulate_batches: 3, loss_weights: {adversarial: 0.7}}")

    alone = printed_config(["validate", checkpoint], capsys)
    assert alone["model"]["tokenizer"]["init_args"]["quantizer"]["init_args"]["codebook_size"] == 16
    assert alone["model"]["metrics"]["init_args"]["names"] == ["psnr", "ssim", "codebook", "rfd_random"]
    assert alone["data"]["init_args"]["image_size"] == 16

    flags = ["--model.accumulate_batches=5", "--data.image_size=32"]
    for order in (
        [checkpoint, f"--config={overlay}", *flags],
        [*flags, "--config", str(overlay), checkpoint],
    ):
        config = printed_config(["validate", *order], capsys)
        assert config["model"]["accumulate_batches"] == 5
        assert config["model"]["ema_decay"] == 0.5
        assert config["model"]["loss_weights"]["adversarial"] == 0.7
        assert config["model"]["loss_weights"]["perceptual"] == 1.0
        assert config["model"]["tokenizer"]["init_args"]["base_channels"] == 8
        assert config["data"]["init_args"]["image_size"] == 32


def test_validate_measures_by_the_protocol_of_the_training(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"antialias": False, "truncate": True, "ssim_rim": True}
    flags = [f"--model.metrics.{name}={str(value).lower()}" for name, value in given.items()]
    options = [*flags, "--trainer.max_steps=1", f"--trainer.logger.save_dir={tmp_path}"]
    main(["fit", "--config", "quickstart.yaml", *TINY, *images(trained.parents[2] / "images"), *options])
    run = f"--ckpt_path={tmp_path / 'quickstart' / 'version_0'}"
    arguments = printed_config(["validate", run], capsys)["model"]["metrics"]["init_args"]
    assert {name: arguments[name] for name in given} == given
    arguments = printed_config(["validate", run, "--model.metrics.antialias=true"], capsys)["model"]["metrics"]
    assert arguments["init_args"]["antialias"] is True


def test_overlays_change_single_values_of_nested_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {tokenizer: {init_args: {quantizer: {init_args: {normalization: none}}}}}")
    config = printed_config(["fit", "--config", "quickstart.yaml", "--config", str(overlay)], capsys)
    quantizer = config["model"]["tokenizer"]["init_args"]["quantizer"]["init_args"]
    assert (quantizer["normalization"], quantizer["codebook_size"]) == ("none", 512)
    assert config["model"]["tokenizer"]["init_args"]["base_channels"] == 16


def test_recipes_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert printed_config(["fit", "-c", "quickstart.yaml"], capsys)["trainer"]["max_steps"] == 870
    (tmp_path / "quickstart.yaml").write_text("trainer: {max_steps: 7}")
    assert printed_config(["fit", "-c", "quickstart.yaml"], capsys)["trainer"]["max_steps"] == 7


def test_a_run_is_resumed_from_its_checkpoint(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.parents[2])
    last = trained / "checkpoints" / "last.ckpt"
    main(
        [
            "fit",
            "--config",
            "quickstart.yaml",
            *TINY,
            *images(Path("images")),
            "--trainer.max_steps=5",
            f"--ckpt_path={last}",
        ]
    )
    resumed = torch.load(trained.parent / "version_1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == 5
    assert resumed["training_state"]["ema_updates"] == 5


QUICKSTART = ["fit", "--config", "quickstart.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--config", "f7.yaml"], "there is no config file f7.yaml, here or among the recipes demo_g1.yaml"),
        (
            [*QUICKSTART, "--model.discriminator_loss=hing"],
            "model.discriminator_loss is hing; it must be one of: vanilla, ",
        ),
        (
            [*QUICKSTART, "--model.tokenizer.quantizer.normalization=l3"],
            "quantizer.normalization is l3; it must be",
        ),
        ([*QUICKSTART, "--model.nonsense=1"], "--model.nonsense"),
        ([*QUICKSTART, "--model.tokenizer.quantizer.num_groups=5"], "num_groups 5 does not divide latent_channels 8"),
        ([*QUICKSTART, "--data.image_size=62", "--data.num_workers=0"], "height 60 or 64 and width 60 or 64"),
        ([*QUICKSTART, "--data.global_batch_size=0"], "global_batch_size is 0"),
        ([*QUICKSTART, "--trainer.gradient_clip_val=1"], "model.tokenizer_clip_norm"),
        ([*QUICKSTART, *images(Path("nowhere"))], "there is no file or folder nowhere; set data.root"),
        (["validate", "--ckpt_path=nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (["validate"], "gsq validate needs --ckpt_path"),
        (["fit"], "gsq fit needs --config, such as f8.yaml"),
        ([*QUICKSTART, "--data=ImageNetDataModule"], "data.root is missing"),
        ([*QUICKSTART, "--data.root=nowhere"], "there is no file or folder nowhere; set data.root"),
        (["fitt"], "there is no fitt; did you mean fit?"),
    ],
)
def test_wrong_input_ends_in_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in error_of(arguments, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*QUICKSTART, "--trainer.devices=7"], "8 does not divide over 7 device(s) × 1 accumulated"),
        ([*QUICKSTART, "--data.image_size=62"], "an image of 62×62 (height × width) does not divide"),
        ([*QUICKSTART, "--data.val_image_size=62"], "an image of 62×62 (height × width) does not divide"),
        (["validate", "--ckpt_path=demo", "--data.image_size=62", "--data.root=."], "62×62"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_before_processes_start_and_networks_load(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each process would print the line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(Trainer, arguments[0])
    assert message in error_of(arguments, capsys)


@pytest.mark.parametrize(
    ("command", "flags", "works"),
    [
        ("fit", ["--tokens.folder=mine"], "gsq predict"),
        ("validate", ["--tokens.split", "all"], "gsq predict"),
        ("predict", ["--reconstructions.columns=2"], "gsq fit, gsq validate, gsq test"),
        ("test", ["--checkpoint.keep_all=true"], "gsq fit"),
        ("validate", ["--init_from=demo"], "gsq fit"),
        ("predict", ["--init.weights=raw"], "gsq fit"),
        ("validate", ["--auto_resume", "true"], "gsq fit"),
        ("test", ["--on_divergence=rollback"], "gsq fit"),
    ],
)
def test_a_flag_without_effect_in_a_command_is_refused_with_the_command_that_has_it(
    trained: Path, command: str, flags: list[str], works: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's config.yaml has all of these options, and serves every command."""
    run = ["--config", str(trained / "config.yaml")] + ([] if command == "fit" else [f"--ckpt_path={trained}"])
    name = flags[0].partition("=")[0]
    message = f"{name} has no effect in gsq {command}; it is an option of {works}"
    assert error_of([command, *run, *flags], capsys).endswith(message)
    assert printed_config([command, *run], capsys)["tokens"]["split"] == "val"


def test_a_wrong_word_in_a_config_file_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "typo.yaml"
    config.write_text("model: {emma_decay: 0.9}")
    assert "emma_decay" in error_of(["fit", "--config", "quickstart.yaml", "--config", str(config)], capsys)
    config.write_text("model: [unclosed")
    assert f"{config} cannot be read as YAML" in error_of(["fit", "--config", str(config)], capsys)
    config.write_text("just words")
    assert f"{config} holds no config" in error_of(["fit", "--config", str(config)], capsys)
    config.write_text("model: f8")
    assert 'key "model"' in error_of(["fit", "--config", str(config)], capsys)


def test_a_checkpoint_of_another_shape_ends_in_one_line(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["validate", f"--ckpt_path={trained / 'checkpoints' / 'last.ckpt'}", "--data.root", "images"]
    arguments[-1] = str(trained.parents[2] / "images")
    line = error_of([*arguments, "--model.tokenizer.quantizer.codebook_size=32"], capsys)
    assert "quantizer.codebook: (16, 4) in the file, (32, 4) in the model" in line


def test_a_damaged_checkpoint_ends_in_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (trained / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    line = error_of(["validate", f"--ckpt_path={tmp_path / 'half.ckpt'}"], capsys)
    assert "half.ckpt is not a readable checkpoint" in line


def test_a_checkpoint_of_a_module_made_in_python_needs_no_config(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its data module may be anybody's."""
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    for key in ("data_settings", "recipe", "metrics"):
        del checkpoint[key]
    torch.save(checkpoint, tmp_path / "python.ckpt")
    data = [f"--data.root={trained.parents[2] / 'images'}", "--data.image_size=16", "--data.num_workers=0"]
    main(["validate", f"--ckpt_path={tmp_path / 'python.ckpt'}", *data, "--model.metrics.names=[psnr]"])
    assert "PSNR" in capsys.readouterr().out


def test_the_weights_that_were_trained_last_may_be_asked_for(trained: Path, tmp_path: Path) -> None:
    """Instead of their average; what is found of them has a place of its own, and an export has that of its weights."""
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    state = checkpoint["state_dict"]
    for name in state:
        if name.startswith("tokenizer."):
            checkpoint["state_dict"][name] = torch.zeros_like(state[name])
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    arguments = ["validate", f"--ckpt_path={tmp_path / 'changed.ckpt'}", "--model.metrics.names=[psnr]"]
    measured = []
    for weights, folder in (([], "changed"), (["--weights", "ema"], "changed"), (["--weights=raw"], "changed-raw")):
        main([*arguments, *weights])
        report = read_report(tmp_path / "validate" / folder / "metrics.json")
        assert report.weights == ("raw" if folder == "changed-raw" else "ema")
        measured.append(report.metrics["psnr"])
    assert measured[0] == measured[1] != measured[2]
    for kind, psnr in (("ema", measured[0]), ("raw", measured[2])):
        main(["export", str(tmp_path / "changed.ckpt"), str(tmp_path / kind), "--weights", kind])
        assert f"| psnr | {psnr:.6g} |" in (tmp_path / kind / "README.md").read_text("utf-8")


def test_configs_may_name_the_checkpoint_and_its_weights(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "checkpoint.yaml"
    config.write_text(f"ckpt_path: {trained}\nweights: raw\n")
    folder = ["--trainer.default_root_dir", str(tmp_path)]

    def psnr(*flags: str) -> float:
        main(["validate", *flags, *folder, f"--data.root={trained.parents[2] / 'images'}"])
        return read_report(tmp_path / "metrics.json").metrics["psnr"]

    raw, ema = (psnr(f"--ckpt_path={trained}", f"--weights={weights}") for weights in ("raw", "ema"))
    assert raw != ema
    assert psnr("--config", str(config)) == raw
    assert psnr("--config", str(config), "--weights=ema") == ema
    caplog.set_level("INFO")
    recipe = ["--config", "quickstart.yaml", *TINY, *images(trained.parents[2] / "images")]
    assert psnr(*recipe, "--config", str(config), "--ckpt_path=null") not in (raw, ema)
    assert "no --ckpt_path given: the tokenizer has its initial, random weights" in caplog.text
    assert "name the recipe with --config" in error_of(["validate", "--ckpt_path=last"], capsys)


def test_compare_finds_the_newest_run_of_a_recipe(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(trained.parent)])
    assert "| quickstart/version_" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["version_0", "."])
def test_the_folder_of_a_run_or_of_a_recipe_stands_for_its_newest_checkpoint(trained: Path, folder: str) -> None:
    main(["validate", f"--ckpt_path={trained.parent / folder}", "--model.metrics.names=[psnr]"])
    report = read_report(trained / "checkpoints" / "validate" / "last" / "metrics.json")
    assert report.checkpoint == str(trained / "checkpoints" / "last.ckpt")
    assert list(report.metrics) == ["images", "psnr", "bits_per_pixel", "bits_per_image"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], num_workers: int
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    arguments = [f"--ckpt_path={trained / 'checkpoints' / 'last.ckpt'}", f"--data.root={tmp_path}"]
    line = error_of(["validate", *arguments, f"--data.num_workers={num_workers}"], capsys)
    assert line.startswith(f"gsq: error: {tmp_path / 'broken.jpg'} cannot be read as an image")


def test_the_installed_command_answers(tmp_path: Path) -> None:
    for command in ([sys.executable, "-m", "gsq_lightning"], [str(Path(sys.executable).parent / "gsq")]):
        result = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=tmp_path)
        assert result.stdout.startswith("gsq-lightning 0.")
        assert result.returncode == 0


@pytest.mark.parametrize("recipe", ["f8.yaml", "f16.yaml", "f32.yaml"])
def test_the_papers_recipes_run(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps with all their networks, small and with random weights, and a validation."""
    from tests.conftest import write_images

    for split in ("train", "val"):
        write_images(tmp_path / "images" / split, 4)
    monkeypatch.chdir(tmp_path)
    main(
        [
            *("fit", "--config", recipe, "--data.root=images", "--data.image_size=64", "--data.global_batch_size=2"),
            *("--data.num_workers=0", "--model.tokenizer.base_channels=32", "--model.tokenizer.encoder_blocks=1"),
            *("--model.tokenizer.decoder_blocks=1", "--model.perceptual_loss.weights=random"),
            *("--model.discriminator.weights=random", "--model.discriminator.input_size=28"),
            *("--model.metrics.names=[psnr,ssim,codebook,rfd_random]", "--trainer.max_steps=2"),
            *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
        ]
    )
    name = recipe.removesuffix(".yaml")
    checkpoint = torch.load(tmp_path / f"runs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == {"tokenizer", "ema", "discriminator"}
    assert checkpoint["state_dict"]["tokenizer.quantizer.codebook"].dtype == torch.float32


@pytest.mark.parametrize("stop", [2, 3, 5])
@pytest.mark.parametrize("discriminator", ["PatchDiscriminator", "none"])
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(
    stop: int, discriminator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit-exact on the CPU: stopped within and at the end of an epoch of three steps, before and after D starts."""
    from tests.conftest import write_images

    write_images(tmp_path / "images" / "train", 13)
    write_images(tmp_path / "images" / "val", 2)
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--config", "quickstart.yaml", *TINY, *images(Path("images"))]
    fit += [
        "--data.crop=random",
        "--data.flip=true",
        "--checkpoint.keep_all=true",
        "--checkpoint.every_n_train_steps=1",
    ]
    # a start step without a discriminator would be refused
    fit.append(f"--model.discriminator_start_step={0 if discriminator == 'none' else 3}")
    if discriminator == "none":
        fit.append("--model.discriminator=null")
    main([*fit, "--trainer.max_steps=7"])
    checkpoints = Path("runs/quickstart/version_0/checkpoints")
    main([*fit, "--trainer.max_steps=7", f"--ckpt_path={checkpoints / f'step={stop}.ckpt'}"])
    whole = torch.load(checkpoints / "last.ckpt", weights_only=True)
    resumed = torch.load("runs/quickstart/version_1/checkpoints/last.ckpt", weights_only=True)
    assert resumed["global_step"] == whole["global_step"] == 7
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
    for ours, theirs in zip(resumed["optimizer_states"], whole["optimizer_states"], strict=True):
        for key, state in theirs["state"].items():
            for name, value in state.items():
                assert torch.equal(torch.as_tensor(ours["state"][key][name]), torch.as_tensor(value)), name
