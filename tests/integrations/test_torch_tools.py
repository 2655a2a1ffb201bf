"""A purifier among PyTorch's own tools: copies, casts, empty batches, recorders, compilers, other defaults; and NumPy's layouts."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_model
from torch import Tensor, nn

from comdefend_cli import Purifier, Settings
from comdefend_cli.errors import UsageError
from comdefend_cli.network.weight_file import parse_weights


@pytest.fixture(scope="module")
def purifier() -> Purifier:
    """Networks that see squares of pixels, for colour alone."""
    return Purifier(small_model(family="residual-2"))


def images(height: int = 18, width: int = 22) -> Tensor:
    """Two random images (2, 3, H, W) in [0, 1]."""
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_empty_batch_gives_an_empty_batch(purifier: Purifier, dtype: torch.dtype, channels: int) -> None:
    """As PyTorch's modules do: same shape and dtype, with a gradient where one is wanted, and an empty code; arrays too."""
    x = torch.zeros(0, channels, 9, 7, dtype=dtype)
    assert (purifier(x).shape, purifier(x).dtype) == (x.shape, dtype)
    assert purifier.code(x).shape == (0, 12, 9, 7)
    assert purifier(np.zeros((0, 9, 7, channels), np.uint8)).shape == (0, 9, 7, channels)
    if dtype != torch.uint8:
        purifier(x.requires_grad_()).sum().backward()
        assert x.grad is not None and x.grad.shape == x.shape


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda purifier: pickle.loads(pickle.dumps(purifier))], ids=["deepcopy", "pickle"])
def test_copies_give_the_same_and_own_their_weights(purifier: Purifier, twin: Callable[[Purifier], Purifier]) -> None:
    """What is done to a copy leaves the original alone."""
    x = images()
    expected, other = purifier(x), twin(purifier)
    assert torch.equal(other(x), expected)
    other.double()
    assert torch.equal(purifier(x), expected)


def test_casts_and_modes_change_no_dtype(purifier: Purifier) -> None:
    """Under autocast, in half precision, in float64 and in inference mode an image comes back in its own dtype, near float32's."""
    x = images()
    expected = purifier(x)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert purifier(x).dtype == torch.float32
        for other in (copy.deepcopy(purifier).to(dtype), purifier):
            result = other(x.to(dtype))
            assert result.dtype == dtype
            assert (result.float() - expected).abs().mean() < 0.05
    assert torch.allclose(copy.deepcopy(purifier).double()(x.double()).float(), expected, atol=1e-4)
    with torch.inference_mode():
        assert torch.equal(purifier(x), expected)


def test_the_layout_of_an_image_does_not_matter(purifier: Purifier) -> None:
    """Channels last, every second pixel, transposed and broadcast tensors; arrays turned round, in Fortran order and read-only."""
    x = images()
    expected = purifier(x)
    wide = torch.zeros(2, 3, 36, 44)
    wide[:, :, ::2, ::2] = x
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (x.contiguous(memory_format=torch.channels_last), wide[:, :, ::2, ::2], transposed):
        assert torch.equal(purifier(other), expected)
    assert torch.equal(purifier(x[:1].expand(3, -1, -1, -1))[2], expected[0])
    array = np.random.default_rng(0).integers(0, 256, (18, 22, 3), np.uint8)
    turned = array[::-1, ::-1, ::-1]
    assert np.array_equal(purifier(turned), purifier(np.ascontiguousarray(turned)))
    fixed = np.asfortranarray(array)
    fixed.flags.writeable = False
    assert np.array_equal(purifier(fixed), purifier(array))


