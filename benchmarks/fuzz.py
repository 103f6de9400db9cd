"""Damages configs, checkpoints and exports at random and reads them, for as long as it is given.

    python benchmarks/fuzz.py --minutes 5

Whatever is not a result or one clear line is an error: another exception, a hang (60 s), more than 8 GiB of memory.
"""

import argparse
import collections
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fuzzing import Outcome, damaged, damaged_yaml, read_checkpoint_file, read_config_file, read_export, seeds

HANG = 60  # seconds
MEMORY = 8 * 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, tell_a_hang)
    warnings.simplefilter("ignore")
    counts: dict[str, collections.Counter[Outcome]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        seeds(folder)
        kinds: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Outcome]]] = {
            "checkpoint": (
                damaged((folder / "seed.ckpt").read_bytes()),
                lambda content: read_checkpoint_file(folder, content),
            ),
            "config": (damaged_yaml(), lambda text: read_config_file(folder, text)),
        }
        for name in ("config.json", "model.safetensors"):
            content = (folder / "export" / name).read_bytes()
            kinds[f"export, {name}"] = (
                damaged(content),
                lambda content, name=name: read_export(folder, name, content),
            )
        for kind, (strategy, read) in kinds.items():
            counts[kind] = run(strategy, read, 60 * arguments.minutes / len(kinds))
    print("| damaged | examples | still read | refused in one line |\n|---|---|---|---|")
    for kind, counter in counts.items():
        print(f"| {kind} | {counter.total()} | {counter[Outcome.READ]} | {counter[Outcome.REFUSED]} |")


def run(
    strategy: st.SearchStrategy[Any], read: Callable[[Any], Outcome], seconds: float
) -> collections.Counter[Outcome]:
    counter: collections.Counter[Outcome] = collections.Counter()
    end = time.monotonic() + seconds

    @settings(
        max_examples=100, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def batch(example: Any) -> None:
        signal.alarm(HANG)
        counter[read(example)] += 1
        signal.alarm(0)

    while time.monotonic() < end:
        batch()
    return counter


def tell_a_hang(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"no answer in {HANG} s")


if __name__ == "__main__":
    main()
