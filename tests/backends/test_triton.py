"""The kernel for NVIDIA GPUs: what it computes, by Triton's interpreter on the CPU everywhere and compiled where there is a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from comdefend_cli import Purifier, Settings
from comdefend_cli.backends.select import find_triton_problem, resolve_backend
from comdefend_cli.errors import UsageError
from comdefend_cli.network.layers import Conv3x3
from comdefend_cli.network.metrics import mean_psnr
from comdefend_cli.network.model import ComDefend

triton = pytest.importorskip("comdefend_cli.backends.triton", exc_type=ImportError)
CUDA = torch.device("cuda", 0)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
#: Compares with float64 one layer of each kind, then an image through both networks, whole and in tiles. In float16, which the
#: interpreter computes as a GPU does.
INTERPRETED = """
import copy
import skimage.data
import torch
from torch.nn.functional import conv2d, elu, leaky_relu
from comdefend_cli import Purifier, Settings
from comdefend_cli.backends.triton import Layer, TritonNetworks
from comdefend_cli.network.architecture import ResidualArchitecture
from comdefend_cli.network.layers import SLOPE
from comdefend_cli.network.registry import load_weights
from comdefend_cli.network.layers import Conv3x3
from comdefend_cli.network.model import ComDefend

generator = torch.Generator().manual_seed(0)
for inputs, outputs, size in ((3, 20, (2, 5, 9)), (16, 16, (1, 1, 1)), (20, 3, (1, 33, 17)), (32, 257, (1, 4, 6))):
    convolution = Conv3x3(inputs, outputs).half().requires_grad_(False)
    layer = Layer(convolution)
    x = torch.randn((size[0], inputs, *size[1:]), generator=generator).half()
    wide = torch.zeros((*size, layer.inputs), dtype=torch.half)
    wide[..., :inputs] = x.permute(0, 2, 3, 1)
    exact = conv2d(x.double(), convolution.weight.double(), convolution.bias.double(), padding=1)
    skip = torch.zeros((*size, layer.outputs), dtype=torch.half)
    skip[..., :outputs] = torch.randn((*size, outputs), generator=generator).half()
    added = exact + skip[..., :outputs].permute(0, 3, 1, 2)
    cases = ("", None, exact), ("elu", None, elu(exact)), ("leaky", None, leaky_relu(exact, SLOPE)), ("", skip, added)
    for active, other, wanted in cases:
        layer.activation = active
        found = layer(wide, torch.half, skip=other)
        error = (found[..., :outputs].permute(0, 3, 1, 2) - wanted).norm() / wanted.norm()
        assert error < 1e-3, (inputs, outputs, active, error)
        assert not found[..., outputs:].any(), "channels that only fill up are zero"

torch.manual_seed(0)
residual = ComDefend(ResidualArchitecture(width=20, blocks=1)).requires_grad_(False)
x = torch.from_numpy(skimage.data.astronaut()[100:124, 200:221].copy()).permute(2, 0, 1)[None] / 255
for model in (load_weights("comdefend-12bit-denoise").model, residual):
    exact = Purifier(copy.deepcopy(model))(x)
    model.half()
    for tile in (64, 12):
        purifier = Purifier(model, None, Settings(tile=tile))
        purifier.engines[3] = TritonNetworks(model)
        # The interpreter adds by a library whose order depends on the shape: so tiles need not be the whole image bit by bit.
        error = (purifier(x) - exact).square().mean().sqrt()
        assert error < 10 ** (-45 / 20), error
print("as it should be")
"""


def test_the_kernel_interpreted() -> None:
    """Layers of odd widths and sizes agree with float64; images with PyTorch's, and tiles with the whole."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "as it should be\n"


