"""Reports on disk, tables of them, published figures, the plot."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from gsq_lightning import InputError
from gsq_lightning.__main__ import main
from gsq_lightning.reports import (
    EvaluationReport,
    comparison_lines,
    find_report,
    metrics_table,
    published_rows,
    read_report,
    report_folder,
    report_row,
    sha256_of,
    write_report,
)
from gsq_lightning.reports.plot import plot_rows
from gsq_lightning.reports.table import METRICS


def report(name: str = "ours", bits: float = 100.0, **facts: object) -> EvaluationReport:
    metrics = {"images": 50.0, "psnr": 20.123, "rfid": 1.5, "bits_per_image": bits, "bits_per_pixel": bits / 64}
    return EvaluationReport(name, metrics, **facts)  # type: ignore[arg-type]


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = EvaluationReport("a | b", {"images": 2.0, "psnr": math.inf, "rfid": 0.1 + 0.2}, notes=["few"], step=3)
    path = write_report(written, tmp_path / "new" / "folder")
    assert read_report(path) == written
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_rows_pile_up_below_each_other_and_never_under_the_wrong_head(tmp_path: Path) -> None:
    write_report(report("first"), tmp_path)
    write_report(report("second | split"), tmp_path)
    write_report(EvaluationReport("third", {"images": 2.0, "ssim": 0.5}), tmp_path)
    lines = (tmp_path / "metrics.md").read_text().splitlines()
    starts = ["| name |", "| --- |", "| first |", "| second \\| split |", "", "| name |", "| --- |", "| third |"]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    assert "| PSNR |" in lines[0]
    assert "| SSIM |" in lines[5]
    assert read_report(tmp_path / "metrics.json").name == "third"


def test_a_row_stays_within_its_table_whatever_is_written_beside_it(tmp_path: Path) -> None:
    write_report(report("first\nname"), tmp_path)
    table = tmp_path / "metrics.md"
    table.write_bytes(table.read_bytes().removesuffix(b"\n"))
    write_report(report("second"), tmp_path)
    table.write_bytes(table.read_bytes() + b"\nnot UTF-8: \xff")
    write_report(report("third"), tmp_path)
    table.write_bytes(table.read_bytes() + b"\n| step | loss |\n| 1 | 2 |\n")
    write_report(report("fourth"), tmp_path)
    lines = table.read_bytes().splitlines()
    assert [line[:10] for line in lines[2:]] == [
        *(b"| first na", b"| second |", b"", b"not UTF-8:", b"", b"| name | i", b"| --- | --", b"| third | "),
        *(b"", b"| step | l", b"| 1 | 2 |", b"", b"| name | i", b"| --- | --", b"| fourth |"),
    ]
    assert b"not UTF-8: \xff" in lines


def test_rows_of_several_processes_are_all_there(tmp_path: Path) -> None:
    program = (
        f"from tests.reports.test_reports import *\nfor i in range(20): write_report(report(), Path({str(tmp_path)!r}))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0] * 3
    assert len((tmp_path / "metrics.md").read_text().splitlines()) == 62


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": "a"}', '{"name": "a", "metrics": {"psnr": "high"}}'])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(InputError, match="cannot be read as a report of gsq validate"):
        read_report(tmp_path / "metrics.json")


def test_a_report_is_found_by_file_folder_and_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(b"weights")
    folder = tmp_path / "validate" / "last"
    written = report(checkpoint_sha256=sha256_of(checkpoint))
    write_report(written, folder)
    assert find_report(checkpoint) == find_report(folder) == find_report(folder / "metrics.json") == written
    checkpoint.write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"written for another state of .*last.ckpt; validate it again"):
        find_report(checkpoint)
    (tmp_path / "new.ckpt").write_bytes(b"weights")
    with pytest.raises(InputError, match=r"gsq validate --ckpt_path .*new.ckpt writes one"):
        find_report(tmp_path / "new.ckpt")
    with pytest.raises(InputError, match=r"there is no .*nowhere"):
        find_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds neither a report"):
        find_report(tmp_path)


def test_the_report_of_a_link_or_of_a_test_is_found(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    (tmp_path / "best.ckpt").symlink_to(checkpoint)
    write_report(report(), report_folder(tmp_path / "best.ckpt", "validate"))
    with pytest.raises(InputError, match="for another state"):  # a report that does not know is not believed
        find_report(checkpoint)
    written = report(checkpoint_sha256=sha256_of(checkpoint))
    write_report(written, report_folder(tmp_path / "best.ckpt", "test"))
    assert find_report(tmp_path / "best.ckpt") == find_report(checkpoint) == written


def test_a_comparison_is_sorted_by_bits_and_says_what_is_not_comparable() -> None:
    rows = [
        report_row(report("many bits", 300, protocols={"rfid": "antialiased"}, originals="a")),
        report_row(EvaluationReport("no bits", {"images": 50.0, "ssim": 0.5})),
        report_row(report("few bits", 100, protocols={"rfid": "truncated"}, originals="b")),
    ]
    lines = comparison_lines(rows)
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["few bits", "many bits", "no bits"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[-2:] == [
        "not comparable in the original images: few bits: b; many bits: a",
        "not comparable in protocol of rfid: few bits: truncated; many bits: antialiased",
    ]
    assert "–" in lines[4]


@pytest.mark.parametrize(("originals", "comparable"), [(("a", "a"), True), (("a", "b"), False), (("a", None), False)])
def test_the_same_originals_are_comparable_however_they_were_prepared(
    originals: tuple[str | None, str | None], comparable: bool
) -> None:
    """As images that were written once they were resized and cropped, and compared as they are."""
    prepared = zip(("short side to 64", "as they are"), originals, strict=True)
    rows = [report_row(report(words, preparation=words, originals=pixels)) for words, pixels in prepared]
    assert ("not comparable in preparation" not in "\n".join(comparison_lines(rows))) == comparable


def test_a_comparison_fits_a_terminal_and_names_once_what_is_equal() -> None:
    """Two runs with all metrics there are, and long names, beside the paper's."""
    metrics = {name: 1.0 + number for number, name in enumerate(METRICS)}
    rows = [
        report_row(
            EvaluationReport(f"runs/a_recipe_with_a_long_name/version_{n}", metrics | {"psnr": 20.0 + n}, step=n)
        )
        for n in (10, 20)
    ]
    lines = comparison_lines(rows)
    assert max(map(len, lines)) <= 80
    table = [line for line in lines if line.startswith("|")]
    assert [cell.strip() for cell in table[0].split("|")[2:-1]] == ["PSNR ↑", "steps"]
    told = " ".join(lines[len(table) :])
    assert f"LPIPS (alex) {metrics['lpips_alex']:.4f}" in told
    lines = comparison_lines([*rows, *published_rows()])
    assert max(map(len, lines)) <= 80
    heads = [line for line in lines if line.startswith("| tokenizer")]
    assert "rFID" in heads[0]
    assert "PSNR of set" in " ".join(heads)  # a table of its own, of the rows that have it