@pytest.mark.parametrize(
    "bad",
    [images().to_sparse(), images().to(torch.float8_e4m3fn), images().to(torch.complex64), torch.nested.nested_tensor([images()[0]])],
    ids=["sparse", "float8", "complex", "nested"],
)
def test_tensors_of_other_kinds_are_refused_in_one_line(purifier: Purifier, bad: Tensor) -> None:
    """Before PyTorch says in many that it has no such operation."""
    with pytest.raises(TypeError, match=r"^expected a [^\n]*$"):
        purifier(bad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_finite_are_refused(purifier: Purifier, bad: float) -> None:
    """Also one of them alone, in a tensor of any floating-point type, with a gradient or without."""
    x = images()
    x[1, 2, 3, 4] = bad
    for image in (x, x.half(), x.double().requires_grad_()):
        with pytest.raises(ValueError, match=r"expected[^\n]*\[0, 1\]"):
            purifier(image)


def test_threads_may_share_a_purifier(purifier: Purifier) -> None:
    """Images of other sizes at the same time, with noise, come out as alone."""
    noisy = Purifier(purifier.color, None, Settings(input_noise=20.0, noise_std=0.5))
    batches = [images(18 + 3 * number, 40 - number) for number in range(8)]
    expected = [noisy(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, alone) for found, alone in zip(pool.map(noisy, batches), expected, strict=True))


def test_the_meta_device_has_shapes_alone(purifier: Purifier) -> None:
    """Shapes go through, pixels do not, and networks that are given values again compute."""
    x, shape = images(), torch.empty(2, 3, 18, 22, device="meta")
    bare = copy.deepcopy(purifier).to("meta")
    for module in (bare, purifier):
        assert (module(shape).shape, module(shape).device.type) == (shape.shape, "meta")
    with pytest.raises(UsageError, match="to_empty"):
        bare(x)
    filled = bare.to_empty(device="cpu")
    filled.load_state_dict(purifier.state_dict())
    assert torch.equal(filled(x), purifier(x))


def test_fx_records_a_purifier_as_one_node(purifier: Purifier) -> None:
    """A graph of what holds a purifier gives what that gives; a purifier alone is refused."""
    held = nn.Sequential(nn.Identity(), purifier, nn.Flatten())
    assert torch.equal(torch.fx.symbolic_trace(held)(images()), held(images()))
    with pytest.raises(UsageError, match="comdefend export"):
        torch.fx.symbolic_trace(purifier)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "record",
    [
        lambda purifier: torch.jit.trace(purifier, images()),
        torch.jit.script,
        lambda purifier: torch.onnx.export(purifier, (images(),), io.BytesIO(), dynamo=False),
    ],
    ids=["trace", "script", "onnx"],
)
def test_jit_is_refused(purifier: Purifier, record: Callable[[Purifier], object]) -> None:
    """It would keep the size of one image, and of a trace the result was another: one line says what to use."""
    with pytest.raises(UsageError, match=r"^a purifier cannot be [^\n]*comdefend export[^\n]*$"):
        record(purifier)


def test_torch_export_and_compile_take_a_purifier(purifier: Purifier) -> None:
    """The same values; compiled, the same gradient; also of sides that are no multiples of the squares'."""
    x = images(17, 21)
    assert torch.allclose(torch.export.export(purifier, (x,)).module()(x), purifier(x), atol=1e-5)
    compiled = torch.compile(purifier, backend="aot_eager")
    given, same = x.clone().requires_grad_(), x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(given).square().sum(), given)
    (expected,) = torch.autograd.grad(purifier(same).square().sum(), same)
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_functional_gradients(purifier: Purifier) -> None:
    """`torch.func.grad` gives what `backward` gives."""
    x = images().requires_grad_()
    (expected,) = torch.autograd.grad(purifier(x).square().sum(), x)
    assert torch.allclose(torch.func.grad(lambda image: purifier(image).square().sum())(x.detach()), expected, atol=1e-5)


@pytest.fixture
def other_defaults() -> Iterator[None]:
    """PyTorch's defaults as a program may have set them."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def test_weights_are_the_files_whatever_the_defaults(small_weights: Path, other_defaults: None) -> None:
    """In float32 on the CPU; and no random number is drawn."""
    state = torch.random.get_rng_state()
    loaded = parse_weights(small_weights.read_bytes(), small_weights, "small", "")
    assert {(value.dtype, value.device.type) for value in loaded.model.state_dict().values()} == {(torch.float32, "cpu")}
    assert torch.equal(torch.random.get_rng_state(), state)


def test_results_do_not_hang_on_the_default_dtype(purifier: Purifier) -> None:
    """Noise and luma are float32's, whatever a program's default."""
    noisy, x = Purifier(purifier.color, None, Settings(input_noise=20.0, noise_std=0.5)), images()
    expected = noisy(x), noisy(x[:, :1])
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(noisy(x), expected[0]) and torch.equal(noisy(x[:, :1]), expected[1])
    finally:
        torch.set_default_dtype(torch.float32)


def test_distributed_training_behind_a_purifier(purifier: Purifier, tmp_path: Path) -> None:
    """`DistributedDataParallel` of purifier and classifier trains the classifier, and leaves the purifier's weights alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        defended = nn.Sequential(purifier, nn.Flatten(), nn.Linear(3 * 18 * 22, 2))
        nn.parallel.DistributedDataParallel(defended)(images()).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert defended[2].weight.grad is not None
    assert all(parameter.grad is None for parameter in purifier.parameters())
