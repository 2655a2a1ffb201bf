"""A pickle reader that builds plain containers, strings, numbers and NumPy arrays, and nothing else.

Two published formats are pickles: CIFAR-10's batches, and the object array in the authors' checkpoints.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy._core import multiarray

#: All that an array's pickle may name. NumPy moved `numpy.core` to `numpy._core` in 2.0.
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("_codecs", "encode"): lambda text, encoding="utf-8": _encode_latin1(text, encoding),
}


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in pickle protocol 2; only for that."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("persistent references are not allowed")


def loads(data: bytes) -> Any:
    """The object in a pickle; Python 2 strings come back as bytes.

    Raises:
        ValueError: damaged, or naming anything but NumPy arrays.
    """
    try:
        return _Restricted(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # A damaged pickle can raise anything.
        raise ValueError(str(error) or type(error).__name__) from error
