"""Reference classifiers: their files, and a user's own."""

from __future__ import annotations

from pathlib import Path

import formats
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from comdefend_cli.classifiers.loading import ClassifierHeader, build, load_classifier, save_classifier
from comdefend_cli.classifiers.networks import ARCHITECTURES, Blocks, Whitening
from comdefend_cli.errors import UsageError, WeightsError

HEADER = ClassifierHeader("small", 1, ("even", "odd"), (0.4,), (0.2,), {"data": "made"})


@pytest.mark.parametrize(("arch", "parameters"), [("resnet18", 11_173_962), ("resnet50", 23_520_842)])
def test_resnets_are_the_usual_ones(arch: str, parameters: int) -> None:
    """ResNets for 32x32 images have the parameters that are usual on CIFAR-10."""
    assert sum(parameter.numel() for parameter in ARCHITECTURES[arch](3, 10).parameters()) == parameters


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_all_architectures_take_any_size(arch: str) -> None:
    """Logits come out for 32x32 and larger images, finite, with a gradient for the input."""
    model = build(ClassifierHeader(arch, 3, ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3)).eval()
    for side in (28, 32, 40):
        x = torch.rand(2, 3, side, side, requires_grad=True)
        logits = model(x)
        assert logits.shape == (2, 3) and bool(logits.isfinite().all())
        (gradient,) = torch.autograd.grad(logits.sum(), x)
        assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize(("arch", "blocks"), [("small", 3), ("medium", 3), ("resnet18", 8), ("resnet50", 16)])
def test_architectures_declare_their_blocks(arch: str, blocks: int) -> None:
    """Features are what comes after each group of convolutions or residual block, each smaller or deeper, and the logits."""
    torch.manual_seed(0)
    model = ARCHITECTURES[arch](3, 10).eval()
    assert isinstance(model, Blocks)
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        *features, logits = model.features(x)
        assert torch.equal(logits, model(x))
    assert len(features) == blocks and all(feature.ndim == 4 for feature in features)
    sides = [feature.shape[2] for feature in features]
    assert sides == sorted(sides, reverse=True) and 3 <= sides[-1] <= 4


@pytest.mark.parametrize("channels", [1, 3])
def test_whitening(channels: int) -> None:
    """Of the images fitted to, half of the outputs has equal variances and no covariance; the other half is its negative."""
    images = torch.from_numpy(formats.cuts(40, 32)).permute(0, 3, 1, 2)[:, :channels].float().div(128) - 1
    layer = Whitening(channels)
    layer.fit(images, least=0.0)
    assert not any(parameter is layer.weight for parameter in layer.parameters())
    with torch.no_grad():
        values = layer(images).movedim(1, 3).reshape(-1, 8 * channels).double()
    half = 4 * channels
    assert torch.allclose(values[:, :half], -values[:, half:])
    assert torch.allclose(values[:, :half].T.cov(), torch.eye(half, dtype=torch.float64), atol=1e-3)
    layer.fit(torch.full((2, channels, 8, 8), 0.5))
    assert bool(layer.weight.isfinite().all())


def test_a_file_comes_back(tmp_path: Path) -> None:
    """What was saved is loaded, with the same logits, hash and record."""
    torch.manual_seed(0)
    model = build(HEADER).eval()
    sha256 = save_classifier(tmp_path / "odd.safetensors", model, HEADER)
    loaded = load_classifier(str(tmp_path / "odd.safetensors"))
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(loaded.model(x), model(x))
    assert (loaded.name, loaded.sha256, loaded.classes, loaded.record) == ("odd", sha256, ("even", "odd"), {"data": "made"})
    assert not loaded.model.training and not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_normalization_is_the_headers(tmp_path: Path) -> None:
    """The network sees (x - mean) / std."""
    model = build(HEADER).eval()
    x = torch.rand(2, 1, 16, 16)
    assert torch.allclose(model(x), model.body((x - 0.4) / 0.2), atol=1e-6)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    """Truncated, foreign and misshapen files name themselves and the remedy."""
    path = tmp_path / "a.safetensors"
    save_classifier(path, build(HEADER), HEADER)
    whole = path.read_bytes()
    broken = tmp_path / "b.safetensors"
    for data, message in ((whole[:-100], "truncated"), (b"", "not a classifier"), (whole[:4], "not a classifier")):
        broken.write_bytes(data)
        with pytest.raises(WeightsError, match=f"b.safetensors.*{message}"):
            load_classifier(str(broken))
    save_file(load_file(path), broken, {"other": "1"})
    with pytest.raises(WeightsError, match="not a classifier of comdefend"):
        load_classifier(str(broken))
    save_classifier(broken, build(HEADER), ClassifierHeader("resnet18", 1, ("even", "odd"), (0.4,), (0.2,)), overwrite=True)
    with pytest.raises(WeightsError, match="damaged"):
        load_classifier(str(broken))


def test_a_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`module:function` in the working folder is called; what it raises or returns wrongly is one line."""
    (tmp_path / "own_classifier.py").write_text(
        "import torch\n"
        "def make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))\n"
        "def wrong():\n    return 3\n"
        "def fails():\n    raise RuntimeError('no\\nweights')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_classifier("own_classifier:make").model, nn.Sequential)
    for name, message in (
        ("own_classifier:wrong", "must return a torch.nn.Module, not int"),
        ("own_classifier:fails", "RuntimeError: no weights"),
        ("own_classifier:absent", "AttributeError"),
        ("no_such_module:make", "ModuleNotFoundError"),
    ):
        with pytest.raises(UsageError, match=message):
            load_classifier(name)


def test_names_tell_how_to_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture's name is looked for at the trainer's default place, and its absence names the command."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="comdefend train-classifier --data cifar10 --arch small"):
        load_classifier("small", data="cifar10")
    (tmp_path / "classifiers").mkdir()
    save_classifier(tmp_path / "classifiers" / "small-mnist.safetensors", build(HEADER), HEADER)
    assert load_classifier("small", data="mnist").name == "small-mnist"
    with pytest.raises(UsageError, match="give a file, module:function, or one of small"):
        load_classifier("vgg")


@pytest.mark.parametrize("change", [{"arch": "vgg"}, {"channels": 2}, {"classes": ("one",)}, {"std": (0.0,)}, {"mean": (0.1, 0.2)}])
def test_headers_that_cannot_be(change: dict[str, object]) -> None:
    """A header out of range is refused before networks of its size are made."""
    fields = {"arch": "small", "channels": 1, "classes": ("a", "b"), "mean": (0.5,), "std": (0.5,)}
    with pytest.raises(ValueError, match=r"unknown architecture|must"):
        ClassifierHeader(**{**fields, **change})  # type: ignore[arg-type]


def test_efficientnet_knows_imagenets_classes() -> None:
    """Of the photographs that foolbox ships, with ImageNet's labels, it names most; its mean and deviation are inside."""
    foolbox = pytest.importorskip("foolbox")
    pytest.importorskip("efficientnet_lite_pytorch")
    files = sorted((Path(foolbox.__file__).parent / "data").glob("imagenet_*.jpg"))
    labels = torch.tensor([int(file.stem.split("_")[2]) for file in files])
    images = [np.array(Image.open(file).convert("RGB").resize((224, 224))) for file in files]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    found = load_classifier("efficientnet-lite0")
    with torch.no_grad():
        logits = found.model(x)
    assert logits.shape == (20, 1000)
    assert (logits.argmax(1) == labels).float().mean() > 0.7
    assert len(found.sha256) == 64