def test_a_comparison_shows_metrics_of_ones_own_and_no_deviations() -> None:
    beside = {"rkid_std": 0.1, "rkid_all": 0.2, "codebook_usage_group_0": 0.5, "codebook_codes_used": 7.0}
    rows = [
        report_row(EvaluationReport(name, {"psnr": psnr, "psnr_hvs": psnr + 10, **beside}))
        for name, psnr in (("one", 20.0), ("two", 21.0))
    ]
    assert [cell.strip() for cell in comparison_lines(rows)[0].split("|")[2:-1]] == ["PSNR ↑", "psnr_hvs"]


def test_rows_that_do_not_differ_are_a_table_all_the_same() -> None:
    lines = comparison_lines([report_row(report("one")), report_row(report("two"))])
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["one", "two"]
    assert "1.500" in lines[2]


def test_a_comparison_says_which_settings_differ(tmp_path: Path) -> None:
    for number, decay in ((0, 0.999), (1, 0.99)):
        run = tmp_path / "f8" / f"version_{number}"
        (run / "checkpoints").mkdir(parents=True)
        config = {
            "model": {
                "tokenizer": {"class_path": "gsq_lightning.GSQTokenizer", "init_args": {"base_channels": 128}},
                "discriminator": {"class_path": "gsq_lightning.discriminators.DINODiscriminator"} if number else None,
                "ema_decay": decay,
            },
            "trainer": {"max_steps": 100, "logger": {"init_args": {"name": f"run {number}"}}},
        }
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        write_report(report(f"run {number}", step=100 + number), run)
    rows = [report_row(find_report(tmp_path / "f8" / f"version_{number}")) for number in (0, 1)]
    lines = comparison_lines(rows)
    start = lines.index("settings that differ:")
    assert lines[start + 1 :] == [
        "  model.discriminator   run 0: null; run 1: DINODiscriminator",
        "  model.ema_decay   run 0: 0.999; run 1: 0.99",
    ]
    assert [line.split("|")[2].strip() for line in lines[:4]] == ["steps", "----:", "100", "101"]


