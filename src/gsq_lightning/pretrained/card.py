"""The model card of a tokenizer on the Hugging Face Hub."""

import json
from pathlib import Path
from typing import Any

from gsq_lightning.errors import InputError
from gsq_lightning.pretrained.saved import SavedTokenizer

CARD_FILE = "README.md"

# facts of a report that a number depends on, and what the card calls them
PROTOCOL = {
    "data": "images",
    "image_size": "size",
    "preparation": "preparation",
    "precision": "precision of the tokenizer",
    "recipe": "recipe",
    "step": "generator steps",
    "weights": "weights",
    "date": "date",
}


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of a `metrics.json` that validation wrote. Raises InputError where it is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content["metrics"], dict):
            raise TypeError("its metrics are no table")
    except (KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a report of gsq validate (metrics.json): {error}") from error
    return content


def model_card(saved: SavedTokenizer, name: str, report: dict[str, Any] | None, license: str | None) -> str:
    """Markdown with the header that the Hub reads.

    Args:
        saved: the tokenizer.
        name: of its repository or folder, for the lines of use.
        report: of `read_metrics`, for the table of metrics and what they depend on; or none.
        license: of the weights, as the Hub spells it ("apache-2.0", "cc-by-nc-4.0", …); or none, for you to fill in.
    """
    config = saved.config
    factor = 2 ** (len(config["channel_multipliers"]) - 1)
    parameters = sum(weight.numel() for weight in saved.weights.values())
    own_class = config["quantizer"].get("own_class")
    if own_class is None:
        arguments = ", ".join(f"{name} {value}" for name, value in config["quantizer"].items() if name != "class")
        quantizer, given = f"{config['quantizer'].get('class')} ({arguments})", ""
    else:
        quantizer, given = f"{own_class}, a class of its own", f", quantizer={own_class}(…)"
    lines = [
        "---",
        f"license: {license or 'unknown'}",
        "library_name: gsq-lightning",
        "tags: [image-tokenizer, vector-quantization]",
        "---",
        "",
        f"# {name.rstrip('/').rsplit('/', 1)[-1]}",
        "",
        f"An image tokenizer of {parameters / 1e6:.1f} M parameters that divides height and width by {factor}, made "
        "with gsq-lightning ([GSQ, arXiv 2412.02632](https://arxiv.org/abs/2412.02632)).",
        f"Quantizer: {quantizer}.",
        "",
        "```python",
        "from gsq_lightning import GSQTokenizer",
        "",
        f'tokenizer = GSQTokenizer.from_pretrained("{name}"{given})',
        'encoded = tokenizer.encode_image("photograph.jpg")  # .indices: (1, h, w, G)',
        'tokenizer.decode_image(encoded).save("reconstruction.png")',
        "```",
    ]
    if report is not None:
        lines += ["", "| metric | value |", "|---|---|", *_rows(report["metrics"])]
        facts = {name: report.get(key) for key, name in PROTOCOL.items()}
        facts["images"] = str(facts["images"] or "").rstrip("/").rsplit("/", 1)[-1]  # no path of somebody's machine
        lines += ["", *(f"- {name}: {fact}" for name, fact in facts.items() if fact)]
        lines += [f"- {metric}: {protocol}" for metric, protocol in (report.get("protocols") or {}).items()]
        lines += [f"- {note}" for note in report.get("notes") or []]
    return "\n".join(lines) + "\n"


def _rows(metrics: dict[str, Any]) -> list[str]:
    return [
        f"| {name} | {value:.6g} |" if isinstance(value, int | float) else f"| {name} | {value} |"
        for name, value in metrics.items()
    ]
