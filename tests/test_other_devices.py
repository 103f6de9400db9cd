"""GPUs that are not NVIDIA's, such as Apple's, by one that is simulated: torch knows it for a whole process."""

import pytest
from torch.utils import backend_registration

from tests.conftest import run_tests_alone


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this version of torch has no devices that are written in Python",
)
def test_a_device_without_float64() -> None:
    run_tests_alone("on_simulated_device.py")
