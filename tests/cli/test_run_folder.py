"""What a training leaves where: one folder, whatever its loggers; nothing where it fails before its first step."""

import warnings
from pathlib import Path

import pytest
import torch

from gsq_lightning.__main__ import main
from gsq_lightning.callbacks.lightning_output import leave_out_noise
from tests.cli.test_fit import TINY, error_of, images
from tests.conftest import write_images


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images and a config of the user's own, where the command is started."""
    write_images(tmp_path / "images" / "train", 8)
    write_images(tmp_path / "images" / "val", 2, seed=1)
    (tmp_path / "config.yaml").write_text("trainer: {max_steps: 2}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FIT = [
    *("fit", "--config", "quickstart.yaml", "--config", "config.yaml", *TINY, *images(Path("images"))),
    *("--model.metrics.names=[psnr]", "--model.discriminator=null", "--model.discriminator_start_step=0"),
]
FIT = [flag for flag in FIT if not flag.startswith("--model.discriminator.")]
ONE_STEP = "{class_path: OneCycleLR, init_args: {max_lr: 0.01, total_steps: 1}}"


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "images" not in path.parts
    }


def test_without_a_logger_all_goes_into_a_folder_of_the_run_and_it_is_resumed(place: Path) -> None:
    main([*FIT, "--trainer.logger=false", "--trainer.max_steps=1"])
    left = {"config.yaml", "metrics.json", "metrics.md", "reconstructions.png", ".finished"}
    left |= {"checkpoints/last.ckpt", "checkpoints/.running"}
    assert files(place) == {"config.yaml", *(f"runs/quickstart/version_0/{name}" for name in left)}
    assert (place / "config.yaml").read_text() == "trainer: {max_steps: 2}\n"
    main([*FIT, "--trainer.logger=false"])
    assert not (place / "runs" / "quickstart" / "version_1").exists()


def test_rows_of_a_csv_logger_outlive_a_resume_and_two_loggers_share_the_folder(place: Path) -> None:
    csv = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: $PLACE/mine, name: runs}}"
    board = "{class_path: gsq_lightning.runs.RunLogger, init_args: {save_dir: elsewhere}}"
    (place / "loggers.yaml").write_text(f"trainer: {{log_every_n_steps: 1, logger: [{csv}, {board}]}}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLACE", str(place))
        for steps in (1, 2):
            main([*FIT, "--config=loggers.yaml", f"--trainer.max_steps={steps}"])
    run = place / "mine" / "runs" / "version_0"
    assert (run / "csv" / "metrics.csv").is_file()
    assert (run / "csv_2" / "metrics.csv").is_file()
    assert list(run.glob("events.out.tfevents.*"))
    assert not (place / "elsewhere").exists()
    assert not (place / "runs").exists()


def test_flags_name_the_folder_of_a_run_whose_loggers_are_a_list(place: Path) -> None:
    """The parser gives them to the last one alone; a run that is resumed by its config.yaml goes there too."""
    board = "{class_path: gsq_lightning.runs.RunLogger, init_args: {save_dir: runs, name: recipe}}"
    csv = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: rows}}"
    (place / "loggers.yaml").write_text(f"trainer: {{log_every_n_steps: 1, logger: [{board}, {csv}]}}\n")
    logger = ["--trainer.logger.name=mine", "--trainer.logger.save_dir=elsewhere", "--trainer.logger.version=first"]
    main([*FIT, "--config=loggers.yaml", *logger])
    run = place / "elsewhere" / "mine" / "first"
    assert (run / "csv" / "metrics.csv").is_file()
    assert list(run.glob("events.out.tfevents.*"))
    main(["fit", f"--ckpt_path={run}", "--trainer.max_steps=3", "--trainer.logger.version=second"])
    assert (run.parent / "second" / "csv" / "metrics.csv").is_file()
    main([*FIT, "--config=loggers.yaml", "--trainer.logger.name=mine"])  # a single one leaves the others as they were
    assert (place / "runs" / "mine" / "version_0" / "csv" / "metrics.csv").is_file()
    main([*FIT, "--trainer.logger.name=mine", f"--trainer.logger+={csv}"])  # which is not the last one in the end
    assert (place / "runs" / "mine" / "version_1" / "csv" / "metrics.csv").is_file()
    assert not (place / "rows").exists()
    assert not (place / "runs" / "recipe").exists()


