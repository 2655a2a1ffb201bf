"""The networks as graphs of other libraries: OpenVINO's (extra [openvino]), ONNX's (extra [onnx]), and plain PyTorch layers.

All take an image, float32 (N, C, H, W) in [0, 1] of any N, H and W, and return the purified one likewise; the rounding of the code
is inside. They are built layer by layer from the weights, so that nothing of PyTorch is traced.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from comdefend_cli.errors import ComdefendError, reason
from comdefend_cli.network.model import ComDefend, Conv3x3, ConvELU
from comdefend_cli.network.weight_file import Quantized
from comdefend_cli.runtime.extras import require

INPUT, OUTPUT = "picture", "purified"
#: Of ONNX's operators; all that are used have been there since.
ONNX_OPSET = 17


def _arrays(network: ConvELU) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weight (out, in, 3, 3) and bias (out,) of each layer, float32."""
    for layer in network:
        if isinstance(layer, Conv3x3):
            assert layer.bias is not None
            yield tuple(value.detach().float().cpu().contiguous().numpy() for value in (layer.weight, layer.bias))  # type: ignore[misc]


def openvino_model(model: ComDefend) -> Any:
    """An `openvino.Model`.

    Raises:
        UsageError: OpenVINO is not installed.
    """
    ov, op = require("openvino", extra="openvino"), require("openvino.opset13", extra="openvino")

    def layers(x: Any, network: ConvELU) -> Any:
        for index, (weight, bias) in enumerate(_arrays(network)):
            x = op.elu(x, 1.0) if index else x
            x = op.convolution(x, op.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1])
            x = op.add(x, op.constant(bias.reshape(1, -1, 1, 1)))
        return x

    x = op.parameter([-1, model.architecture.channels, -1, -1], np.float32, name=INPUT)
    logits = layers(op.subtract(x, op.constant(np.float32(0.5))), model.com)
    code = op.convert(op.greater(logits, op.constant(np.float32(0))), "f32")
    result = op.sigmoid(layers(code, model.rec))
    result.output(0).set_names({OUTPUT})
    x.output(0).set_names({INPUT})
    return ov.Model([op.result(result)], [x], "comdefend")


def serialized(model: Any) -> Quantized:
    """An `openvino.Model` as the content of its two files.

    Raises:
        ComdefendError: the folder for temporary files takes none.
    """
    ov = require("openvino", extra="openvino")
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.xml"
            ov.save_model(model, path, compress_to_fp16=False)
            return Quantized(path.read_bytes(), path.with_suffix(".bin").read_bytes())
    except (OSError, RuntimeError) as error:
        raise ComdefendError(f"cannot write temporary files: {reason(error)}; free some space, or set TMPDIR to another folder") from error


def onnx_model(model: ComDefend) -> bytes:
    """An ONNX file's content.

    Raises:
        UsageError: ONNX is not installed.
    """
    onnx = require("onnx", extra="onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    nodes, constants = [], []

    def constant(value: Any, name: str) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def layers(x: str, network: ConvELU, prefix: str) -> str:
        for index, (weight, bias) in enumerate(_arrays(network)):
            name = f"{prefix}.{2 * index}"
            x = node("Elu", [x], f"{name}.elu", alpha=1.0) if index else x
            x = node("Conv", [x, constant(weight, f"{name}.weight"), constant(bias, f"{name}.bias")], name, pads=[1, 1, 1, 1])
        return x

    logits = layers(node("Sub", [INPUT, constant(0.5, "half")], "centred"), model.com, "com")
    code = node("Cast", [node("Greater", [logits, constant(0, "zero")], "rounded")], "code", to=onnx.TensorProto.FLOAT)
    node("Sigmoid", [layers(code, model.rec, "rec")], OUTPUT)
    shape = ["N", model.architecture.channels, "H", "W"]
    ends = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)] for name in (INPUT, OUTPUT)]
    graph = helper.make_graph(nodes, "comdefend", *ends, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", ONNX_OPSET)], producer_name="comdefend-cli")
    made.ir_version = 8  # The one of this operator set: what is newer, older runtimes refuse.
    onnx.checker.check_model(made)
    return cast(bytes, made.SerializeToString())


class PlainComDefend(nn.Module):
    """The networks of PyTorch's own layers alone, for `torch.export`, and to compare with."""

    def __init__(self, model: ComDefend) -> None:
        super().__init__()
        self.com, self.rec = _plain(model.com), _plain(model.rec)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] to the same."""
        code = (self.com(x - 0.5) > 0).to(x.dtype)
        return torch.sigmoid(self.rec(code))


def _plain(network: ConvELU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for weight, bias in _arrays(network):
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        layers += [layer, nn.ELU()]
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


def torch_program(model: ComDefend) -> bytes:
    """A file of `torch.export.save`: runs with PyTorch alone, without this package."""
    from torch.export import Dim, export, save

    example = torch.zeros(2, model.architecture.channels, 40, 48)
    sizes = {0: Dim("N"), 2: Dim("H", min=1), 3: Dim("W", min=1)}
    program = export(PlainComDefend(model).eval(), (example,), dynamic_shapes={"x": sizes})
    stream = io.BytesIO()
    save(program, stream)
    return stream.getvalue()
