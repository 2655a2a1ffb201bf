"""`comdefend doctor`: what is installed, what it computes with, how fast, and whether it works."""

from __future__ import annotations

import os
import platform
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comdefend_cli.cli import console, options, progress
from comdefend_cli.errors import ComdefendError, WeightsError, explain

if TYPE_CHECKING:
    import numpy as np

    from comdefend_cli.inference.purifier import Purifier

#: Instruction sets that decide how fast a CPU is, in Linux' names.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")
#: Variables with which a person may have told libraries to use less than the CPU has.
VARIABLES = ("OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
#: Side of the picture in pixels, and the PSNR in dB that its purified version must reach: wrong weights or kernels stay far below.
SIDE, LEAST_PSNR = 384, 24.0
#: Seconds that the speed is measured for.
SECONDS = 3.0
#: Megapixels of a photograph, to say what a speed means.
PHOTOGRAPH = 12.0


@console.command
def doctor(
    device: options.Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON, for scripts and bug reports.")] = False,
) -> None:
    """Check the installation: versions, CPU, backends, extras, weights, speed, and a self-test on a picture made on the spot.

    Exit code 1 means that weights are damaged or the self-test failed. An extra that is not installed is no fault.
    """
    from comdefend_cli.runtime.device import resolve_device
    from comdefend_cli.runtime.machine import limit_threads

    limit_threads()
    where = resolve_device(device)
    with progress.show_waiting("looking at the installation", quiet=as_json):
        record = {**_look_at_machine(), "backends": _list_backends(str(where)), "extras": _list_extras(), "weights": _verify_weights()}
    with progress.show_waiting("measuring the speed", quiet=as_json):
        record["test"] = _test(device)
    healthy = record["healthy"] = record["test"]["passed"] and all(entry["ok"] for entry in record["weights"])
    if as_json:
        console.print_json(record, indent=2)
    else:
        for line in _describe(record):
            console.print_line(line)
    if not healthy:
        raise typer.Exit(ComdefendError.exit_code)


def _look_at_machine() -> dict[str, Any]:
    import torch

    from comdefend_cli import __version__
    from comdefend_cli.runtime.device import cpu_has_bfloat16
    from comdefend_cli.runtime.extras import find_version
    from comdefend_cli.runtime.machine import count_cores, find_memory_limit, read_cpu

    name, flags = read_cpu()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    packages = ("torch", "numpy", "pillow", "safetensors", "typer", "rich", "openvino", "scipy")
    return {
        "comdefend": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: version for package in packages if (version := find_version(package))},
        "cpu": {
            "name": name,
            "cores": count_cores(),
            "threads": torch.get_num_threads(),
            "features": [feature for feature in FEATURES if feature in flags],
            "bfloat16": cpu_has_bfloat16(),
            "pytorch": torch.backends.cpu.get_cpu_capability(),
        },
        "memory_gib": round(limit / 2**30, 1) if (limit := find_memory_limit()) else None,
        "gpus": gpus,
        "environment": {variable: os.environ[variable] for variable in VARIABLES if variable in os.environ},
    }


def _list_backends(device: str) -> dict[str, str | None]:
    """Why each backend cannot be used; None where it can."""
    import torch

    from comdefend_cli.backends.openvino import find_openvino_problem
    from comdefend_cli.backends.select import find_triton_problem

    where = torch.device(device)
    on_gpu = where.type == "cuda"
    return {
        "torch": None,
        "openvino": "for the CPU alone" if where.type != "cpu" else find_openvino_problem(),
        "triton": find_triton_problem(where) if on_gpu else "needs an NVIDIA GPU",
    }


def _list_extras() -> dict[str, list[str]]:
    """What of each extra is not installed."""
    from comdefend_cli.runtime.extras import EXTRAS, is_installed

    return {extra: [name for name, module in parts.items() if not is_installed(module)] for extra, parts in EXTRAS.items()}


def _verify_weights() -> list[dict[str, Any]]:
    from comdefend_cli.network.registry import load_weights, read_registry

    entries = []
    for name, expected in read_registry().items():
        try:
            problem, sha256 = None, load_weights(name).sha256
        except WeightsError as error:
            problem, sha256 = explain(error), expected["sha256"]
        entries.append({"name": name, "sha256": sha256, "ok": problem is None, "problem": problem})
    return entries


