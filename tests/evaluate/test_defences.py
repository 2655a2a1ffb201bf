"""Defences at test time: specs, feature squeezing, JPEG, total variation, resizing and padding, ComDefend with noise and votes."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import photo, small_model
from PIL import Image
from torch import Tensor, nn

from comdefend_cli import Purifier, Settings
from comdefend_cli.errors import ComdefendError, UsageError
from comdefend_cli.evaluate.defences.base import Defence
from comdefend_cli.evaluate.defences.catalogue import NAMES, make_defence
from comdefend_cli.evaluate.defences.comdefend import ComDefendDefence
from comdefend_cli.inference.passes import Pass
from comdefend_cli.integrations import Defended
from comdefend_cli.network.registry import load_weights, read_registry
from comdefend_cli.network.weight_file import save_weights

#: One of each kind without a weight file of its own.
SPECS = ("none", "bits", "median", "jpeg", "tv", "resize-pad", "resize-pad:output=larger")


@pytest.fixture(scope="module")
def cifar() -> Tensor:
    """Foolbox's 20 sample images of CIFAR-10, float32 (20, 3, 32, 32) in [0, 1]."""
    spec = importlib.util.find_spec("foolbox")
    assert spec is not None and spec.origin is not None
    files = sorted((Path(spec.origin).parent / "data").glob("cifar10_*.png"))
    assert len(files) == 20
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def gray() -> Tensor:
    """Crops of a grey photograph, float32 (2, 1, 28, 37) in [0, 1]."""
    pixels = photo("camera.png")
    return torch.from_numpy(np.stack([pixels[100:128, 200:237], pixels[300:328, 40:77]])).unsqueeze(1).float() / 255


def cpu(spec: str) -> Defence:
    return make_defence(spec, device="cpu", precision="float32")


# Specs.


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("none", "none"),
        ("bits", "bits:depth=3"),
        ("bits:depth=08", "bits:depth=8"),
        ("median:size=2", "median:size=2"),
        ("jpeg", "jpeg:quality=75"),
        ("tv", "tv:weight=0.1"),
        ("tv:weight=1e-1", "tv:weight=0.1"),
        ("tv:weight=2", "tv:weight=2"),
        ("resize-pad:votes=1,output=same", "resize-pad"),
        ("resize-pad:votes=30,output=larger", "resize-pad:output=larger,votes=30"),
        ("comdefend-12bit", "comdefend-12bit"),
        ("comdefend-12bit:noise-std=0,votes=1,tiling=exact", "comdefend-12bit"),
        ("comdefend-12bit:votes=8,noise-std=20.0", "comdefend-12bit:noise-std=20,votes=8"),
        ("comdefend-12bit:tiling=paper", "comdefend-12bit:tiling=paper"),
        ("comdefend-4bit-gray:noise-std=0.5", "comdefend-4bit-gray:noise-std=0.5"),
        ("comdefend-12bit:input-noise=0", "comdefend-12bit:input-noise=0"),
        ("comdefend-12bit:samples=4,input-noise=24.0,votes=1", "comdefend-12bit:input-noise=24,samples=4"),
    ],
)
def test_a_name_is_the_spec_in_one_form(spec: str, canonical: str) -> None:
    """However options are written and ordered, the name is one, and makes the same again; settings are JSON."""
    defence = cpu(spec)
    assert defence.name == canonical
    again = cpu(canonical)
    assert again.name == canonical and again.settings == defence.settings
    assert json.loads(json.dumps(defence.settings)) == defence.settings
    assert not defence.training


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "unknown defence ''.*none, bits, median, jpeg, tv, resize-pad, pixeldefend, hgd, comdefend-12bit"),
        ("gauss", "unknown defence 'gauss'.*comdefend-4bit-gray"),
        ("gauss:std=3", "unknown defence 'gauss'"),
        ("bits:", "options are key=value"),
        ("bits:3", "options are key=value"),
        ("comdefend-12bit:20", "options are key=value"),
        ("bits:depht=3", "bits has no option 'depht': use depth"),
        ("none:depth=3", "none has no option 'depth': it has none"),
        ("comdefend-12bit:std=3", "no option 'std': use noise-std, input-noise, samples, votes, tiling"),
        ("bits:depth=9", "depth must be a whole number from 1 to 8, not '9'"),
        ("bits:depth=3.0", "depth must be a whole number"),
        ("bits:depth=\u0663", "depth must be a whole number"),
        ("bits:depth=", "depth must be a whole number"),
        ("bits:depth=3,depth=3", "depth is given twice"),
        ("bits:depth=3,", "depth must be a whole number"),
        ("jpeg:quality=0", "quality must be a whole number from 1 to 100"),
        ("jpeg:quality=-5", "quality must be"),
        ("median:size=99", "size must be"),
        ("tv:weight=0", "weight must be a number above 0"),
        ("tv:weight=nan", "weight must be"),
        ("tv:weight=inf", "weight must be"),
        ("tv:weight=much", "weight must be"),
        ("resize-pad:output=smaller", "output must be same or larger"),
        ("comdefend-12bit:noise-std=-1", "noise-std must be a number of at least 0"),
        ("comdefend-12bit:tiling=exakt", "tiling must be exact or paper"),
        ("comdefend-12bit:votes=0,noise-std=1", "votes must be"),
        ("comdefend-12bit:noise=20", "say input-noise, which is on the image, or noise-std"),
        ("comdefend-12bit:votes=8", "votes need noise"),
        ("comdefend-12bit:samples=8", "samples need noise"),
        ("comdefend-12bit:input-noise=-1", "input-noise must be a number of at least 0"),
        ("absent.safetensors", "absent.safetensors: no such weights"),
        ("pixeldefend", "pixeldefend needs a file: pixeldefend:weights=FILE"),
        ("hgd:weights=", "weights must be a file"),
        ("hgd:weights=absent", "absent: no such file; make one with comdefend train-baseline hgd"),
    ],
)
def test_a_wrong_spec_is_one_line_that_says_what_is_right(spec: str, says: str) -> None:
    """Unknown names, keys and values, and what is missing, are usage errors."""
    with pytest.raises(UsageError, match=says) as caught:
        cpu(spec)
    assert "\n" not in str(caught.value)


