"""DataLoader workers at the end of a process."""

import subprocess
import sys

PROGRAM = """
from gsq_lightning.data.loader import Loading, make_loader

batches = iter(make_loader(list(range(100)), Loading(num_workers=1), collate_fn=list))
next(batches)
raise SystemExit("it cannot go on")
"""


def test_a_process_that_ends_in_an_error_says_nothing_of_its_workers() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, "it cannot go on\n")
