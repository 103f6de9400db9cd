"""Imports go one way, and using a tokenizer does not import what only training needs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "gsq_lightning"

# what each part may import from this package, besides itself
MAY_IMPORT = {
    "errors": set(),
    "pictures": set(),
    "pixels": {"errors", "pictures"},
    "indices": {"errors"},
    "precision": set(),
    "distributed": set(),
    "files": {"errors"},
    "run_folders": {"errors"},
    "names": set(),
    "pretrained": {"errors", "files", "precision", "run_folders"},
    "networks": {"errors"},
    "quantizers": {"distributed", "errors", "indices", "precision"},
    "optim": {"distributed", "errors"},
    "discriminators": {"errors", "pretrained"},
    "losses": {"discriminators", "distributed", "errors", "pretrained", "quantizers"},
    "metrics": {"distributed", "errors", "files", "pixels", "precision", "pretrained"},
    "tokens": {"errors", "files", "indices", "names"},
    "data": {"errors", "files", "names", "pictures", "pixels", "pretrained", "tokens"},
    "reports": {"errors", "files", "run_folders"},
    "callbacks": {"distributed", "errors", "files", "pixels", "reports", "run_folders", "runs", "tokens"},
    "runs": {"distributed", "errors", "files", "pixels", "pretrained", "run_folders"},
    "tokenizer": {"errors", "networks", "pixels", "pretrained", "quantizers"},
    "training": {
        "callbacks",
        "discriminators",
        "errors",
        "losses",
        "metrics",
        "optim",
        "pixels",
        "pretrained",
        "quantizers",
        "tokenizer",
        "tokens",
    },
    "cli": {
        "",
        "callbacks",
        "data",
        "distributed",
        "errors",
        "files",
        "metrics",
        "pixels",
        "pretrained",
        "quantizers",
        "reports",
        "run_folders",
        "runs",
        "tokenizer",
        "tokens",
        "training",
    },
    "__main__": {"cli"},
    "__init__": {"data", "errors", "quantizers", "tokenizer", "training"},
}


def imports_of(path: Path) -> set[str]:
    """Parts of this package that a file imports; "" is the package itself."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "gsq_lightning":
                names = [f"gsq_lightning.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] if "." in name else "" for name in names if name.split(".")[0] == "gsq_lightning"}
    return parts


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    part = relative.parts[0].removesuffix(".py")
    assert part in MAY_IMPORT, f"{part} is new: say here what it may import"
    assert imports_of(path) - {part} <= MAY_IMPORT[part]


def test_no_drawer_for_odds_and_ends() -> None:
    names = {path.stem for path in PACKAGE.rglob("*")}
    assert not names & {"utils", "util", "base", "helpers", "common", "misc"}


@pytest.mark.parametrize("name", ["GSQTokenizer", "GroupedSphericalQuantizer"])
def test_inference_imports_nothing_of_training(name: str) -> None:
    code = (
        f"import sys; from gsq_lightning import {name}; "
        "print(sorted({'lightning', 'torchmetrics', 'lpips', 'timm', 'torchvision', 'tensorboard'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom gsq_lightning.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "False"
    assert "predict" in output
