"""GPUs that are not NVIDIA's, such as Apple's, by one that is simulated: torch knows it for a whole process."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this version of torch has no devices that are written in Python",
)
def test_a_device_without_float64() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    file = Path(__file__).with_name("on_simulated_device.py")
    result = subprocess.run(
        [*command, str(file)], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-5000:]
