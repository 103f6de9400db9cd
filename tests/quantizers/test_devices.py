"""What a lookup on a GPU does where Triton's kernels do not run; tensors of a GPU that is not there hold no values."""

import sys
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gsq_lightning import InputError
from gsq_lightning.quantizers import lookup
from gsq_lightning.quantizers.lookup import CodeIndex, devices

pytest.importorskip("triton")

GPU = torch.device("cuda", 0)
KERNEL = "gsq_lightning.quantizers.lookup.scores.to_columns"  # which is tried


@pytest.fixture(autouse=True)
def an_a100(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Where Triton's kernels run."""
    devices.has_kernels.cache_clear()
    devices.why_no_kernels.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(KERNEL, lambda vectors: vectors.t())
    yield monkeypatch
    devices.has_kernels.cache_clear()
    devices.why_no_kernels.cache_clear()


def failing(error: Exception) -> Callable[[torch.Tensor], torch.Tensor]:
    def launch(vectors: torch.Tensor) -> torch.Tensor:
        assert vectors.device == GPU
        raise error

    return launch


def no_compiler(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KERNEL, failing(RuntimeError("Failed to find C compiler.\nPlease specify")))


def no_assembler(patch: pytest.MonkeyPatch) -> None:
    """For DGX Spark, in Triton 3.5."""
    from triton.runtime.errors import PTXASError

    log = "Internal Triton PTX codegen error\n`ptxas` stderr:\nptxas fatal   : Value 'sm_121a' is not defined\n"
    patch.setattr(KERNEL, failing(PTXASError(log)))


def no_triton(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "triton", None)


def a_t4(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))


def an_mi210(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.version, "hip", "6.4")
    patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_kernels_run_on_an_nvidia_gpu_with_triton() -> None:
    with FakeTensorMode():
        assert devices.why_no_kernels(GPU) is None
        assert devices.has_kernels(GPU)
    assert not devices.has_kernels(torch.device("cpu"))


@pytest.mark.parametrize(
    ("lack", "reason"),
    [
        (no_compiler, r"C compiler .*apt install gcc python3-dev.* RuntimeError: Failed to find C compiler\.$"),
        (
            no_assembler,
            r"ptxas, that knows this GPU, fails with PTXASError: PTXAS error: Internal Triton PTX .* error$",
        ),
        (no_triton, r"Triton is not installed \(pip install triton\)$"),
        (a_t4, r"Triton needs compute capability 8\.0; it is 7\.5$"),
        (an_mi210, r"float16 numbers .* AMD"),
    ],
)
def test_without_kernels_a_slower_method_is_taken_with_one_warning(
    lack: Callable[[pytest.MonkeyPatch], None], reason: str, an_a100: pytest.MonkeyPatch
) -> None:
    lack(an_a100)
    an_a100.setattr(lookup, "_rows_to_search", lambda codes, method: None)
    an_a100.setattr(lookup, "_build", lambda codes, method: None)
    with FakeTensorMode():
        codes = {dimension: torch.empty(50, dimension, device=GPU) for dimension in (1, 2, 3, 8)}
        with pytest.warns(UserWarning, match=f"^nearest codes on cuda:0 are .*slower: .*{reason}"):
            assert CodeIndex(codes[8]).method == "matmul"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert CodeIndex(codes[3]).method == "matmul"
            for index in (CodeIndex(codes[1]), CodeIndex(codes[2], unit_norm=True)):
                assert index.method in ("sorted", "circle")
                assert not index._queues
        with pytest.raises(InputError, match=f"^method 'triton' cannot be used on cuda:0: .*{reason}"):
            CodeIndex(codes[8], "triton")
