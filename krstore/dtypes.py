"""The element types that archives may have, by the name that goes into files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from krstore.errors import ArchiveError

__all__ = ["DTYPES", "STATE_DTYPES", "cast", "dtype_name", "numpy_dtype"]

DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8")  # of samples
STATE_DTYPES = (*DTYPES, "bool", "int8", "int16", "int32", "int64")  # of the arrays of a network's state


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of an element type's name (bfloat16 through ml_dtypes).

    Raises:
        ArchiveError: `name` is none of `STATE_DTYPES`.
    """
    if name not in STATE_DTYPES:
        raise ArchiveError(f"element type {name!r} is not supported; expected one of {', '.join(STATE_DTYPES)}")
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name).newbyteorder("<")


def dtype_name(dtype: np.dtype[Any], known: tuple[str, ...] = DTYPES) -> str:
    """Return the name of a NumPy dtype, for example ``"float32"``.

    Raises:
        ArchiveError: the dtype is none of those known.
    """
    if dtype.name not in known:
        raise ArchiveError(f"element type {dtype.name!r}, expected one of {', '.join(known)}; convert the array first")
    return dtype.name


def cast(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Cast decoded float values to the source's dtype: uint8 is rounded and clipped, floats are clipped to the
    largest finite value, so that no decoder produces an infinity that the source did not have."""
    if values.dtype == dtype:
        return values
    if dtype == np.uint8:
        return np.asarray(np.rint(values).clip(0, 255), np.uint8)
    if dtype.itemsize < values.dtype.itemsize:
        if dtype.name == "bfloat16":
            import ml_dtypes

            limit = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        else:
            limit = float(np.finfo(dtype).max)
        values = values.clip(-limit, limit)
    return np.asarray(values, dtype)
