"""Counts what would wait for a GPU, on a machine without one."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
OPERATORS = {
    *(aten._local_scalar_dense, aten.is_nonzero, aten.nonzero, aten.equal, aten.allclose, aten.masked_select),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.unique_dim_consecutive, aten.bincount),
    aten.repeat_interleave.Tensor.overloadpacket,
    aten.lift_fresh,  # of tensors made from Python's numbers: torch.tensor, torch.as_tensor, lists as indices
    *(aten._linalg_check_errors, aten._linalg_eigh, aten._linalg_svd),
}
METHODS = (
    *("item", "tolist", "numpy", "cpu", "cuda", "new_tensor", "__array__"),
    *("__bool__", "__float__", "__int__", "__index__", "__complex__"),
)


class Waits:
    """What was called inside that would wait for a device.

    Reading a value of a tensor (`.item()`, `bool()`, `float()`, `.tolist()`), shapes that depend on values (`nonzero`,
    masks), checks of a factorization, tensors of Python's numbers (`torch.tensor`, lists as indices). Not seen is what
    does nothing where all tensors are on a CPU: `.to(device)`, `copy_`.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def __enter__(self) -> "Waits":
        found = self.found

        class Operators(TorchDispatchMode):
            """Below autograd: also what torch's own Python and C++ code calls."""

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                indexed = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
                    isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
                )
                if func.overloadpacket in OPERATORS or indexed:
                    found.append(str(func))
                return func(*args, **(kwargs or {}))

        class Methods(TorchFunctionMode):
            """What reads memory directly on a CPU, and does nothing where tensors are on a CPU already."""

            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                name = getattr(func, "__name__", "")
                if name in METHODS:
                    found.append(name)
                return func(*args, **(kwargs or {}))

        self._modes = [Operators(), Methods()]
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
