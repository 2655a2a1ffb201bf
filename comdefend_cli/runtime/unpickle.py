"""A pickle reader that builds plain containers, strings, numbers and NumPy arrays, and nothing else.

Two published formats are pickles: CIFAR-10's batches for Python, and the object array in the authors' checkpoints.
Python's own unpickler imports and calls what the file names, and hands NumPy states that can end the
interpreter; this one is a small stack machine that looks up no name, and makes arrays itself from checked parts.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from comdefend_cli.runtime.pickled_arrays import CALLS, NAMES, Dtype, Name, Unbuilt, make_array, set_byte_order

_MARK = object()


def read_pickle(data: bytes) -> Any:
    """The object in a pickle of any protocol, built of None, bool, int, float, bytes, str, tuple, list, dict and `numpy.ndarray`.

    Arrays hold booleans, integers or floats, in native byte order, or are object arrays of such arrays. Python 2
    strings come back as bytes. Nothing is imported or called, and memory stays within a small multiple of the data.

    Raises:
        ValueError: damaged, or asking for anything else.
    """
    try:
        return _Machine(2 * len(data)).run(data)  # Twice: once as encoded bytes, once as an array of them.
    except ValueError:
        raise
    except Exception as error:  # A damaged pickle can raise anything: an empty stack, a missing memo, no memory.
        raise ValueError(f"damaged pickle ({type(error).__name__})") from error


class _Machine:
    """The stack and the memo of one pickle (PEP 3154 and `pickletools` describe the opcodes)."""

    def __init__(self, budget: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.budget = budget

    def run(self, data: bytes) -> Any:
        """Execute the opcodes up to STOP."""
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name](argument))
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                raise ValueError(f"its pickle uses {opcode.name}, which is not allowed")
        (result,) = self.stack
        _refuse_parts([result])
        return result

    def spend(self, made: Any) -> Any:
        """Pass what was made of bytes or lists, which all stand in the file once; more is one of them used over and over."""
        if isinstance(made, np.ndarray):
            self.budget -= made.size if made.dtype.hasobject else made.nbytes
        elif isinstance(made, bytes):
            self.budget -= len(made)
        if self.budget < 0:
            raise ValueError("its arrays are larger than the file")
        return made

    def pop(self, count: int) -> list[Any]:
        """The topmost values, lowest first."""
        if count > len(self.stack):
            raise ValueError("damaged pickle (stack underflow)")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        if any(value is _MARK for value in taken):
            raise ValueError("damaged pickle (a mark where a value should be)")
        return taken

    def pop_to_mark(self) -> list[Any]:
        """All values above the last mark, and the mark is gone."""
        taken = []
        while (value := self.stack.pop()) is not _MARK:
            taken.append(value)
        return taken[::-1]

    def put(self, index: int) -> None:
        """Remember the topmost value."""
        top = self.stack[-1]
        self.memo[index] = top
        if isinstance(top, Unbuilt):
            top.memos.append(index)

    def extend_list(self, values: list[Any]) -> None:
        """Append to the list on top."""
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("damaged pickle (no list to append to)")
        _refuse_parts(values)
        target.extend(values)

    def extend_dict(self, values: list[Any]) -> None:
        """Set keys and values in the dictionary on top."""
        target = self.stack[-1]
        if type(target) is not dict:
            raise ValueError("damaged pickle (no dictionary to fill)")
        _refuse_parts(values)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (str, bytes, int)):  # Hashing a deep tuple overflows the C stack.
                raise ValueError("a dictionary's keys are neither strings nor numbers")
            target[key] = value

    def push_dict(self, values: list[Any]) -> None:
        """Push a dictionary of keys and values."""
        self.stack.append({})
        self.extend_dict(values)

    def name(self, text: str) -> None:
        """Push what stands for "module name"."""
        if text not in NAMES:
            raise ValueError(f"it asks for {text[:80].replace(' ', '.')!r}, which is not allowed")
        self.stack.append(Name(NAMES[text]))

    def stack_name(self) -> None:
        """The same, of module and name on the stack."""
        module, name = self.pop(2)
        self.name(f"{module} {name}" if isinstance(module, str) and isinstance(name, str) else "?")

    def reduce(self) -> None:
        """Do what calling a name would do."""
        name, arguments = self.pop(2)
        if not isinstance(name, Name) or name.what not in CALLS or type(arguments) is not tuple:
            raise ValueError("its pickle calls what cannot be called")
        self.stack.append(self.spend(CALLS[name.what](*arguments)))

    def build(self) -> None:
        """Give the value on top its state."""
        target, state = self.pop(2)
        if type(state) is not tuple:
            raise ValueError("damaged pickle (no state)")
        if isinstance(target, Dtype):
            target.value = set_byte_order(target.value, *state)
            self.stack.append(target)
        elif isinstance(target, Unbuilt):
            array = self.spend(make_array(*state))
            self.memo.update((index, array) for index in target.memos if self.memo[index] is target)
            self.stack.append(array)
        else:
            raise ValueError("its pickle gives a state to what has none")


def _refuse_parts(values: list[Any]) -> None:
    """What an array is made of is no data."""
    if any(value is _MARK or isinstance(value, (Name, Dtype, Unbuilt)) for value in values):
        raise ValueError("it holds something else than data")


def _python2_string(text: str) -> bytes:
    return text.encode("latin1")  # What pickletools decoded it by.


def _same(value: Any) -> Any:
    return value


#: Opcodes that push a value made of their argument alone.
_CONSTANTS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"), _same),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _same),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _same),
    "BYTEARRAY8": bytes,
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _python2_string),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "MARK": lambda _: _MARK,
}
#: Opcodes that work on the stack or the memo.
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda self, index: self.stack.append(self.memo[index])),
    "MEMOIZE": lambda self, _: self.put(len(self.memo)),
    "TUPLE": lambda self, _: self.stack.append(tuple(self.pop_to_mark())),
    "TUPLE1": lambda self, _: self.stack.append(tuple(self.pop(1))),
    "TUPLE2": lambda self, _: self.stack.append(tuple(self.pop(2))),
    "TUPLE3": lambda self, _: self.stack.append(tuple(self.pop(3))),
    "LIST": lambda self, _: self.stack.append(self.pop_to_mark()),
    "APPEND": lambda self, _: self.extend_list(self.pop(1)),
    "APPENDS": lambda self, _: self.extend_list(self.pop_to_mark()),
    "DICT": lambda self, _: self.push_dict(self.pop_to_mark()),
    "SETITEM": lambda self, _: self.extend_dict(self.pop(2)),
    "SETITEMS": lambda self, _: self.extend_dict(self.pop_to_mark()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda self, _: self.stack_name(),
    "REDUCE": lambda self, _: self.reduce(),
    "BUILD": lambda self, _: self.build(),
}
