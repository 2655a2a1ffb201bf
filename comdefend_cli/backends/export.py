"""Weights as files for other software: ONNX, OpenVINO and `torch.export`, each run and compared with PyTorch before it is left in place."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from comdefend_cli.backends.openvino import INPUT, OUTPUT, build_graph, get_core, read_int8, serialize
from comdefend_cli.errors import ComdefendError, UsageError
from comdefend_cli.network.metrics import psnr
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.weight_file import Weights
from comdefend_cli.runtime.extras import require
from comdefend_cli.runtime.files import open_atomically, refuse_existing

#: Endings by format.
FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
#: Least PSNR in dB of a file's output to PyTorch's in float32, in 8-bit levels. A logit next to zero may round to the other side where
#: sums are added in another order, so not all values are the same.
LEAST = {"float32": 55.0, "int8": 30.0}
#: Versions of ONNX's operators and of its file format that belong together: what is newer, older runtimes refuse.
ONNX_OPSET, ONNX_FORMAT = 17, 8

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        paths: the files.
        psnr_db: the lowest of all images, to PyTorch's float32 output; infinite where all levels are the same.
        images: how many were compared.
    """

    paths: tuple[Path, ...]
    psnr_db: float
    images: int


def export(
    loaded: Weights, format: str, path: Path, *, images: Sequence[Tensor] = (), int8: bool = False, overwrite: bool = False
) -> Exported:
    """Write weights in a format, if the file's output on images is PyTorch's.

    Args:
        loaded: the weights.
        format: one of `FORMATS`.
        path: the file; for OpenVINO, the .xml file, beside which a .bin file will be.
        images: uint8 (1, channels, H, W) each, to compare on; those of :func:`make_images` if there are none.
        int8: the networks in 8-bit integers, for OpenVINO.
        overwrite: replace files that are there.

    Raises:
        UsageError: an unknown format, another ending than the format's, a file that is there, or a library that is not.
        WeightsError: the networks in 8-bit integers are damaged.
        ComdefendError: the output differs; nothing is written.
    """
    contents = _make_contents(loaded, format, path, int8)
    targets = [path.with_suffix(ending) for ending in contents]
    for target in targets:
        refuse_existing(target, overwrite=overwrite)
    compared = list(images) or make_images(loaded.model.architecture.channels)
    worst = _compare(_load_runner(format, list(contents.values())), loaded.model, compared)
    least = LEAST["int8" if int8 else "float32"]
    if not worst >= least:
        raise ComdefendError(f"{path}: its output is {worst:.1f} dB from PyTorch's, less than {least:g}; nothing was written")
    with ExitStack() as stack:  # None takes its place before all are written; the one that is named comes last.
        for target, content in zip(targets, contents.values(), strict=True):
            stack.enter_context(open_atomically(target, overwrite=overwrite)).write(content)
    return Exported(tuple(targets), worst, len(compared))


def make_images(channels: int) -> list[Tensor]:
    """Images with smooth parts, edges and texture, uint8 (1, channels, H, W) of two odd sizes, always the same."""
    made = []
    for height, width in ((61, 83), (40, 37)):
        rng = np.random.default_rng(height)
        rows, columns = np.mgrid[:height, :width].astype(np.float64)
        image = np.empty((channels, height, width))
        for channel in image:
            a, b, c = rng.uniform(0.02, 0.25, 3)
            channel[...] = 0.5 + 0.3 * np.sin(a * rows + b * columns) + 0.15 * np.sign(np.sin(c * (rows - columns)))
        noisy = image + rng.normal(0, 0.02, image.shape)
        made.append(torch.from_numpy((noisy * 255).round().clip(0, 255).astype(np.uint8))[None])
    return made


