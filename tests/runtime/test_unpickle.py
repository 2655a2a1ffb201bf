"""The pickle reader: it reads what NumPy wrote, and runs nothing, whatever the file says."""

from __future__ import annotations

import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from formats import Raw, array_opcodes, dtype_opcodes, objects, python2_pickle
from hypothesis import given
from hypothesis import strategies as st

from comdefend_cli.runtime.unpickle import read_pickle

MARKER = "comdefend-marker"
U1 = dtype_opcodes(b"u1", b"|")
OBJECT = dtype_opcodes(b"O8", b"|", 63)
#: Each would run something, or end, hang or fill a process that trusted it.
ATTACKS: dict[str, bytes] = {
    "os.system": f"cos\nsystem\n(S'touch {MARKER}'\ntR.".encode(),
    "builtins.eval": f"c__builtin__\neval\n(S'open(\"{MARKER}\",\"w\")'\ntR.".encode(),
    "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x05touch\x85R.",
    "STACK_GLOBAL of numbers": b"\x80\x04K\x01K\x02\x93.",
    "INST": f"(S'touch {MARKER}'\nios\nsystem\n.".encode(),
    "OBJ": f"(cos\nsystem\nS'touch {MARKER}'\no.".encode(),
    "NEWOBJ": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "EXT": b"\x80\x02\x82\x01.",
    "persistent id": b"P1\n.",
    "numpy.load": b"cnumpy\nload\n(S'x.npy'\ntR.",
    "numpy scalar": b"cnumpy.core.multiarray\nscalar\n(tR.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
    "a module that is absent": b"cnot_there_at_all\nx\n.",
    "encode to an object": b"c_codecs\nencode\n(V41\nS'hex'\ntR.",
    "encode of a number": b"c_codecs\nencode\n(I1\nVlatin1\ntR.",
    "ndarray called": b"cnumpy\nndarray\n(I9\ntR.",
    "a state for a name": b"cnumpy\nndarray\n(N}V__init__\nI1\nstb.",
    "a state for a dictionary": b"}(I1\ntb.",
    "a name alone": b"cnumpy\nndarray\n.",
    "a name in a list": b"](cnumpy\ndtype\ne.",
    "a mark alone": b"(.",
    "a mark in a list": b"](a.",
    "dtype with fields": python2_pickle(Raw(b"cnumpy\ndtype\n((](U\x01xU\x02u1teI0\nI1\ntR")),
    "dtype of pointers": python2_pickle(array_opcodes((1,), OBJECT, b"\x41" * 8)),
    "dtype turned into one with fields": python2_pickle(Raw(b"cnumpy\ndtype\n(U\x02u1I0\nI1\ntR(I3\nU\x01|NU\x01x}I-1\nI-1\nI0\ntb")),
    "void dtype": python2_pickle(array_opcodes((1,), dtype_opcodes(b"V8", b"|"), b"12345678")),
    "date dtype": python2_pickle(array_opcodes((1,), dtype_opcodes(b"M8", b"<"), b"12345678")),
    "short buffer": python2_pickle(array_opcodes((1000, 1000), U1, b"abc")),
    "long buffer": python2_pickle(array_opcodes((2,), U1, b"abc")),
    "negative shape": python2_pickle(array_opcodes((-1,), U1, b"abc")),
    "two negative sizes": python2_pickle(array_opcodes((-1, -3), U1, b"abc")),
    "size that overflows": python2_pickle(array_opcodes(tuple([2**31 - 1] * 6), U1, b"")),
    "zero times too much": python2_pickle(array_opcodes(tuple([2**31 - 1] * 6 + [0]), U1, b"")),
    "a thousand dimensions": python2_pickle(array_opcodes(tuple([1] * 1000), U1, b"a")),
    "shape of strings": python2_pickle(array_opcodes((b"3",), U1, b"abc")),
    "no shape": python2_pickle(array_opcodes(None, U1, b"abc")),
    "list for bytes": python2_pickle(array_opcodes((3,), U1, [1, 2, 3])),
    "objects that are no arrays": python2_pickle(array_opcodes((1,), OBJECT, [{}])),
    "objects in objects": python2_pickle(array_opcodes((1,), OBJECT, [objects([np.zeros(1)])])),
    "fewer objects than shape": python2_pickle(array_opcodes((5,), OBJECT, [np.zeros(1)])),
    "an array in itself": b"cnumpy.core.multiarray\n_reconstruct\n(tRq\x01(I1\n(I1\nt" + OBJECT + b"I0\n](h\x01etb.",
    "a deep tuple as a key": b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
    "a wide tuple as a key": b"\x80\x02}(I1\n" + b"t" + b"q\x01h\x01\x86" * 60 + b"Ns.",
    "one array again and again": python2_pickle(b"\0" * 2**20)[:-1] + b"q\x01" + array_opcodes((2**20,), U1, Raw(b"h\x01")) * 20_000 + b".",
    "bytes of a size": b"c__builtin__\nbytes\n(I1000000000000\ntR.",
    "a string of 2 GiB": b"\x80\x02T\xff\xff\xff\x7f.",
    "a string of 2**63 bytes": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a number of 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "stack underflow": b"\x80\x02R.",
    "no stop": b"\x80\x02N",
    "nothing": b"",
}  # fmt: skip
#: Odd, but nothing is wrong with them as long as memory and stack hold.
HARMLESS: dict[str, bytes] = {
    "a memo of four billion places": b"\x80\x02Nr\xff\xff\xff\xff.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "many lists in each other": b"\x80\x02" + b"]" * 200_001 + b"a" * 200_000 + b".",
    "many tuples in each other": b"\x80\x02)" + b"\x85" * 200_000 + b".",
}
CHILD = """
import pickle, resource, sys
from comdefend_cli.runtime.unpickle import read_pickle
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
attacks, harmless = pickle.load(sys.stdin.buffer)
for name, data in attacks.items():
    try:
        read_pickle(data)
    except ValueError as error:
        assert len(str(error)) < 200 and str(error).isprintable(), (name, error)
    else:
        raise AssertionError(name)
for data in harmless.values():
    read_pickle(data)
print(len(attacks), "refused")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the child's memory by a POSIX call")
def test_attacks_are_refused(tmp_path: Path) -> None:
    """Pickles that call, crash, hang or fill memory each end in a short ValueError and leave no trace, in 3 GiB of address space."""
    command = [sys.executable, "-c", CHILD]
    child = subprocess.run(command, input=pickle.dumps((ATTACKS, HARMLESS)), capture_output=True, cwd=tmp_path, check=False, timeout=120)
    assert child.returncode == 0, child.stderr.decode()[-2000:]
    assert child.stdout.decode().split() == [str(len(ATTACKS)), "refused"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(protocol: int) -> None:
    """Containers and arrays of this NumPy come back equal from every protocol, shared ones shared."""
    kernel = np.arange(12, dtype=">f4").reshape(3, 4).T
    value = {
        "arrays": objects([kernel, np.array([True, False]), np.zeros((0, 3)), kernel]),
        b"list": [1, -(2**70), 2.5, None, True, False, "\xe9\u20ac", b"\xff", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}],
        7: kernel,
    }
    result = read_pickle(pickle.dumps(value, protocol=protocol))
    assert result[b"list"][2:] == value[b"list"][2:]  # type: ignore[index]
    assert result[b"list"][:2] == [1, -(2**70)]
    for given_, read in zip(value["arrays"], result["arrays"], strict=True):
        assert np.array_equal(given_, read)
        assert read.dtype.isnative and read.flags.writeable
    assert result[7] is result["arrays"][0] is result["arrays"][3]


def test_python_2_pickles_are_read() -> None:
    """Arrays, strings and object arrays as Python 2 and NumPy 1 wrote them come back, strings as bytes."""
    arrays = [np.arange(4, dtype="<f4"), np.arange(4, dtype=">f8"), np.arange(300, dtype=np.uint8)]
    result = read_pickle(python2_pickle({b"w": objects(arrays), b"text": b"x" * 300, b"numbers": [1, -2]}))
    assert [item.tolist() for item in result[b"w"]] == [item.tolist() for item in arrays]
    assert (result[b"text"], result[b"numbers"]) == (b"x" * 300, [1, -2])


def test_fortran_order_is_kept() -> None:
    """An array stored column by column has its values at the right places."""
    matrix = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(read_pickle(python2_pickle(array_opcodes((2, 3), U1, matrix.T.tobytes(), fortran=1))), matrix)


@given(st.binary(max_size=200))
def test_random_bytes_raise_value_errors_only(data: bytes) -> None:
    """Bytes that are no pickle end in a ValueError, never in another exception."""
    _try(data)


VALID = [python2_pickle({b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"labels": [1, 2], b"w": objects([np.zeros(2)] * 2)})]
VALID += [pickle.dumps({b"data": np.zeros((2, 3)), "x": (1, [2.0, None])}, protocol=protocol) for protocol in range(6)]


@given(st.sampled_from(VALID), st.data())
def test_damaged_pickles_raise_value_errors_only(valid: bytes, data: st.DataObject) -> None:
    """Pickles with bytes changed, cut out or put in are read or end in a ValueError."""
    damaged = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged)))
        damaged[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    _try(bytes(damaged))


def _try(data: bytes) -> None:
    with suppress(ValueError):
        read_pickle(data)
