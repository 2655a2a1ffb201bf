#!/usr/bin/env python3
"""Speed of the networks on one NVIDIA GPU, ours and others', measured in turns in one run.

    python benchmarks/gpu.py [--side 2048] [--megapixels 12] [--rounds 5] [--out FILE]

Everything but "host to host" begins and ends on the GPU, with a square of a photograph of --side pixels a side; a megapixel is 10^6
pixels. "Host to host" is an image of --megapixels in memory, as `purify` has it once it is decoded. The share of the limit is of the
operations that the networks need, over the rate of a large bfloat16 matrix product in the same rounds. Medians; each method is called
once before.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from json_out import emit
from speed import image
from speed_rivals import PATCH, Method, PlainComDefend, flops_a_pixel
from torch import Tensor

from comdefend_cli import Purifier
from comdefend_cli.network.metrics import psnr
from comdefend_cli.network.model import ComDefend
from comdefend_cli.network.registry import DEFAULT_COLOR, load_weights

#: Side of the matrices whose product is the limit.
MATRIX = 8192
DEVICE = torch.device("cuda", 0)


def products(flops: int) -> list[Method]:
    """Large matrix products."""
    made = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a, b = (torch.randn(MATRIX, MATRIX, device=DEVICE).to(dtype) for _ in range(2))
        name = str(dtype).removeprefix("torch.")
        made.append(Method(f"limit: {name} matrix product", lambda a=a, b=b: a @ b, 2 * MATRIX**3 // flops))
    return made


def plain(model: ComDefend, x: Tensor) -> list[Method]:
    """PyTorch's own layers on the whole image, and the authors' way."""
    patches = [x[:, :, :PATCH, PATCH * i : PATCH * (i + 1)].float().contiguous() for i in range(32)]
    one = PlainComDefend(model).to(DEVICE)
    made = [
        Method(
            "authors' way: float32 patches of 32x32, one by one",
            lambda: [one(patch) for patch in patches],
            len(patches) * PATCH**2,
        )
    ]
    for name, dtype, layout in (
        ("float32", torch.float32, torch.contiguous_format),
        ("bfloat16", torch.bfloat16, torch.contiguous_format),
        ("bfloat16, channels last", torch.bfloat16, torch.channels_last),
    ):
        network = PlainComDefend(model).to(DEVICE, dtype).to(memory_format=layout)  # type: ignore[call-overload]
        cast = x.to(dtype).contiguous(memory_format=layout)
        made.append(Method(f"plain PyTorch, {name}", lambda network=network, cast=cast: network(cast), x[0, 0].numel()))
        if layout == torch.channels_last:
            compiled = torch.compile(network)
            made.append(Method(f"torch.compile, {name}", lambda compiled=compiled, cast=cast: compiled(cast), x[0, 0].numel()))
    return made


def ours(x: Tensor, photograph: Tensor) -> list[Method]:
    """`Purifier` with each backend, on the GPU; a batch of thumbnails; and from host to host."""
    made = []
    thumbnails = x.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 32, 32)[:4096].contiguous()
    levels = (photograph * 255).round().byte().contiguous(memory_format=torch.channels_last).cpu()  # As a decoder leaves them.
    kinds = [("torch", "float32"), ("torch", "bfloat16"), ("triton", "bfloat16"), ("triton", "float16")]
    kinds += [("triton", "float8")] * (torch.cuda.get_device_capability(DEVICE) >= (8, 9))
    for backend, precision in kinds:
        purifier = Purifier.from_pretrained(DEFAULT_COLOR, device="cuda", backend=backend, precision=precision)
        name = f"ours: {precision} with {backend}"
        made.append(Method(name, lambda purifier=purifier: purifier(x), x[0, 0].numel()))
        if backend == "triton" and precision != "float16":
            made.append(Method(f"{name}, thumbnails", lambda purifier=purifier: purifier(thumbnails), thumbnails[:, 0].numel()))
            made.append(Method(f"{name}, host to host", lambda purifier=purifier: purifier(levels), levels[0, 0].numel()))
    return made


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and the most bytes that PyTorch's tensors took in that time."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - began, torch.cuda.max_memory_allocated()


@torch.no_grad()
def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """All methods in turns."""
    model = load_weights(DEFAULT_COLOR).model
    flops = flops_a_pixel(model)
    width = round((arguments.megapixels * 1e6 * 4 / 3) ** 0.5)
    whole = torch.from_numpy(image(arguments.image, max(width, arguments.side))).permute(2, 0, 1)[None].to(DEVICE).float() / 255
    x = whole[:, :, : arguments.side, : arguments.side].contiguous()
    methods = [*products(flops), *plain(model, x), *ours(x, whole[:, :, : round(width * 3 / 4), :width])]
    times: dict[str, list[float]] = {method.name: [] for method in methods}
    peaks: dict[str, float] = {}
    first = {method.name: timed(method.call)[0] for method in methods}
    for _ in range(arguments.rounds):
        for method in methods:
            seconds, peaks[method.name] = timed(method.call)
            times[method.name].append(seconds)
    rates = {method.name: method.pixels / 1e6 / statistics.median(times[method.name]) for method in methods}
    limit, authors = rates["limit: bfloat16 matrix product"], next(rate for name, rate in rates.items() if name.startswith("authors"))
    exact = (Purifier.from_pretrained(DEFAULT_COLOR, device="cuda", precision="float32")(x) * 255).round().byte()
    rows = [
        {
            "name": method.name,
            "megapixels_per_second": float(f"{rates[method.name]:.4g}"),
            "slowest": float(f"{method.pixels / 1e6 / max(times[method.name]):.4g}"),
            "tflops": float(f"{rates[method.name] * flops / 1e6:.4g}"),
            "share_of_limit": round(rates[method.name] / limit, 3),
            "ratio_to_authors_way": float(f"{rates[method.name] / authors:.4g}"),
            "gpu_peak_mb": round(peaks[method.name] / 1e6),
            "first_call_seconds": round(first[method.name], 2),
            "psnr_db_to_float32": _fidelity(method, exact),
        }
        for method in methods
    ]
    return {
        "rows": rows,
        "rounds": arguments.rounds,
        "side": arguments.side,
        "host_to_host_megapixels": arguments.megapixels,
        "flops_a_pixel": flops,
        "gpu": torch.cuda.get_device_name(DEVICE),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "triton": version("triton"),
    }


def _fidelity(method: Method, exact: Tensor) -> float | None:
    result = method.call()
    if not isinstance(result, Tensor) or result.shape != exact.shape:
        return None
    value = float(psnr((result.float() * 255).round().clamp(0, 255).byte(), exact))
    return round(value, 2) if value < float("inf") else None


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "image", type=Path, nargs="?", help="default: a photograph that scikit-image ships, mirrored until it is large enough"
    )
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--megapixels", type=float, default=12.0, help="of the image from host to host")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the result into a file too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs an NVIDIA GPU")
    emit(measured(arguments), arguments.out)


if __name__ == "__main__":
    main()