def test_a_fast_dev_run_leaves_nothing(place: Path) -> None:
    main([*FIT, "--trainer.fast_dev_run=true"])
    assert files(place) == {"config.yaml"}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--trainer.val_check_interval=100", "`val_check_interval` (100) must be less than"),
        ("--trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch is 0; it must be at least 1"),
        ("--trainer.val_check_interval=0", "trainer.val_check_interval is 0; it must be above 0, or null"),
        ("--trainer.precision=16-mixed", "trainer.precision 16-mixed is not supported; use bf16-mixed or 32-true"),
        ("--trainer.strategy=ddp_spawn", "trainer.strategy ddp_spawn cannot be used"),
        ("--trainer.strategy=fsdp", "`fsdp` requires a GPU"),
        ("--trainer.overfit_batches=1", "there is no --trainer.overfit_batches: set trainer.limit_train_batches"),
        ("--trainer.callbacks+=LearningRateFinder", "LearningRateFinder cannot be used with two optimizers"),
        (
            "--trainer.callbacks+=EMAWeightAveraging",
            "EMAWeightAveraging cannot be used with two optimizers; the",
        ),
        (
            "--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {save_last: true}}",
            "last.ckpt too, which",
        ),
        (
            "--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {filename: last}}",
            "last.ckpt too, which",
        ),
        ("--model.tokenizer_optimizer=LBFGS", "tokenizer_optimizer is LBFGS, whose step computes the loss several"),
        (
            f"--model.tokenizer_scheduler={ONE_STEP}",
            "tokenizer_scheduler OneCycleLR ends after its total_steps 1, and the run has 2 steps",
        ),
        ("--data.root=nowhere", "nowhere"),
        ("--model.metrics.names=[rfid]", "weights of inception are missing"),
    ],
)
def test_a_start_that_fails_ends_in_one_line_and_leaves_nothing(
    place: Path, flag: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(place / "images"))
    monkeypatch.setattr("gsq_lightning.pretrained.weights.reachable", lambda url: False)
    assert message in error_of([*FIT, flag], capsys)
    assert files(place) == {"config.yaml"}


def test_a_callback_with_a_word_of_lightnings_is_written_to_the_config_and_read_again(place: Path) -> None:
    main([*FIT, "--trainer.callbacks+={class_path: Timer, init_args: {duration: 00:01:00:00}}"])
    run = place / "runs" / "quickstart" / "version_0"
    assert "interval: step" in (run / "config.yaml").read_text()
    main(["fit", f"--ckpt_path={run}", "--trainer.max_steps=3"])


def test_a_metric_that_there_is_not_ends_in_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop = "{class_path: EarlyStopping, init_args: {monitor: val/no}}"
    assert "`val/no` which is not available" in error_of([*FIT, f"--trainer.callbacks+={stop}"], capsys)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (ONE_STEP, "OneCycleLR cannot go beyond step 1: "),
        ("{class_path: StepLR, init_args: {step_size: 0}}", "StepLR cannot go beyond step 0: integer modulo by zero"),
    ],
)
def test_a_schedule_that_ends_before_its_training_is_named(
    place: Path, schedule: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of([*FIT, f"--model.tokenizer_scheduler={schedule}", "--trainer.max_epochs=2"], capsys)
    assert f"tokenizer_scheduler {message}" in error


def test_a_checkpoint_without_the_discriminator_that_is_asked_for_names_init_from(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(FIT)
    run = ["--ckpt_path=runs/quickstart", "--model.discriminator=PatchDiscriminator", "--trainer.max_steps=3"]
    error = error_of([*FIT, *run], capsys)
    assert "discriminator.net.0.weight: missing in the file" in error
    assert "--init_from starts a new training from its weights" in error


def test_a_discriminators_schedule_runs_while_it_waits_without_a_warning(place: Path) -> None:
    flags = ["--model.discriminator=PatchDiscriminator", "--model.discriminator.num_layers=1"]
    schedule = (
        "--model.discriminator_scheduler={class_path: gsq_lightning.optim.WarmupDecay, init_args: {warmup_steps: 4}}"
    )
    with warnings.catch_warnings(record=True) as caught:
        leave_out_noise()
        main([*FIT, *flags, "--model.discriminator_start_step=1", schedule])
    assert not [one for one in caught if "lr_scheduler" in str(one.message)]
    checkpoint = torch.load(
        place / "runs" / "quickstart" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True
    )
    assert [state["last_epoch"] for state in checkpoint["lr_schedulers"]] == [2]


def test_without_checkpoints_a_run_ends_well(place: Path) -> None:
    main([*FIT, "--trainer.enable_checkpointing=false", "--trainer.logger=false"])
    assert not (place / "runs" / "quickstart" / "version_0" / "checkpoints").exists()
    assert (place / "runs" / "quickstart" / "version_0" / "metrics.json").is_file()


def test_one_batch_is_one_batch(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not all of them, as 1.0 would be."""
    write_images(place / "images" / "val" / "more", 6, seed=5)
    main([*FIT, "--trainer.limit_val_batches=1", "--data.val_batch_size=3"])
    assert "images  " in (output := capsys.readouterr().out)
    assert next(line.split()[1] for line in output.splitlines() if line.strip().startswith("images")) == "3"


def test_weights_that_are_missing_are_named_together(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what fetches them, and what does without."""
    monkeypatch.setenv("TORCH_HOME", str(place / "images"))
    monkeypatch.setattr("gsq_lightning.pretrained.weights.reachable", lambda url: False)
    error = error_of([*FIT, "--model.metrics.names=[psnr,rfid,lpips_vgg,lpips_alex]"], capsys)
    for part in (
        "of inception are",
        "of vgg16 are",
        "of alexnet are",
        "--model.metrics.alexnet_weights",
        "gsq weights",
    ):
        assert error.count(part) == 1
    assert "--config offline.yaml" in error


def test_a_validation_is_not_told_of_options_of_training(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(place / "images"))
    monkeypatch.setattr("gsq_lightning.pretrained.weights.reachable", lambda url: False)
    names = "--model.metrics.names=[lpips_vgg]"
    assert "--model.perceptual_loss.weights" not in error_of(["validate", *FIT[1:], names], capsys)
    error = error_of([*FIT, "--model.perceptual_loss=LPIPS", names], capsys)
    assert "--model.perceptual_loss.weights or --model.metrics.vgg16_weights" in error