def _make_contents(loaded: Weights, format: str, path: Path, int8: bool) -> dict[str, bytes]:
    """The files to write, by ending; the one that is named comes first."""
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}: use {', '.join(FORMATS)}")
    if path.suffix != FORMATS[format]:
        raise UsageError(f"{path}: a file of {format} ends in {FORMATS[format]}")
    if int8 and (format != "openvino" or loaded.quantized is None):
        raise UsageError("int8 needs --format openvino, and weights made by comdefend quantize")
    if format == "openvino":
        made = loaded.quantized if int8 and loaded.quantized else serialize(build_graph(loaded.model))
        if int8:
            read_int8(made, loaded.model.architecture.channels)
        return {".xml": made.graph, ".bin": made.constants}
    return {FORMATS[format]: make_onnx(loaded.model) if format == "onnx" else make_program(loaded.model)}


def make_program(model: ComDefend) -> bytes:
    """A file of `torch.export.save`: runs with PyTorch alone, without this package."""
    stream = io.BytesIO()
    with _quiet():
        torch.export.save(_trace(model), stream)
    return stream.getvalue()


def make_onnx(model: ComDefend) -> bytes:
    """An ONNX file's content.

    Raises:
        UsageError: ONNX is not installed.
    """
    onnx = require("onnx", extra="onnx")
    require("onnxscript", extra="onnx")
    with _quiet():
        program = torch.onnx.export(
            _trace(model), input_names=[INPUT], output_names=[OUTPUT], opset_version=ONNX_OPSET, dynamo=True, verbose=False
        )
    made = cast(Any, program).model_proto
    made.ir_version = ONNX_FORMAT
    for end in (*made.graph.input, *made.graph.output):
        for axis, name in {0: "N", 2: "H", 3: "W"}.items():
            end.type.tensor_type.shape.dim[axis].dim_param = name
    del made.graph.value_info[:]  # Shapes in between, by other names than these.
    for part in (made, made.graph, *made.graph.node, *made.graph.input, *made.graph.output, *made.graph.initializer):
        del part.metadata_props[:]  # Where in this package each came from, with the paths of this machine.
    onnx.checker.check_model(made)
    return cast(bytes, made.SerializeToString())


def _trace(model: ComDefend) -> torch.export.ExportedProgram:
    """The forward pass, recorded, for any number of images of any size.

    Where networks see squares of pixels, PyTorch wants two of them a side: a program of `torch.export` refuses images of a single one,
    which ONNX does not.
    """
    example = torch.zeros(2, model.architecture.channels, 40, 48)
    dim, scale = torch.export.Dim, model.architecture.scale
    least = 1 if scale == 1 else scale + 1
    return torch.export.export(model, (example,), dynamic_shapes={"x": {0: dim("N"), 2: dim("H", min=least), 3: dim("W", min=least)}})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what PyTorch's exporters say of libraries that are not there, and of their own use of PyTorch."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _compare(run: Run, model: ComDefend, images: Sequence[Tensor]) -> float:
    """The lowest PSNR of images, one by one and, which tells whether batches work, the first one twice."""
    lowest = float("inf")
    for image in [*images, images[0].repeat(2, 1, 1, 1)]:
        x = image.float() / 255
        with torch.no_grad():
            expected = (model(x) * 255).round().to(torch.uint8)
        found = (torch.from_numpy(run(x.numpy())) * 255).round().to(torch.uint8)
        lowest = min(lowest, float(psnr(expected, found).min()))
    return lowest


def _load_runner(format: str, contents: list[bytes]) -> Run:
    """What runs a file's content, read back as its users will read it."""
    if format == "onnx":
        session = require("onnxruntime", extra="onnx").InferenceSession(contents[0], providers=["CPUExecutionProvider"])
        return lambda x: np.asarray(session.run(None, {INPUT: x})[0])
    if format == "torch-export":
        program = torch.export.load(io.BytesIO(contents[0])).module()
        return lambda x: np.asarray(program(torch.from_numpy(x)).detach())
    core = get_core()
    compiled = core.compile_model(core.read_model(*contents), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: np.asarray(compiled([x])[0])
