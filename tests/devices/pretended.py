"""A device that is none: its tensors say ``cudaw:0``, hold CPU tensors, and are as strict as a GPU's.

What torch refuses of tensors of two devices is refused here, in all threads and forked workers, as float64 is by
Apple's GPUs, and what is computed is what the CPU computes: so code that is for a GPU runs on a machine without one.
That the name begins with ``cuda`` takes it through what krstore does on GPUs alone, but for autocast and TF32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration as backend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "cudaw"
DEVICE = f"{NAME}:0"
FREE_BYTES = 4 << 30

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}  # indices may be the CPU's
PLACED_BY_FIRST = {aten.copy_.default, *INDEXED}
_KERNELS = torch.library.Library("aten", "IMPL")


class _Module(backend._DummyBackendModule):
    """What torch asks of ``torch.cudaw``."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, *device: Any) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, *state: Any) -> None:
        return None


class Elsewhere(torch.Tensor):
    """A tensor of the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        if inner.dtype is torch.float64:
            raise TypeError("this device has no float64")
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=torch.device(DEVICE),
        )  # fmt: skip
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.inner!r})"

    def tolist(self) -> Any:
        return self.inner.tolist()


class _Generator:
    """A source of random numbers, for any device the CPU's."""

    _real = torch.Generator

    def __new__(cls, device: Any = "cpu") -> Any:
        return cls._real("cpu")


class _Made(TorchDispatchMode):
    """Sees what makes tensors of none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    own = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    _check(func, args, tensors, own, device)
    inner = tree_map(_inner, kwargs)
    if device is not None and device.type == NAME:
        inner["device"] = torch.device("cpu")
    results = func(*tree_map(_inner, args), **inner)
    if func is aten._local_scalar_dense.default:
        return results
    if device is not None:
        here = device.type == NAME
    else:
        here = isinstance(args[0], Elsewhere) if func in PLACED_BY_FIRST else bool(own)
    known = {id(tensor.inner): tensor for tensor in own}

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or not here:
            return value
        return known[id(value)] if id(value) in known else Elsewhere(value)

    return tree_map(placed, results)


def _check(func: Any, args: Any, tensors: list[Tensor], own: list[Elsewhere], device: torch.device | None) -> None:
    """Refuse what a GPU would: several devices at once, but for numbers, copies, and indices of the CPU."""
    others = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim()]
    if not own or not others or func in COPIES or device is not None:
        return
    if func in INDEXED and isinstance(args[0], Elsewhere):
        values = args[2] if len(args) > 2 else args[0]
        if isinstance(values, Elsewhere) or not values.dim():
            return
    shapes = [(type(tensor).__name__, tuple(tensor.shape)) for tensor in tensors]
    raise RuntimeError(f"expected all tensors on one device: {func} of {shapes}")


def _empty(size: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
           memory_format: Any = None) -> Tensor:  # fmt: skip
    return Elsewhere(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None,
                   pin_memory: Any = None) -> Tensor:  # fmt: skip
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _inner(target).copy_(_inner(source))
    return target


def install() -> None:
    """Give this process the device, for good."""
    backend._setup_privateuseone_for_python_backend(NAME, _Module())
    _KERNELS.impl("empty.memory_format", _empty, "PrivateUse1")
    _KERNELS.impl("empty_strided", _empty_strided, "PrivateUse1")
    _KERNELS.impl("_copy_from", _copy_from, "PrivateUse1")
    torch.Generator = _Generator  # type: ignore[misc]
    torch.cuda.mem_get_info = lambda device=None: (FREE_BYTES, 2 * FREE_BYTES)
    torch.nn.Module.compile = lambda self: None  # type: ignore[method-assign]
    _Made().__enter__()
