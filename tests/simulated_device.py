"""A device that is simulated on the CPU: it refuses tensors of other devices and, as Apple's GPU, float64."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

DEVICE = torch.device("privateuseone:0")
MOVES = ("aten::_to_copy", "aten::to", "aten::copy_")
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_")


class SimulatedTensor(Tensor):
    """Says that it is on `DEVICE`, and computes on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> "SimulatedTensor":
        if on_cpu.dtype == torch.float64:
            raise TypeError("the simulated device has no float64")
        made: SimulatedTensor = Tensor._make_wrapper_subclass(
            cls,
            on_cpu.shape,
            on_cpu.stride(),
            on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=DEVICE,
        )
        made.on_cpu = on_cpu
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given, _ = pytree.tree_flatten((args, kwargs))
        there = {id(one.on_cpu): one for one in given if isinstance(one, cls)}
        name = func._schema.name
        if name not in MOVES:
            checked = args[:1] if name in INDEXING else given  # indices may come from the CPU, and so may numbers
            others = [one for one in checked if isinstance(one, Tensor) and not isinstance(one, cls) and one.dim() > 0]
            assert not others or not there, f"{name} of tensors on the simulated device and on another"
        target = next((one for one in given if isinstance(one, torch.device)), DEVICE)
        stays = target == DEVICE and (name != "aten::copy_" or isinstance(args[0], cls))
        args, kwargs = pytree.tree_map(on_cpu, (args, kwargs))
        result = func(*args, **kwargs)
        if name == "aten::to" and not stays:
            result = result.clone()
        # what a function worked on in place is the same tensor as before
        return pytree.tree_map(lambda one: there.get(id(one), wrapped(one)), result) if stays else result

    def __repr__(self, **_: Any) -> str:
        return f"simulated {self.on_cpu}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "SimulatedTensor":
        copy = type(self)(self.on_cpu.detach().clone())
        memo[id(self)] = torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.on_cpu.detach().__reduce_ex__(protocol)

    def numpy(self, **_: Any) -> Any:
        raise TypeError("a tensor on the simulated device is no array; it must be moved first")

    def tolist(self) -> Any:
        return self.on_cpu.tolist()


def on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.on_cpu if isinstance(value, SimulatedTensor) else value


def wrapped(value: Any) -> Any:
    return SimulatedTensor(value) if isinstance(value, Tensor) and not isinstance(value, SimulatedTensor) else value


def register() -> None:
    """Makes the device known to torch, for the whole process."""
    backend_registration._setup_privateuseone_for_python_backend("simulated")
    torch.simulated.get_amp_supported_dtype = lambda: [torch.bfloat16]  # type: ignore[attr-defined]
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    for name, function in (("empty.memory_format", _empty), ("empty_strided", _empty), ("_copy_from", _copy_from)):
        torch.library.impl(f"aten::{name}", "PrivateUse1", function)


def _empty(size: Any, stride: Any = None, *, dtype: Any = None, **_: Any) -> Tensor:
    if stride is None:
        return SimulatedTensor(torch.empty(size, dtype=dtype))
    return SimulatedTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    on_cpu(target).copy_(on_cpu(source))
    return target
