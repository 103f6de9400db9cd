"""`gsq compare`: reports side by side, on a table and as a plot."""

from pathlib import Path

from gsq_lightning.cli.messages import OneLineParser, one_line_errors
from gsq_lightning.errors import InputError, require
from gsq_lightning.reports import Row, comparison_lines, find_report, published_rows, report_row
from gsq_lightning.reports.plot import check_plot, plot_rows
from gsq_lightning.run_folders import expanded


def compare(arguments: list[str]) -> None:
    """Prints reports side by side, sorted by bits per image.

    Args:
        arguments: without the word `compare`.

    Raises:
        SystemExit: with code 2 for bad input.
    """
    parser = OneLineParser(prog="gsq compare", description="Reports side by side, sorted by bits per image.")
    parser.add_argument("sources", nargs="*", help="metrics.json files, checkpoints, exports, folders of runs")
    parser.add_argument("--paper", action="store_true", help="add the published figures of the GSQ paper's tables")
    parser.add_argument("--plot", metavar="PNG", help="draw metrics over bits per pixel")
    given = parser.parse_args(arguments)
    with one_line_errors("compare"):
        if given.plot:
            check_plot(Path(given.plot))
        require(
            bool(given.sources) or given.paper,
            "gsq compare needs reports, such as metrics.json or a checkpoint that was validated",
        )
        show([report_row(find_report(expanded(source))) for source in given.sources], given.paper, given.plot)


def show(rows: list[Row], paper: bool, plot: str | None) -> None:
    """Prints the table and draws the plot.

    Args:
        rows: measured.
        paper: add the published ones.
        plot: path of the picture, or None.

    Raises:
        InputError: where the plot cannot be written.
    """
    if paper:
        rows = rows + published_rows()
    print("\n".join(comparison_lines(rows)))
    if paper:
        print("\nTables: of arXiv 2412.02632, at 256×256 on ImageNet; crops and programs differ")
    if plot:
        try:
            left_out = plot_rows(rows, Path(plot).expanduser())
        except OSError as error:
            raise InputError(f"the plot cannot be written to {plot}: {error.strerror or error}") from error
        print(f"\n  plot  {plot}")
        if left_out:
            print(f"  not in the plot, without bits per pixel: {', '.join(left_out)}")