def test_every_name_can_be_made() -> None:
    """All of `NAMES` are known; those that are files' need one."""
    for name in NAMES:
        if name in ("pixeldefend", "hgd"):
            with pytest.raises(UsageError, match="needs a file"):
                make_defence(name)
        else:
            assert make_defence(name).name.startswith(name)


@pytest.mark.parametrize(("module", "spec"), [("art.defences.preprocessor.spatial_smoothing", "median"), ("skimage.restoration", "tv")])
def test_a_library_that_is_absent_is_named(module: str, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"pip install 'comdefend-cli\[evaluate\]'"):
        make_defence(spec)


# What all have in common.


@pytest.mark.parametrize("spec", SPECS)
def test_images_come_back_as_images(spec: str, cifar: Tensor, gray: Tensor) -> None:
    """Float32 in [0, 1], of the same shape unless it says otherwise, for colour, grey, one pixel, and any memory layout."""
    defence = cpu(spec)
    for x in (cifar[:3], gray, gray[:1, :, :1, :1], torch.zeros(1, 3, 5, 7), torch.ones(1, 3, 5, 7), torch.rand(1, 3, 31, 17)):
        before = x.clone()
        y = defence(x)
        assert y.dtype == torch.float32 and y.shape[:2] == x.shape[:2]
        assert (y.shape == x.shape) is defence.keeps_size
        assert 0 <= float(y.min()) <= float(y.max()) <= 1
        assert torch.equal(x, before)
        if not defence.stochastic:
            assert torch.equal(y, defence(x.contiguous(memory_format=torch.channels_last)))
            assert torch.equal(y[:1], defence(x[:1]))


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_no_batch_of_images_is_refused(spec: str) -> None:
    """Wrong dimensions, channels and dtypes raise before anything is computed."""
    for x in (torch.rand(3, 8, 8), torch.rand(1, 2, 8, 8), torch.rand(0, 3, 8, 8), torch.rand(1, 3, 0, 8)):
        with pytest.raises(ValueError, match="expected a tensor"):
            cpu(spec)(x)
    with pytest.raises(TypeError, match="floating-point"):
        cpu(spec)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def classifier() -> nn.Module:
    """A small network with random weights, for images of any size and three channels."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("spec", [*SPECS, "comdefend-12bit", "comdefend-12bit:noise-std=20", "comdefend-12bit:input-noise=20"])
def test_the_gradients_that_are_offered_are_there(spec: str, cifar: Tensor) -> None:
    """In front of a classifier, each gives finite input gradients that are not zero, and after a seed the same logits."""
    defence, model = cpu(spec), classifier()
    logits = []
    for gradient in defence.gradients:
        defended = Defended(defence, model, gradient=gradient)  # type: ignore[arg-type]
        defended.seed(3)
        x = cifar[:2].clone().requires_grad_()
        result = defended(x)
        (slope,) = torch.autograd.grad(result[:, 0].sum(), x)
        assert bool(torch.isfinite(slope).all()) and float(slope.abs().amax((1, 2, 3)).min()) > 0
        logits.append(result.detach())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairwise(logits))


# Each kind.


def test_bits_are_numpys(cifar: Tensor) -> None:
    """Values are rounded to the nearest of 2**depth levels."""
    for depth in range(1, 9):
        levels = 2**depth - 1
        want = np.rint(cifar.numpy() * np.float32(levels)) / np.float32(levels)
        got = cpu(f"bits:depth={depth}")(cifar)
        assert np.abs(got.numpy() - want).max() < 1e-6
        assert len(got.unique()) <= 2**depth
    assert torch.allclose(got, cifar, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_medians_are_those_of_sorted_windows(size: int, cifar: Tensor, gray: Tensor) -> None:
    """Each channel's windows, mirrored at the border with the edge repeated; the upper one of two medians."""
    for x in (cifar[:3], gray):
        before, after = size // 2, size - 1 - size // 2
        padded = np.pad(x.numpy(), ((0, 0), (0, 0), (before, after), (before, after)), mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3)).reshape(*x.shape, -1)
        assert np.array_equal(cpu(f"median:size={size}")(x).numpy(), np.sort(windows, axis=-1)[..., size * size // 2])


@pytest.mark.parametrize("quality", [10, 75, 100])
def test_jpeg_is_what_a_file_would_hold(quality: int, cifar: Tensor, gray: Tensor) -> None:
    """Saved by Pillow with chroma at half the resolution and read again, each image by itself."""
    for x in (cifar[:4], gray):
        got = cpu(f"jpeg:quality={quality}")(x)
        for given, result in zip(x, got, strict=True):
            pixels = (given * 255).round().byte().permute(1, 2, 0).numpy()
            stream = io.BytesIO()
            image = Image.fromarray(pixels.squeeze())
            image.save(stream, "JPEG", quality=quality, subsampling="4:2:0")
            want = np.asarray(Image.open(io.BytesIO(stream.getvalue()))).reshape(pixels.shape)
            assert np.array_equal((result * 255).round().byte().permute(1, 2, 0).numpy(), want)
            assert np.abs(result.permute(1, 2, 0).numpy() * 255 - want).max() < 1e-3
    assert not torch.equal(got, x)


def rof(u: np.ndarray, f: np.ndarray, weight: float) -> float:
    """What total variation minimization minimizes, summed over channels: u and f are (C, H, W)."""
    down = np.diff(u, axis=1, append=u[:, -1:])
    right = np.diff(u, axis=2, append=u[:, :, -1:])
    return float(weight * np.sqrt(down**2 + right**2).sum() + 0.5 * ((u - f) ** 2).sum())


@pytest.mark.parametrize("weight", [0.03, 0.1])
def test_total_variation_is_near_its_minimum(weight: float, cifar: Tensor) -> None:
    """The objective is below the image's, its channels' means', blurred images', and what small steps in any direction reach."""
    x = cifar[:4]
    got = cpu(f"tv:weight={weight}")(x).double().numpy()
    generator = np.random.default_rng(0)
    for image, result in zip(x.double().numpy(), got, strict=True):
        least = rof(result, image, weight)
        mean = np.broadcast_to(image.mean((1, 2), keepdims=True), image.shape)
        blurred = (image + np.roll(image, 1, 1) + np.roll(image, 1, 2)) / 3
        assert least < min(rof(other, image, weight) for other in (image, mean, blurred))
        for other in (image, mean, blurred):
            assert least < rof(result + 0.1 * (other - result), image, weight)
        assert least < rof(result + 0.01 * generator.standard_normal(image.shape), image, weight)


# Resizing and padding.


def test_images_are_put_on_grey_at_random_sizes_and_places() -> None:
    """White images of 32x32 become 32 to 35 pixels on 36, at every place there is, and what is around is middle grey."""
    defence = cpu("resize-pad:output=larger")
    y = defence(torch.ones(600, 1, 32, 32))
    assert y.shape == (600, 1, 36, 36) and not defence.keeps_size
    seen = set()
    for image in y[:, 0]:
        white = image > 0.75
        assert torch.allclose(image, torch.where(white, 1.0, 0.5), atol=1e-6)
        rows, columns = (white.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        assert len(rows) == len(columns) and int(white.sum()) == len(rows) * len(columns)
        seen.add((len(rows), rows[0], columns[0]))
    assert seen == {(size, top, left) for size in range(32, 36) for top in range(37 - size) for left in range(37 - size)}


def test_the_papers_sizes_are_the_papers() -> None:
    """299 becomes 331; other sides keep the proportion."""
    defence = cpu("resize-pad:output=larger")
    assert defence(torch.rand(1, 3, 299, 299)).shape[2:] == (331, 331)
    assert defence(torch.rand(1, 3, 224, 28)).shape[2:] == (248, 31)


def test_resizing_back_shrinks_what_the_larger_one_shows(cifar: Tensor) -> None:
    """With the same seed, `same` is the larger result resized bilinearly to the input's size."""
    larger, same = cpu("resize-pad:output=larger"), cpu("resize-pad")
    want = nn.functional.interpolate(larger(cifar), size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.equal(same(cifar), want)


def test_its_gradient_is_its_own() -> None:
    """Against finite differences, in float64."""
    defence = cpu("resize-pad:output=larger")

    def fixed(x: Tensor) -> Tensor:
        defence.seed(4)
        return cast(Tensor, defence(x))

    assert torch.autograd.gradcheck(fixed, torch.rand(2, 1, 10, 11, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("spec", ["resize-pad", "comdefend-12bit:noise-std=20", "comdefend-12bit:input-noise=20"])
def test_seeds_restart_the_random_stream(spec: str, cifar: Tensor) -> None:
    """Calls and images differ from each other; after a seed all comes again, also in a copy; PyTorch's stream is not used."""
    defence, x = cpu(spec), cifar[:1].repeat(3, 1, 1, 1)
    assert defence.stochastic
    state = torch.random.get_rng_state()
    defence.seed(7)
    first, second = defence(x), defence(x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    defence.seed(7)
    twin = copy.deepcopy(defence)
    assert torch.equal(defence(x), first) and torch.equal(defence(x), second) and torch.equal(twin(x), first)
    defence.seed(8)
    assert not torch.equal(defence(x), first)
    with pytest.raises(UsageError, match="0 or more"):
        defence.seed(-1)


# ComDefend.


def test_comdefend_is_the_purifier(cifar: Tensor, gray: Tensor) -> None:
    """Without noise it gives what `Purifier` gives, colour and grey, and its settings name the file by its hash."""
    defence = cpu("comdefend-12bit")
    purifier = Purifier.from_pretrained("comdefend-12bit", device="cpu", precision="float32")
    for x in (cifar[:3], gray):
        assert torch.equal(defence(x), purifier(x))
    assert defence.settings == {
        "defence": "comdefend",
        "weights": "comdefend-12bit",
        "sha256": read_registry()["comdefend-12bit"]["sha256"],
        "channels": 3,
        "bits": 12,
        "noise": 0.0,
        "input-noise": 0.0,
        "samples": 1,
        "tiling": "exact",
        "precision": "float32",
    }
    assert not defence.stochastic and defence.votes == 1
    assert defence.gradients == ("identity", "straight-through", "soft")


def test_the_weights_own_noise_is_that_of_the_purifier_and_no_chance(cifar: Tensor, tmp_path: Path) -> None:
    """It is the same in each call and for each image, as `comdefend purify` puts it; asked for, it is random; 0 leaves it out."""
    made = small_model()
    made.input_noise = 20.0
    path = tmp_path / "own.safetensors"
    save_weights(path, made, {})
    own, asked, without = (cpu(f"{path}{options}") for options in ("", ":input-noise=20", ":input-noise=0"))
    x = cifar[:1].repeat(2, 1, 1, 1)
    assert torch.equal(own(x), Purifier.from_pretrained(path, device="cpu", precision="float32")(x))
    assert torch.equal(own(x), own(x)) and torch.equal(own(x)[0], own(x)[1])
    assert not own.stochastic and asked.stochastic and not without.stochastic
    assert [defence.settings["input-noise"] for defence in (own, asked, without)] == [20.0, 20.0, 0.0]
    assert torch.equal(without(x), Purifier(made, None, Settings(input_noise=0.0))(x))


def test_paper_tiling_is_the_purifiers(astronaut: np.ndarray) -> None:
    """Patches of 32x32 instead of the whole image."""
    x = torch.from_numpy(astronaut[100:150, 100:150].copy()).permute(2, 0, 1)[None].float() / 255
    paper, exact = cpu("comdefend-12bit:tiling=paper")(x), cpu("comdefend-12bit")(x)
    assert torch.equal(paper[..., :32, :32], cpu("comdefend-12bit")(x[..., :32, :32]))
    assert not torch.equal(paper, exact)


def test_a_file_of_ones_own_is_taken(small_weights: Path, cifar: Tensor) -> None:
    """By its path, with options; the settings have the file's name and hash, not the folder."""
    defence = cpu(f"{small_weights}:noise-std=3,votes=2")
    assert defence.name == f"{small_weights}:noise-std=3,votes=2" and defence.votes == 2
    assert defence.settings["weights"] == "small.safetensors" and defence.settings["votes"] == 2
    assert defence.settings["sha256"] == load_weights(str(small_weights)).sha256
    assert str(small_weights.parent) not in json.dumps(defence.settings)
    assert defence(cifar[:2]).shape == (2, 3, 32, 32)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    """As everywhere, a weight file that is none is an error with what to do."""
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(ComdefendError, match="not a weight file") as caught:
        cpu(str(tmp_path / "w.safetensors"))
    assert "\n" not in str(caught.value)


def test_colour_and_weights_for_grey_are_an_error(cifar: Tensor) -> None:
    """Said when it is met."""
    with pytest.raises(UsageError, match="these weights are for grey"):
        cpu("comdefend-4bit-gray")(cifar[:1])


def test_noise_is_normal_and_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise that a batch gets has the standard deviation asked for, and no correlation between images or calls."""
    defence = cast(ComDefendDefence, cpu("comdefend-12bit:noise-std=20"))
    x, drawn = torch.rand(4, 3, 32, 32), []
    kept = Pass._draw_logit_noise

    def record(*arguments: Any) -> Tensor | None:
        noise = kept(*arguments)
        assert noise is not None
        drawn.append(noise)
        return noise

    monkeypatch.setattr(Pass, "_draw_logit_noise", record)
    defence(x)
    defence(x)
    noise = torch.cat(drawn).double()
    assert noise.shape == (8, 12, 32, 32)
    assert float(noise.mean()) == pytest.approx(0, abs=0.3) and float(noise.std()) == pytest.approx(20, rel=0.01)
    assert float((noise.flatten() / 20).pow(4).mean()) == pytest.approx(3, abs=0.1)
    correlations = torch.corrcoef(noise.flatten(1)) - torch.eye(8)
    assert float(correlations.abs().max()) < 0.05


def test_noise_works_in_every_precision(cifar: Tensor) -> None:
    """bfloat16 with noise gives nearly what float32 gives with the same seed."""
    full = cpu("comdefend-12bit:noise-std=5")(cifar[:2])
    half = make_defence("comdefend-12bit:noise-std=5", device="cpu", precision="bfloat16")
    assert half.settings["precision"] == "bfloat16"
    assert float((half(cifar[:2]) - full).abs().mean()) < 0.01


def test_votes_are_asked_for_by_the_defence(cifar: Tensor) -> None:
    """What `votes` says, `Defended` does: the mean softmax over that many noisy purifications."""
    defence, model = cpu("comdefend-12bit:noise-std=20,votes=3"), classifier()
    voted = Defended(defence, model, gradient="none", votes=defence.votes)
    voted.seed(5)
    defence.seed(5)
    want = torch.stack([model(defence(cifar[:2])).softmax(1) for _ in range(3)]).mean(0)
    assert torch.allclose(voted(cifar[:2]).exp(), want, atol=1e-6)