@pytest.mark.parametrize(
    ("device", "precision", "noisy", "reason"),
    [
        ("cpu", "auto", False, "NVIDIA"),
        ("cpu", "float8", False, "NVIDIA"),
        ("cuda", "float32", False, "bfloat16, float16 and float8"),
        ("cuda", "int8", False, "bfloat16, float16 and float8"),
        ("cuda", "bfloat16", True, "no noise"),
    ],
)
def test_what_the_backend_refuses(device: str, precision: str, noisy: bool, reason: str) -> None:
    """Another device, another precision, noise: each is one sentence that says what to do."""
    with pytest.raises(UsageError, match=rf"{reason}.*: use "):
        resolve_backend("triton", torch.device(device), precision, noisy=noisy, quantized=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_without_cuda_it_is_refused_and_auto_does_without() -> None:
    """By name it is an error; "auto" takes PyTorch, without a warning."""
    with pytest.raises(UsageError, match="not installed"):
        resolve_backend("triton", CUDA, "bfloat16", noisy=False, quantized=False)
    assert resolve_backend("auto", CUDA, "bfloat16", noisy=False, quantized=False) == "torch"
    for name, device in (("auto", CUDA), ("auto", torch.device("cpu")), ("torch", CUDA)):
        with pytest.raises(UsageError, match="float8 needs the triton backend"):
            resolve_backend(name, device, "float8", noisy=False, quantized=False)


def test_a_gpu_on_which_it_fails_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C compiler, say: a warning of one line, and PyTorch computes."""

    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    find_triton_problem.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch, "zeros", broken)
    with pytest.warns(RuntimeWarning, match="Failed to find C compiler"):
        assert resolve_backend("auto", CUDA, "bfloat16", noisy=False, quantized=False) == "torch"
    with pytest.raises(UsageError, match=r"C compiler.*use backend torch"):
        resolve_backend("triton", CUDA, "bfloat16", noisy=False, quantized=False)
    find_triton_problem.cache_clear()


def test_float8_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by name, before anything is compiled; "auto" does not take the backend for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(UsageError, match=r"do not compute in float8: use precision auto"):
        resolve_backend("triton", CUDA, "float8", noisy=False, quantized=False)
    with pytest.raises(UsageError, match=r"float8 needs the triton backend"):
        resolve_backend("auto", CUDA, "float8", noisy=False, quantized=False)


@pytest.mark.parametrize("move", [lambda purifier: purifier.to("cpu"), lambda purifier: purifier.float()])
def test_a_purifier_that_is_moved_goes_on_with_pytorch(move: Callable[[Purifier], Purifier]) -> None:
    """The kernel's own copy of the weights stays where it was made."""
    purifier = Purifier(ComDefend().half())
    assert purifier.color is not None
    purifier.engines[3] = triton.TritonNetworks(purifier.color)
    assert purifier.how == "float16 with triton"
    assert move(purifier).backend == "torch"


def test_blocks_fit_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those measured on an H100 are for GPUs with as much shared memory; every layer has some that fit in 48 kB."""
    model = ComDefend().half()
    layers = [triton.Layer(layer) for network in (model.com, model.rec) for layer in network if isinstance(layer, Conv3x3)]
    assert all(layer.blocks.count_bytes(2) <= 227 * 1024 for layer in layers)
    wide = triton.Layer(Conv3x3(128, 256).half())
    assert wide.blocks == triton.BLOCKS[2, 128, 256]
    monkeypatch.setattr(triton, "find_shared_memory", lambda device: 99 * 1024)
    assert wide.blocks != triton.BLOCKS[2, 128, 256]
    assert wide.outputs % wide.blocks.columns == wide.inputs % wide.blocks.depth == 0
    assert wide.blocks.count_bytes(2) <= 48 * 1024


@needs_cuda
@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 45), ("float16", 55), ("float8", 40)])
def test_compiled_on_cuda(astronaut: np.ndarray, precision: str, least: float) -> None:
    """Tiles equal the whole image in every value, on the GPU and from the host; near to float32."""
    if precision == "float8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU that multiplies e4m3")
    x = torch.from_numpy(astronaut[:300, :260].copy()).permute(2, 0, 1)[None]
    sizes = (50, 200, 4096)
    made = [Purifier.from_pretrained(device="cuda", precision=precision, backend="auto", settings=Settings(tile=size)) for size in sizes]
    assert {purifier.how for purifier in made} == {f"{precision} with triton"}
    first, *others = (purifier(pixels) for purifier, pixels in zip(made, (x, x.cuda(), x), strict=True))
    assert all(torch.equal(first, other.cpu()) for other in others)
    assert mean_psnr(first, Purifier.from_pretrained(device="cpu", precision="float32")(x)) > least


@needs_cuda
def test_one_layer_in_8_bits_on_cuda() -> None:
    """Its sums are those of the numbers of 8 bits that it was given, and its large values are cut off instead of becoming NaN."""
    generator = torch.Generator(CUDA).manual_seed(0)
    convolution = Conv3x3(128, 64).to(CUDA, torch.bfloat16).requires_grad_(False)
    layer = triton.Layer(convolution, float8=True)
    x = torch.randn((2, 19, 23, 128), device=CUDA, generator=generator).to(triton.FLOAT8)
    exact = conv2d(
        triton.SHRINK * x.double().permute(0, 3, 1, 2), convolution.weight.double(), convolution.bias.double(), padding=1
    ).permute(0, 2, 3, 1)
    assert (layer(x, torch.bfloat16) - exact).norm() / exact.norm() < 0.04
    convolution.bias[:] = 1e5
    cut = triton.Layer(convolution, float8=True)(x, triton.FLOAT8)
    assert (cut.float() == triton.MOST).all()


@needs_cuda
def test_many_pixels_on_cuda() -> None:
    """A window whose activations are more than 32 bits count is computed to its last row."""
    x = torch.rand((1, 3, 3000, 3000), device=CUDA, generator=torch.Generator(CUDA).manual_seed(0))
    whole, tiled = (
        Purifier.from_pretrained(device="cuda", precision="bfloat16", backend="triton", settings=Settings(tile=tile))(x)
        for tile in (4096, 1024)
    )
    assert torch.equal(whole, tiled)
