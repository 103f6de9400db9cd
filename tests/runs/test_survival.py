"""Runs under fire: killed, stopped, out of room. The command as a user would start it, and start it again."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gsq_lightning import GSQTokenizer
from gsq_lightning.__main__ import main
from gsq_lightning.callbacks import pictures
from gsq_lightning.cli import fit as cli
from gsq_lightning.data import ImageNetDataModule
from gsq_lightning.files import hold_lock, is_locked
from gsq_lightning.reports import read_report, report
from gsq_lightning.run_folders import LOCK
from gsq_lightning.runs import checkpoint_io
from gsq_lightning.runs.checkpoint_io import WholeCheckpointIO
from gsq_lightning.training import TokenizerModule
from tests.cli.test_fit import TINY, error_of, images
from tests.conftest import write_images
from tests.runs.test_resume import equal

LAST = "checkpoints/last.ckpt"
RUNS = Path("runs/quickstart")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, where the command is started."""
    write_images(tmp_path / "images" / "train", 8)
    write_images(tmp_path / "images" / "val", 2, seed=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(steps: int = 8, every: int = 2) -> list[str]:
    return [
        *("fit", "--config", "quickstart.yaml", *TINY, *images(Path("images"))),
        *(f"--trainer.max_steps={steps}", f"--checkpoint.every_n_train_steps={every}", "--model.metrics.names=[psnr]"),
    ]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """From now on a training ends with an error before this step, as if it had been cut off there."""
    before = TokenizerModule.training_step

    def cut_off(self: TokenizerModule, batch: Any, batch_idx: int) -> None:
        if self.global_step == step:
            raise error
        before(self, batch, batch_idx)

    monkeypatch.setattr(TokenizerModule, "training_step", cut_off)


def load(version: int) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(RUNS / f"version_{version}" / LAST, weights_only=True)
    return state


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the command said of its decision on resuming."""
    lines: list[str] = []
    monkeypatch.setattr(cli, "rank_zero_info", lines.append)
    return lines


class CutOffError(Exception):
    pass


# ------------------------------------------------------------------------------------------------- auto_resume


def test_the_same_command_resumes_a_run_that_was_killed(
    place: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 5, CutOffError())
        with pytest.raises(CutOffError):
            main(fit())
    assert load(0)["global_step"] == 4
    main(fit())
    assert "auto_resume: resuming runs/quickstart/version_0 from step 4" in said[-1]
    assert [path.name for path in sorted(RUNS.iterdir())] == ["version_0"]
    assert sorted(path.name for path in (RUNS / "version_0" / "checkpoints").iterdir()) == [LOCK, "last.ckpt"]

    main([*fit(), "--auto_resume=false"])
    for part in ("global_step", "state_dict", "optimizer_states", "training_state"):
        equal(load(0)[part], load(1)[part], part)


def test_a_run_that_lost_its_config_keeps_its_checkpoints_when_it_fails(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = TokenizerModule.training_step

    def lose_config(self: TokenizerModule, batch: Any, batch_idx: int) -> None:
        if self.global_step == 3:
            (RUNS / "version_0" / "config.yaml").unlink()
            raise CutOffError
        before(self, batch, batch_idx)

    monkeypatch.setattr(TokenizerModule, "training_step", lose_config)
    with pytest.raises(CutOffError):
        main(fit())
    assert load(0)["global_step"] == 2


def test_a_finished_run_is_left_alone_and_a_longer_one_resumes(place: Path, said: list[str]) -> None:
    main(fit(4))
    main(fit(4))
    assert "version_0 is finished; starting a new one" in said[-1]
    main(fit(6))
    assert "resuming runs/quickstart/version_1 from step 4" in said[-1]
    assert (load(0)["global_step"], load(1)["global_step"]) == (4, 6)


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--model.tokenizer.quantizer.num_groups=4", "model.tokenizer.quantizer.num_groups"),
        ("--data.image_size=32", "data.image_size"),
        ("--seed_everything=1", "seed_everything"),
    ],
)
def test_another_config_is_another_run(place: Path, flag: str, name: str, said: list[str]) -> None:
    main(fit(2))
    main([*fit(4), flag])
    assert f"version_0 is another training: {name} differs; starting a new one" in said[-1]
    assert load(1)["global_step"] == 4


def test_a_run_is_resumed_although_another_of_another_config_came_after_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 3, CutOffError())
        with pytest.raises(CutOffError):
            main(fit(4))
    main([*fit(4), "--seed_everything=1"])
    main(fit(4))
    assert "resuming runs/quickstart/version_0 from step 2" in said[-1]
    assert load(0)["global_step"] == 4
    assert not (RUNS / "version_2").exists()


def test_what_does_not_change_a_run_does_not_part_it(place: Path, said: list[str]) -> None:
    main(fit(2))
    main([*fit(4), "--data.val_batch_size=1", "--model.accumulate_batches=2", "--trainer.log_every_n_steps=1"])
    changed = "model.accumulate_batches, data.val_batch_size, trainer.max_steps, trainer.log_every_n_steps"
    line = f"resuming runs/quickstart/version_0 from step 2, with other {changed} than in its config.yaml"
    assert sorted(re.findall(r"[\w.]+", line)) == sorted(re.findall(r"[\w.]+", said[-1].removeprefix("auto_resume: ")))


@pytest.mark.parametrize(
    "flag", ["--trainer.max_steps=0", "--trainer.limit_train_batches=0", "--ckpt_path=one/last.ckpt"]
)
def test_a_new_run_without_a_step_is_refused(place: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "ckpt_path" in flag:
        main(fit(2))
        (RUNS / "version_0" / "checkpoints").rename("one")
        shutil.rmtree(RUNS / "version_0")
    assert "nothing is left to train: at step" in error_of([*fit(2), flag], capsys)
    assert not list(RUNS.glob("*"))


def test_a_run_that_lives_is_not_gone_on_with(place: Path, said: list[str]) -> None:
    main(fit(2))
    holder = (
        "import sys, time; from pathlib import Path; from gsq_lightning.files import hold_lock\n"
        f"held = hold_lock(Path({str(RUNS / 'version_0' / 'checkpoints' / LOCK)!r})); print('held', flush=True)\n"
        "time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        main(fit(4))
        assert "version_0 is still running; starting a new one" in said[-1]
        with pytest.raises(BlockingIOError):
            hold_lock(RUNS / "version_0" / "checkpoints" / LOCK)
    finally:
        other.kill()
        other.wait()
    assert not is_locked(RUNS / "version_0" / "checkpoints" / LOCK)


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    main([*fit(4), "--checkpoint.keep_all=true"])
    checkpoints = RUNS / "version_0" / "checkpoints"
    for name in ("last.ckpt", "step=4.ckpt"):
        (checkpoints / name).write_bytes((checkpoints / name).read_bytes()[:2000])
    main([*fit(4), "--checkpoint.keep_all=true"])
    assert re.search(r"last.ckpt is not a readable checkpoint .*; it is passed over", caplog.text)
    states = [
        torch.load(path, weights_only=True) for path in checkpoints.glob("last*.ckpt") if path.stat().st_size > 2000
    ]
    assert [state["global_step"] for state in states] == [4]


def test_a_file_system_without_locks_keeps_nothing_from_being_resumed(
    place: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lockf(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("gsq_lightning.files.fcntl.lockf", lockf)
    main(fit(2))
    main(fit(4))
    assert "resuming runs/quickstart/version_0 from step 2" in said[-1]


def test_checkpoints_of_weights_alone_are_not_resumed(
    place: Path, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    callback = ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.save_weights_only=true"]
    callback += ["--trainer.callbacks.filename=best"]
    main([*fit(2), *callback])
    run = RUNS / "version_0"
    assert (run / "checkpoints" / "best.ckpt").exists()
    main([*fit(3), *callback])
    assert "resuming runs/quickstart/version_0 from step 2" in said[-1]
    main([*fit(4), *callback, f"--ckpt_path={run}"])
    torch.save({"a": 1}, "foreign.ckpt")
    for path in (run / "checkpoints" / "best.ckpt", Path("foreign.ckpt")):
        line = error_of([*fit(5), f"--ckpt_path={path}"], capsys)
        assert line.endswith(
            f"{path} has no training state to resume (weights alone?); --init_from starts a new one from weights"
        )
    for path in run.glob("checkpoints/*.ckpt"):
        path.unlink()
    assert "no checkpoint below" in error_of([*fit(5), f"--ckpt_path={run}"], capsys)


def test_last_needs_a_folder_of_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(["validate", "--ckpt_path=last", "--config=quickstart.yaml", "--trainer.logger=false"], capsys)
    assert "there is no checkpoint below runs/quickstart" in error
    assert "there is no checkpoint best" in error_of(["validate", "--ckpt_path=best", "--data.root=images"], capsys)


def test_last_is_the_newest_checkpoint_of_the_recipe(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no checkpoint below runs/quickstart" in error_of([*fit(2), "--ckpt_path=last"], capsys)
    main(fit(2))
    main([*fit(4), "--ckpt_path=last", "--auto_resume=false"])
    assert load(1)["global_step"] == 4
    main([*fit(6), "--ckpt_path=last"])
    assert load(2)["global_step"] == 6
    shared = [flag for flag in fit(4)[1:] if not flag.startswith("--checkpoint.")]
    main(["validate", *shared, "--ckpt_path=last"])
    written = read_report(RUNS / "version_2" / "checkpoints" / "validate" / "last" / "metrics.json")
    assert written.step == 6
    assert len(list(RUNS.iterdir())) == 3


# ------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_after_the_step_with_a_checkpoint(
    place: Path, number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = TokenizerModule.training_step

    def signalled(self: TokenizerModule, batch: Any, batch_idx: int) -> None:
        if self.global_step == 2:
            signal.raise_signal(number)
        before(self, batch, batch_idx)

    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        patch.setattr(TokenizerModule, "training_step", signalled)
        with pytest.raises(SystemExit) as exit_info:
            main(fit(every=100))
    assert exit_info.value.code == code
    error = capsys.readouterr().err
    assert f"gsq: error: stopped by {number.name} after step 3; its checkpoint is" in error
    assert load(0)["global_step"] == 3
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    main(fit(every=100))
    assert load(0)["global_step"] == 8


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("command", ["validate", "predict"])
def test_a_signal_stops_what_has_no_state_at_once(
    place: Path,
    command: str,
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(fit(2))
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(GSQTokenizer, "latent", lambda *_: signal.raise_signal(number))
    with pytest.raises(SystemExit) as exit_info:
        main([command, f"--ckpt_path={RUNS / 'version_0' / LAST}"])
    assert exit_info.value.code == code
    assert f"gsq: error: stopped by {number.name} before the end" in capsys.readouterr().err
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_run_that_was_stopped_in_its_last_validation_makes_up_for_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """The one after training, which ended between two others."""
    before = TokenizerModule.validation_step

    def signalled(self: TokenizerModule, batch: Any, batch_idx: int) -> None:
        if self.trainer.state.fn == "validate":
            signal.raise_signal(signal.SIGTERM)
        before(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerModule, "validation_step", signalled)
        with pytest.raises(SystemExit):
            main(fit(3))
    assert load(0)["global_step"] == 3
    assert not (RUNS / "version_0" / "metrics.json").exists()
    main(fit(3))
    assert "resuming runs/quickstart/version_0 from step 3" in said[-1]
    assert read_report(RUNS / "version_0" / "metrics.json").step == 3
    main(fit(3))
    assert "version_0 is finished; starting a new one" in said[-1]


def test_workers_outlive_a_signal_to_the_whole_job(place: Path) -> None:
    data = ImageNetDataModule("images", 8, val_batch_size=1, num_workers=1)
    data.setup("validate")
    others = multiprocessing.active_children()  # of runs before, which may still be ending
    loader = iter(data.val_dataloader())
    next(loader)
    (worker,) = [process for process in multiprocessing.active_children() if process not in others]
    assert worker.pid is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert len(next(loader).image) == 1
    assert worker.is_alive()
    del loader


def test_the_second_interrupt_is_obeyed_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: TokenizerModule, batch: Any, batch_idx: int) -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    monkeypatch.setattr(TokenizerModule, "training_step", interrupted)
    with pytest.raises(SystemExit) as exit_info:
        main(fit())
    assert exit_info.value.code == 1  # Lightning's
    assert not (RUNS / "version_0" / LAST).exists()


def test_slurm_requeues_the_job_after_the_step(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "scontrol").write_text(f'#!/bin/bash\necho "$@" > {place}/said\n')
    (place / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    slurm = {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "77", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in {**slurm, "NNODES": "1", "NTASKS_PER_NODE": "1", "NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    before = TokenizerModule.training_step

    def signalled(self: TokenizerModule, batch: Any, batch_idx: int) -> None:
        if self.global_step == 2:
            signal.raise_signal(signal.SIGUSR1)
        before(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerModule, "training_step", signalled)
        with pytest.raises(SystemExit) as exit_info:
            main(fit(every=100))
    assert exit_info.value.code == 128 + signal.SIGUSR1
    assert (place / "said").read_text() == "requeue 77\n"
    assert load(0)["global_step"] == 3
    assert not list(RUNS.rglob("hpc_ckpt*"))  # Lightning's, which a later restart would prefer to a newer last.ckpt
    main(fit(every=100))
    assert load(0)["global_step"] == 8


# ------------------------------------------------------------------------------------------- disks and memory


def test_a_full_disk_does_not_end_training(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The third and fourth checkpoints do not fit; the others do."""
    written = []
    save = torch.save

    def sometimes(checkpoint: Any, file: Any) -> None:
        written.append(checkpoint["global_step"])
        if len(written) in (3, 4):
            file.write(b"some of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(checkpoint, file)

    monkeypatch.setattr(checkpoint_io.torch, "save", sometimes)
    main(fit(8, every=1))
    assert caplog.text.count("could not be written: No space left on device; training goes on") == 2
    assert written == [*range(1, 9), 8]  # the last step is written again when its validation is over
    assert load(0)["global_step"] == 8
    assert not list((RUNS / "version_0" / "checkpoints").glob(".*.part"))


def test_a_disk_that_stays_full_is_said_at_the_end_and_the_last_good_checkpoint_stays(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = torch.save

    def full_from_step_4(checkpoint: Any, file: Any) -> None:
        if checkpoint["global_step"] >= 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(checkpoint, file)

    monkeypatch.setattr(checkpoint_io.torch, "save", full_from_step_4)
    with pytest.raises(SystemExit) as exit_info:
        main(fit(6, every=1))
    assert exit_info.value.code == 1
    assert "last.ckpt could not be written: No space left on device; the checkpoint before" in capsys.readouterr().err
    assert load(0)["global_step"] == 3


def test_a_real_limit_on_the_size_of_files_leaves_the_old_one_whole(tmp_path: Path) -> None:
    """Where torch's own writer meets the error, half way through."""
    code = f"""
import resource, signal, torch
from gsq_lightning.runs.checkpoint_io import WholeCheckpointIO
io = WholeCheckpointIO()
path = {str(tmp_path / "last.ckpt")!r}
io.save_checkpoint({{"step": 1, "weights": torch.zeros(1000)}}, path)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
io.save_checkpoint({{"step": 2, "weights": torch.zeros(1_000_000)}}, path)
assert "last.ckpt could not be written" in io.failure, io.failure
assert torch.load(path, weights_only=True)["step"] == 1
print("fine")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "fine\n", result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"step": 1}, path)
    code = f"""
import os, signal
from gsq_lightning import files
from gsq_lightning.runs import checkpoint_io
files.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
checkpoint_io.WholeCheckpointIO().save_checkpoint({{"step": 2}}, {str(path)!r})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert torch.load(path, weights_only=True)["step"] == 1
    assert len(list(tmp_path.glob(".last.ckpt.*.part"))) == 1
    checkpoint_io.remove_parts(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("obstacle", ["file", "link to a disk that is not mounted"])
def test_a_place_that_cannot_be_written_to_is_refused_before_training(
    place: Path, capsys: pytest.CaptureFixture[str], obstacle: str
) -> None:
    if obstacle == "file":
        Path("runs").write_text("a file in the way")
    else:
        Path("runs").symlink_to("not/mounted")
    error = error_of(fit(), capsys)
    assert "nothing can be written to runs/quickstart" in error
    assert "--trainer.logger.save_dir" in error


def test_a_disk_without_room_for_pictures_and_reports_does_not_end_training(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(pictures, "write_whole", full)
    monkeypatch.setattr(report, "write_whole", full)
    with pytest.raises(SystemExit) as exit_info:
        main(fit(4))
    assert exit_info.value.code == 1
    assert "reconstructions.png could not be written: No space left on device" in caplog.text
    printed = capsys.readouterr()
    assert "PSNR" in printed.out  # what was computed is shown
    assert "gsq: error: runs/quickstart/version_0/metrics.json: No space left on device" in printed.err
    assert load(0)["global_step"] == 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_in_a_step_ends_in_a_line(
    place: Path, error: RuntimeError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(monkeypatch, 3, error)
    with pytest.raises(SystemExit) as exit_info:
        main(fit())
    assert exit_info.value.code == 1
    said = capsys.readouterr().err
    assert "allocate" in said
    assert "raise model.accumulate_batches" in said
    assert load(0)["global_step"] == 2
