"""Calls that want no pixels: of PyTorch's recorders, of the meta device, and of empty batches."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from comdefend_cli.errors import UsageError

_EXPORT = "use comdefend export, torch.export.export or torch.onnx.export(..., dynamo=True)"


def refuse_script(module: nn.Module) -> None:
    """Raise :class:`UsageError`, in place of `torch.jit.script`, which does not understand a purifier's code."""
    raise UsageError(f"a purifier cannot be compiled by torch.jit.script: {_EXPORT}")


def record_call(module: nn.Module, image: torch.fx.Proxy) -> torch.fx.Proxy:
    """The call as one node of the graph that `torch.fx` records, since what a purifier computes hangs on the image's size.

    Raises:
        UsageError: the module is what is traced, not a part of it.
    """
    tracer = cast(torch.fx.Tracer, image.tracer)
    if tracer.root is module:
        raise UsageError(f"torch.fx cannot look into a purifier: trace the module that holds it, or {_EXPORT}")
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (image,), {})


def needs_no_pixels(x: Tensor, device: torch.device) -> bool:
    """Whether a batch has nothing to compute: no images, or a shape alone, which is all that the meta device has.

    Args:
        x: the batch.
        device: of the networks.

    Raises:
        UsageError: there are pixels, and networks without values; or `torch.jit` records, which would keep one image's size, tiles and
            noise for all that follow.
    """
    if not torch.compiler.is_compiling() and torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        raise UsageError(f"a purifier cannot be recorded by torch.jit.trace or torch.onnx.export(..., dynamo=False): {_EXPORT}")
    if device.type == "meta" and x.device.type != "meta":
        raise UsageError("the networks are on the meta device and have no values: use to_empty(device=...), then load_state_dict")
    return not len(x) or x.device.type == "meta"