def test_a_checkpoint_has_what_its_training_measured_last_and_a_recipe_its_newest_run(tmp_path: Path) -> None:
    for number in (0, 1):
        checkpoint = tmp_path / f"version_{number}" / "checkpoints" / "last.ckpt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(b"weights %d" % number)
        write_report(report(f"run {number}", checkpoint_sha256=sha256_of(checkpoint)), checkpoint.parent.parent)
        assert find_report(checkpoint).name == find_report(checkpoint.parent.parent).name == f"run {number}"
    assert find_report(tmp_path).name == "run 1"
    earlier = checkpoint.with_name("step=10.ckpt")
    earlier.write_bytes(b"weights of step 10")
    with pytest.raises(InputError, match="written for another state of"):
        find_report(earlier)
    write_report(report("validated", checkpoint_sha256=sha256_of(earlier)), report_folder(earlier, "validate"))
    assert find_report(earlier).name == "validated"


def test_a_run_has_the_newest_report_of_its_last_checkpoint_and_none_of_an_earlier_state(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    write_report(report("trained", checkpoint_sha256=sha256_of(checkpoint)), tmp_path)
    os.utime(tmp_path / "metrics.json", (1, 1))
    write_report(report("validated", checkpoint_sha256=sha256_of(checkpoint)), report_folder(checkpoint, "validate"))
    assert find_report(tmp_path).name == find_report(checkpoint).name == "validated"
    checkpoint.write_bytes(b"weights of a later step")
    for source in (tmp_path, checkpoint):
        with pytest.raises(InputError, match=f"was written for another state of {source}; validate it again"):
            find_report(source)


def test_reports_of_averaged_and_of_raw_weights_are_told_apart(tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(b"weights")
    sha256 = sha256_of(checkpoint)
    reports = [report(name, checkpoint_sha256=sha256, weights=name) for name in ("ema", "raw")]
    write_report(reports[1], report_folder(checkpoint, "validate", "raw"))
    assert find_report(checkpoint).name == "raw"
    with pytest.raises(InputError, match=r"is of its raw weights; gsq validate --ckpt_path \S*last.ckpt writes"):
        find_report(checkpoint, "ema")
    write_report(reports[0], report_folder(checkpoint, "validate", "ema"))
    assert [find_report(checkpoint, weights).name for weights in (None, "ema", "raw")] == ["ema", "ema", "raw"]
    (line,) = [line for line in comparison_lines([report_row(one) for one in reports]) if "not comparable" in line]
    assert line == "not comparable in weights: ema: ema; raw: raw"
    assert "| weights |" in (tmp_path / "validate" / "last-raw" / "metrics.md").read_text()


def test_table_has_known_names_first_and_nothing_lost() -> None:
    lines = metrics_table({"other": 3.0, "rfd_random": 0.5, "psnr": 20.126})
    assert [line.split()[:2] for line in lines] == [["PSNR", "20.13"], ["rfd_random", "0.5000"], ["other", "3"]]
    assert metrics_table({}) == []
    grouped = metrics_table({"codebook_usage": 0.5, "codebook_usage_group_0": 0.25, "codebook_usage_group_1": 0.75})
    assert grouped[-1] == "  codebook usage by group: 25.00% 75.00%"
    counted = metrics_table({"codebook_usage": 1706 / 8192, "codebook_codes_used": 1706.0})
    assert counted == ["  codebook usage  20.83%  1,706 of 8,192 codes"]


def test_the_table_of_all_metrics_fits_a_terminal() -> None:
    lines = metrics_table(dict.fromkeys(METRICS, 123.4567))
    assert max(map(len, lines)) <= 80


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Those that are drawn."""
    drawn: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **options: drawn.append(self) or savefig(self, *args, **options)
    )
    return drawn


@pytest.mark.parametrize("others", [[], [1.02]], ids=["one point", "two near points"])
def test_axes_around_near_points_have_ticks_on_either_side(
    tmp_path: Path, figures: list[Figure], others: list[float]
) -> None:
    rows = [report_row(report(f"times {factor}", 31.0 * factor)) for factor in (1.0, *others)]
    assert plot_rows(rows, tmp_path / "rd.png") == []
    for axes in figures[0].axes:
        ticks = [float(label.get_text()) for label in axes.get_xticklabels()]
        low, high = axes.get_xlim()
        shown = [tick for tick in ticks if low <= tick <= high]
        assert shown[0] < 31.0 / 64 < shown[-1]
    assert figures[0].get_size_inches()[1] / len(figures[0].axes) < 4


def test_ticks_of_the_plot_are_plain_numbers_and_names_stand_beside_points(
    tmp_path: Path, figures: list[Figure]
) -> None:
    """No powers such as 2⁻³, no numbers that a key explains; no name covers another."""
    plot_rows([report_row(report("ours", 0.5 * 64)), *published_rows()[:12]], tmp_path / "rd.png")
    axes = figures[0].axes[0]
    figures[0].canvas.draw()
    for axis in (axes.xaxis, axes.yaxis):
        ticks = [label.get_text() for label in axis.get_ticklabels()]
        assert all(re.fullmatch(r"[\d.]+", tick) for tick in ticks)
        low, high = axis.get_view_interval()
        assert sum(low <= float(tick) <= high for tick in ticks) >= 3
    assert {"ours", "GSQ D8, f8, V = 8,192"} <= {text.get_text() for text in axes.texts}
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert not any(a.overlaps(b) for number, a in enumerate(boxes) for b in boxes[:number])


def test_published_rows_have_the_papers_figures_and_their_bits() -> None:
    rows = {(row.name, row.source): row.metrics for row in published_rows()}
    assert len(rows) == 37
    gsq = rows["GSQ D8, f8, V = 262,144", "paper, Table 14"]
    assert (gsq["rfid"], gsq["bits_per_image"], gsq["bits_per_pixel"]) == (0.36, 1024 * 18, 0.28125)
    assert rows["BSQ D36, f8", "paper, Table 14"]["bits_per_image"] == 1024 * 36
    assert rows["GSQ 8×2, f16, V = 262,144", "paper, Table 13"]["psnr_set"] == 23.62
    assert "bits_per_image" not in rows["OmniTokenizer D8, continuous, f8", "paper, Table 14"]


def test_compare_prints_one_table_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, bits in (("a", 30_000.0), ("b", 10_000.0)):
        write_report(report(name, bits), tmp_path / name)
    write_report(report("ours $^_$ no formula", 10.0), tmp_path / "c")
    write_report(EvaluationReport("no bits", {"images": 50.0, "rfid": 2.0}), tmp_path / "d")
    plot = tmp_path / "plots" / "rd.png"
    sources = [str(tmp_path / "a"), str(tmp_path / "b" / "metrics.json"), str(tmp_path / "c"), str(tmp_path / "d")]
    main(["compare", *sources, "--paper", "--plot", str(plot)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "  not in the plot, without bits per pixel: no bits"
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert names.index("b") < names.index("GSQ D8, f8, V = 8,192") < names.index("a")
    picture = Image.open(plot).convert("RGB")
    colors = {color for _, color in picture.getcolors(maxcolors=1_000_000)}
    assert {(192, 57, 43), (86, 101, 115)} <= colors  # measured and published points


def test_a_terminal_without_arrows_gets_the_table_all_the_same() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1:strict"}
    command = [sys.executable, "-m", "gsq_lightning", "compare", "--paper"]
    result = subprocess.run(command, env=environment, capture_output=True)
    assert result.returncode == 0
    assert b"rFID \\u2193" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "gsq compare needs reports"),
        (["nowhere"], "there is no nowhere"),
        (["--paper", "--plot", "rd.docx"], "rd.docx is no picture"),
        (["--paper", "--plot", "rd.pgf"], "rd.pgf is no picture"),
        (["--papers"], "unrecognized arguments: --papers"),
    ],
)
def test_wrong_input_of_compare_ends_in_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(["compare", *arguments])
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gsq: error: ")
    assert message in line


@pytest.mark.parametrize(
    "content",
    [
        '{"name": "a", "metrics": {"psnr": ' + "9" * 400 + "}}",
        "[" * 200_000,
    ],
)
def test_damaged_reports_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(InputError, match="cannot be read as a report"):
        find_report(tmp_path)


def test_the_report_of_other_weights_of_an_export_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    report = EvaluationReport(name="a", metrics={"psnr": 1.0}, checkpoint_sha256=sha256)
    write_report(report, tmp_path / "validate")
    assert find_report(tmp_path).metrics == {"psnr": 1.0}
    (tmp_path / "model.safetensors").write_bytes(b"others")
    with pytest.raises(InputError, match="was written for another state"):
        find_report(tmp_path)


def test_without_matplotlib_the_plot_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    with pytest.raises(SystemExit):
        main(["compare", "--paper", "--plot", str(tmp_path / "rd.png")])
    assert "--plot needs matplotlib" in capsys.readouterr().err


def test_compare_needs_no_torch() -> None:
    code = (
        "import sys; from gsq_lightning.__main__ import main; main(['compare', '--paper']); "
        "print('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "False"
