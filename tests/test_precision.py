"""Full float32 arithmetic within a context, and what surrounds it left as it was."""

import threading
from collections.abc import Iterator

import pytest
import torch

from gsq_lightning.precision import full_precision, keep_precision

CPU = torch.device("cpu")


def settings() -> list[str]:
    """The switches exist without a GPU, too."""
    return [torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision]


@pytest.fixture
def fast_around() -> Iterator[None]:
    """TF32, as a user switches it on for training."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = settings()
    for place in places:
        place.fp32_precision = "tf32"
    yield
    for place, value in zip(places, before, strict=True):
        place.fp32_precision = value


def test_tensor_float_is_off_within_and_as_before_after(fast_around: None) -> None:
    with full_precision(CPU):
        assert settings() == ["ieee", "ieee"]
        with full_precision(CPU):
            pass
        assert settings() == ["ieee", "ieee"]  # the inner one ended, the outer one has not
    assert settings() == ["tf32", "tf32"]


def test_an_error_within_restores_what_was(fast_around: None) -> None:
    with pytest.raises(KeyError), full_precision(CPU):
        raise KeyError
    assert settings() == ["tf32", "tf32"]


def test_threads_that_overlap_neither_lose_precision_nor_leave_it_switched(fast_around: None) -> None:
    """The first to enter leaves first: what was before must return with the last, and not earlier."""
    second_is_in, first_is_out = threading.Event(), threading.Event()
    seen = []

    def second() -> None:
        with full_precision(CPU):
            second_is_in.set()
            first_is_out.wait(10)
            seen.append(settings())

    thread = threading.Thread(target=second)
    with full_precision(CPU):
        thread.start()
        assert second_is_in.wait(10)
    first_is_out.set()
    thread.join()
    assert seen == [["ieee", "ieee"]]
    assert settings() == ["tf32", "tf32"]


def test_many_threads_at_once(fast_around: None) -> None:
    wrong = []

    def work() -> None:
        for _ in range(200):
            with full_precision(CPU):
                if settings() != ["ieee", "ieee"]:
                    wrong.append(settings())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert settings() == ["tf32", "tf32"]


def test_autocast_is_off_within() -> None:
    x = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(CPU):
            assert (x @ x).dtype == torch.float32
            torch.testing.assert_close(x @ x, (x.double() @ x.double()).float())


@pytest.mark.parametrize(
    ("dtype", "widen", "expected"),
    [
        (torch.bfloat16, True, torch.float32),
        (torch.float64, True, torch.float64),
        (torch.float64, False, torch.float32),
    ],
)
def test_modules_keep_their_precision(dtype: torch.dtype, widen: bool, expected: torch.dtype) -> None:
    class Exact(torch.nn.Linear):
        def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
            return super()._apply(keep_precision(fn, widen), recurse)

    owner = torch.nn.Sequential(Exact(2, 2), torch.nn.Linear(2, 2)).to(dtype)
    assert owner[0].weight.dtype == expected
    assert owner[1].weight.dtype == dtype
    assert owner.to("meta")[0].weight.device.type == "meta"
