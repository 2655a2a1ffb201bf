"""What a pickle makes NumPy arrays of, checked part by part: for :mod:`comdefend_cli.runtime.unpickle`, which calls nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

#: The names that an array's pickle holds, and what stands for them here. NumPy moved `core` to `_core` in 2.0.
NAMES = {
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "numpy.core.multiarray _reconstruct": "reconstruct",
    "numpy._core.multiarray _reconstruct": "reconstruct",
    "numpy.core.numeric _frombuffer": "frombuffer",
    "numpy._core.numeric _frombuffer": "frombuffer",
    "_codecs encode": "encode",
    "__builtin__ bytes": "empty",
    "builtins bytes": "empty",
}
_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")
_OBJECT_DTYPE = re.compile(r"[|]?O[48]?")
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class Name:
    """What a pickle means to call: a value of `NAMES`."""

    what: str


@dataclass(eq=False)
class Dtype:
    """An array's type, whose byte order may come later."""

    value: np.dtype[Any]


@dataclass(eq=False)
class Unbuilt:
    """An array before its state came, and the memo's places that wait for it."""

    memos: list[int] = field(default_factory=list)


def _read_text(value: object) -> str:
    """A short string that Python 2 may have written as bytes."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    if isinstance(value, str):
        return value
    raise ValueError("damaged pickle (no string)")


def _make_dtype(name: object, *_: object) -> Dtype:
    text = _read_text(name)
    if _OBJECT_DTYPE.fullmatch(text):
        return Dtype(np.dtype(object))
    if not _DTYPE.fullmatch(text):
        raise ValueError(f"an array's type is {text[:20]!r}; only numbers are allowed")
    return Dtype(np.dtype(text))


def set_byte_order(dtype: np.dtype[Any], version: object, order: object, *rest: object) -> np.dtype[Any]:
    """A number's type in the order that its state names; a state with fields or subarrays is refused."""
    if rest[:3] != (None, None, None) or _read_text(order) not in ("<", ">", "=", "|"):
        raise ValueError("an array's type has fields; only numbers are allowed")
    return dtype if dtype.hasobject else dtype.newbyteorder(cast(Any, _read_text(order)))


def _make_unbuilt(*_: object) -> Unbuilt:
    return Unbuilt()


def make_array(version: object, shape: object, dtype: object, fortran: object, content: object) -> np.ndarray:
    """An array from the parts that NumPy pickles, which must fit each other exactly."""
    if not isinstance(dtype, Dtype) or type(shape) is not tuple or len(shape) > _MAX_DIMENSIONS:
        raise ValueError("damaged array")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("an array has a negative size")
    if dtype.value.hasobject:
        return _make_object_array(shape, content)
    if not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.value.itemsize:
        raise ValueError("an array's shape does not fit its bytes")
    array: np.ndarray = np.ndarray(shape, dtype.value, content, order="F" if fortran else "C")
    if dtype.value.kind == "b":
        return np.not_equal(array.view(np.uint8), 0)  # A byte other than 0 and 1 is an invalid boolean.
    return array.astype(dtype.value.newbyteorder("="), order="C")


def _make_object_array(shape: tuple[int, ...], content: object) -> np.ndarray:
    if type(content) is not list or len(content) != math.prod(shape):
        raise ValueError("an array's shape does not fit its items")
    if not all(isinstance(item, np.ndarray) and not item.dtype.hasobject for item in content):
        raise ValueError("an array of objects holds something else than arrays of numbers")
    array = np.empty(len(content), object)
    for index, item in enumerate(content):  # Assigned at once, equal shapes would be stacked.
        array[index] = item
    return array.reshape(shape)


def _make_from_buffer(content: object, dtype: object, shape: object, order: object, *_: object) -> np.ndarray:
    """An array as protocol 5 holds it."""
    return make_array(1, shape, dtype, _read_text(order) == "F", content)


def _encode_bytes(text: object, encoding: object) -> bytes:
    """How Python 3 writes bytes in protocol 2; only for that."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("its pickle encodes text, which is not allowed")
    return text.encode("latin1")


def _make_empty() -> bytes:
    """How Python 3 writes empty bytes in protocol 2; with an argument it would be anything."""
    return b""


#: What a name does when a pickle calls it.
CALLS: dict[str, Callable[..., Any]] = {
    "dtype": _make_dtype,
    "reconstruct": _make_unbuilt,
    "frombuffer": _make_from_buffer,
    "encode": _encode_bytes,
    "empty": _make_empty,
}