def _test(device: str) -> dict[str, Any]:
    """Purify a picture as `comdefend purify` does unless told otherwise; the result has to be near the picture and the same each time."""
    import numpy as np
    import torch

    from comdefend_cli.inference.purifier import Purifier
    from comdefend_cli.network.metrics import mean_psnr
    from comdefend_cli.network.registry import DEFAULT_COLOR
    from comdefend_cli.runtime.device import describe_device

    try:
        purifier = Purifier.from_pretrained(DEFAULT_COLOR, device=device, backend="auto")
        picture = draw_picture()
        first, rate = purifier(picture), _measure_rate(purifier, picture)
        before, after = (torch.from_numpy(pixels).permute(2, 0, 1)[None] for pixels in (picture, first))
        found = mean_psnr(before, after)
        problem = None if found >= LEAST_PSNR else f"the purified picture has a PSNR of {found:.1f} dB, and should have {LEAST_PSNR:g}"
        if not np.array_equal(first, purifier(picture)):
            problem = problem or "the same picture was purified into two different ones"
    except ComdefendError as error:
        return {"passed": False, "problem": explain(error)}
    return {
        "passed": problem is None,
        "problem": problem,
        "psnr_db": round(found, 2),
        "weights": DEFAULT_COLOR,
        "device": describe_device(next(purifier.parameters()).device),
        "how": purifier.how,
        "megapixels_per_second": round(rate, 4),
    }


def draw_picture(side: int = SIDE) -> np.ndarray:
    """A picture with what images have: gradients, round edges, straight ones and fine lines; uint8 (side, side, 3)."""
    import numpy as np

    y, x = np.mgrid[:side, :side] / side
    red, green, blue = 60 + 150 * x, 80 + 120 * y, 200 - 130 * x * y
    disc = (x - 0.35) ** 2 + (y - 0.4) ** 2 < 0.05
    lines = ((x + y) * side / 8).astype(int) % 2 == 0
    square = (abs(x - 0.75) < 0.15) & (abs(y - 0.7) < 0.15)
    red = np.where(disc, 220, np.where(square, np.where(lines, 40, 230), red))
    green = np.where(disc, 180 - 100 * y, np.where(square, np.where(lines, 60, 220), green))
    return np.stack([red, green, np.where(disc, 50, blue)], axis=2).astype(np.uint8)


def _measure_rate(purifier: Purifier, picture: np.ndarray) -> float:
    """Megapixels a second of pictures that are purified one after another, by the fastest of them."""
    began, best = time.perf_counter(), float("inf")
    while best == float("inf") or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        purifier(picture)
        best = min(best, time.perf_counter() - start)
    height, width = picture.shape[:2]
    return float(height * width / 1e6 / best)


def _describe(record: dict[str, Any]) -> list[str]:
    """For people, a line a fact."""
    cpu, test = record["cpu"], record["test"]
    native = "bfloat16 in hardware" if cpu["bfloat16"] else "no bfloat16 in hardware: float32 is used"
    lines = [
        ("comdefend", f"{record['comdefend']}, Python {record['python']}, {record['platform']}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in record["packages"].items())),
        ("CPU", f"{cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads"),
        ("", f"{', '.join(cpu['features']) or 'instruction sets not known'}; {native}"),
        ("memory", f"{record['memory_gib']} GiB" if record["memory_gib"] else "not known"),
        ("GPUs", ", ".join(record["gpus"]) or "none that PyTorch can use"),
    ]
    if record["environment"]:
        lines.append(("variables", ", ".join(f"{name}={value}" for name, value in record["environment"].items())))
    lines += [(f"backend {name}", problem or "ok") for name, problem in record["backends"].items()]
    for extra, missing in record["extras"].items():
        lines.append((f"extra {extra}", f"without {', '.join(missing)}: pip install 'comdefend-cli[{extra}]'" if missing else "ok"))
    for entry in record["weights"]:
        lines.append((entry["name"], f"ok  {entry['sha256'][:16]}" if entry["ok"] else f"FAILED: {entry['problem']}"))
    if "megapixels_per_second" in test:
        rate = test["megapixels_per_second"]
        said = f"{rate:.3g} megapixels a second on {test['device']} in {test['how']}"
        lines.append(("speed", f"{said}; a photograph of {PHOTOGRAPH:g} megapixels takes {progress.say_duration(PHOTOGRAPH / rate)}"))
    lines.append(("self-test", f"ok, PSNR {test['psnr_db']:.1f} dB" if test["passed"] else f"FAILED: {test['problem']}"))
    width = max(len(name) for name, _ in lines)
    return [f"{name:{width}}  {text}" for name, text in lines]
