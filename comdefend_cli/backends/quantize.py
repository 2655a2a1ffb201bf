"""The networks in 8-bit integers: post-training quantization by NNCF (extra [int8]), with ranges seen on clean images."""

from __future__ import annotations

import io
import logging
import os
from contextlib import redirect_stdout

import torch
from torch import Tensor

from comdefend_cli.backends.openvino import build_graph, serialize
from comdefend_cli.errors import UsageError
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.weight_file import Quantized
from comdefend_cli.runtime.extras import require


def quantize(model: ComDefend, images: Tensor) -> Quantized:
    """Quantize weights to 8 bits a channel and activations to 8 bits a layer; sums stay in 32.

    Args:
        model: the networks.
        images: clean ones, uint8 (N, channels, H, W): the ranges of the activations are those that they cause, under the noise
            that the networks are made for.

    Raises:
        UsageError: NNCF or OpenVINO is not installed, or images of other channels than the networks'.
    """
    if images.shape[1] != model.architecture.channels:
        raise UsageError(f"the networks take {model.architecture.channels} channels, the images have {images.shape[1]}: use others")
    graph = build_graph(model)
    os.environ.setdefault("NNCF_CI", "1")  # Else NNCF reports its use over the network.
    nncf = require("nncf", extra="int8")
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(image.shape, generator=generator) * model.input_noise for image in images)
    data = nncf.Dataset([((image + added) / 255).clamp(0, 1)[None].numpy() for image, added in zip(images, noise, strict=True)])
    # Asymmetric for activations: an ELU's are mostly above -1 and well above 1.
    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # Where NNCF shows its progress.
        made = nncf.quantize(graph, data, subset_size=len(images), preset=nncf.QuantizationPreset.MIXED)
    return serialize(made)
