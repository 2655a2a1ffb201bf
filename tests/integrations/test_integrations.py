"""The plugs: `Defended` as attack libraries call it, ART's preprocessor, the transform in data loaders, and the examples."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import eagerpy
import foolbox
import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from conftest import FAMILIES, small_model
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from comdefend_cli import Purifier, Settings
from comdefend_cli.errors import UsageError
from comdefend_cli.integrations import Defended, PurifyTransform
from comdefend_cli.integrations.art import ComDefendPreprocessor
from comdefend_cli.network.model import ComDefend

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
GRADIENTS = ("straight-through", "identity", "soft")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
LABELS = torch.tensor([1, 0, 3])


def classifier(channels: int = 3) -> nn.Module:
    """Two convolutions and a linear layer, from (N, C, 16, 16) to four logits, with random weights."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)]
    return nn.Sequential(*layers).eval()


def images(channels: int = 3, count: int = 3) -> Tensor:
    """Random smooth images (N, C, 16, 16) in [0, 1]."""
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(2))
    return nn.functional.interpolate(coarse, size=16, mode="bicubic").clamp(0, 1)


def noisy(seed: int = 0) -> Purifier:
    """A purifier whose noise flips some of the code."""
    return Purifier(small_model(), None, Settings(noise_std=1.0, seed=seed))


def input_gradient(model: nn.Module, x: Tensor, y: Tensor = LABELS) -> Tensor:
    """What a white-box attack computes first: the loss's gradient at x."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    return gradient


class Blur(nn.Module):
    """A purifier that is not ComDefend's, with a gradient of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 3, 1, 1)


class Rounding(nn.Module):
    """A purifier without any gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.detach() * 7).round() / 7


class Wrapper(nn.Module):
    """A defence that holds a purifier and settings of its own, and can be seeded."""

    def __init__(self, purifier: Purifier) -> None:
        super().__init__()
        self.inner = nn.ModuleList([purifier, Blur()])
        self.seeds: list[int] = []

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[1](self.inner[0](x))


# Values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_the_same_for_every_gradient(family: str, dtype: torch.dtype) -> None:
    """Bit by bit, with and without a gradient wanted, in float32 and bfloat16 weights: classifier(purifier(x))."""
    purifier, model, x = Purifier(small_model(family=family)).to(dtype), classifier(), images()
    expected = model(purifier(x))
    for gradient in (*GRADIENTS, "none"):
        defended = Defended(purifier, model, gradient=gradient)
        assert torch.equal(defended(x), expected)
        assert torch.equal(defended(x.clone().requires_grad_()), expected)
        with torch.no_grad():
            assert torch.equal(defended(x), expected)


def test_normalize_as_numbers_is_normalize_as_callable() -> None:
    """(mean, std) as sequences, tensors or single numbers, a function and a module give the same logits, which differ from none."""
    purifier, model, x = Purifier(small_model()), classifier(), images()
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    as_function = Defended(purifier, model, lambda p: (p - mean.view(3, 1, 1)) / std.view(3, 1, 1))(x)
    assert torch.equal(Defended(purifier, model, (MEAN, STD))(x), as_function)
    assert torch.equal(Defended(purifier, model, (mean, std))(x), as_function)
    assert torch.equal(Defended(purifier, model, (0.5, 0.25))(x), model((purifier(x) - 0.5) / 0.25))
    assert torch.equal(Defended(purifier, model, nn.InstanceNorm2d(3))(x), model(nn.InstanceNorm2d(3)(purifier(x))))
    assert not torch.allclose(Defended(purifier, model)(x), as_function)


def test_one_channel() -> None:
    """Grey images go through, by grey networks and by the colour ones, with a gradient."""
    for purifier in (Purifier(None, small_model(1)), Purifier(small_model())):
        model, x = classifier(1), images(1)
        defended = Defended(purifier, model, (0.5, 0.5))
        assert torch.equal(defended(x), model((purifier(x) - 0.5) / 0.5))
        assert input_gradient(defended, x).abs().max() > 0


def test_no_purifier_is_the_classifier() -> None:
    """nn.Identity() leaves values and gradients of the classifier as they are."""
    model, x = classifier(), images()
    for gradient in GRADIENTS:
        defended = Defended(nn.Identity(), model, gradient=gradient)
        assert torch.equal(defended(x), model(x))
        assert torch.equal(input_gradient(defended, x), input_gradient(model, x))


# Gradients


def by_hand(networks: ComDefend, x: Tensor, soft: bool) -> Tensor:
    """ComDefend in float64 with the rounding's gradient written out: the code's value, the identity's or the sigmoid's slope."""
    networks = copy.deepcopy(networks).double()
    logits = networks.com(x)
    passes = torch.sigmoid(logits) if soft else logits
    code = passes + ((logits > 0).double() - passes).detach()
    return networks.rec(code).double()


@pytest.mark.parametrize("gradient", ["straight-through", "soft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_through_the_purifier_is_the_one_by_hand(family: str, gradient: str) -> None:
    """Autograd through ComCNN, the rounding's stand-in and RecCNN in float64 gives the same input gradient, to float32's precision."""
    networks, model, x = small_model(family=family), classifier(), images()
    ours = input_gradient(Defended(Purifier(networks), model, (MEAN, STD), gradient), x)
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (MEAN, STD))
    exact = copy.deepcopy(model).double()
    reference = x.double().requires_grad_()
    nn.functional.cross_entropy(exact((by_hand(networks, reference, gradient == "soft") - mean) / std), LABELS).backward()
    assert reference.grad is not None
    assert ours.abs().max() > 0
    assert torch.allclose(ours.double(), reference.grad, rtol=1e-3, atol=1e-4 * float(reference.grad.abs().max()))


@pytest.mark.parametrize("purifier", [Purifier(small_model()), Rounding(), Blur()], ids=["comdefend", "rounding", "blur"])
def test_identity_gradient_is_the_classifiers_at_the_purified_image(purifier: nn.Module) -> None:
    """BPDA with the identity, for purifiers with and without a gradient of their own."""
    model, x = classifier(), images()
    assert torch.equal(input_gradient(Defended(purifier, model, gradient="identity"), x), input_gradient(model, purifier(x)))


def test_gradients_differ_and_none_is_zero() -> None:
    """The three gradients of one purifier are three different ones, all finite and non-zero; "none" gives zeros, not an error."""
    purifier, model, x = Purifier(small_model()), classifier(), images()
    found = [input_gradient(Defended(purifier, model, gradient=gradient), x) for gradient in GRADIENTS]
    assert all(torch.isfinite(gradient).all() and (gradient != 0).any(dim=(1, 2, 3)).all() for gradient in found)
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert not input_gradient(Defended(purifier, model, gradient="none"), x).any()


def test_another_purifiers_own_gradient() -> None:
    """A differentiable module keeps its gradient; without one it is an error that names the identity, unless no gradient is wanted."""
    model, x = classifier(), images()
    assert torch.allclose(input_gradient(Defended(Blur(), model), x), input_gradient(nn.Sequential(Blur(), model), x))
    with pytest.raises(UsageError, match="identity"):
        input_gradient(Defended(Rounding(), model), x)
    assert torch.equal(Defended(Rounding(), model)(x), model(Rounding()(x)))


def test_a_purifier_inside_another_module_gets_the_gradient_too() -> None:
    """In a wrapper, whose own object is left alone, the purifier's rounding is differentiated as told, and `seed` is passed on."""
    purifier = Purifier(small_model(), None, Settings(gradient="none"))
    wrapper, model, x = Wrapper(purifier), classifier(), images()
    for gradient in ("straight-through", "soft"):
        plain = nn.Sequential(Purifier(small_model(), None, Settings(gradient=gradient)), Blur(), model)
        assert torch.equal(input_gradient(Defended(wrapper, model, gradient=gradient), x), input_gradient(plain, x))
    assert purifier.settings == Settings(gradient="none")
    assert wrapper.inner[0] is purifier
    Defended(wrapper, model).seed(7)
    assert wrapper.seeds == [7]


def test_bfloat16_weights_give_a_float32_gradient() -> None:
    """With the networks in bfloat16, the input gradient is float32, finite, non-zero, and close to the float32 networks'."""
    model, x = classifier(), images()
    half = input_gradient(Defended(Purifier(small_model()).to(torch.bfloat16), model), x)
    full = input_gradient(Defended(Purifier(small_model()), model), x)
    assert half.dtype == torch.float32
    assert torch.isfinite(half).all()
    assert nn.functional.cosine_similarity(half.flatten(), full.flatten(), dim=0) > 0.8


# Votes and noise


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_noise_in_bfloat16_weights(gradient: str) -> None:
    """Voting over noise works with the networks in bfloat16 too, and its gradient is float32, finite and non-zero."""
    found = input_gradient(Defended(noisy().to(torch.bfloat16), classifier(), gradient=gradient, votes=2), images())
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert found.any()


def test_votes_without_noise_change_no_prediction() -> None:
    """One vote is the plain pipeline; several, of a deterministic purifier, are its log-softmax."""
    purifier, model, x = Purifier(small_model()), classifier(), images()
    plain = model(purifier(x))
    assert torch.equal(Defended(purifier, model, votes=1)(x), plain)
    assert torch.allclose(Defended(purifier, model, votes=3)(x), plain.log_softmax(1), atol=1e-6)


def test_votes_differ_by_seed_and_repeat_by_seed() -> None:
    """Noise is new in every call; after `seed` the same calls give the same logits, another seed gives others; so does the purifier's."""
    model, x = classifier(), images()
    defended = Defended(noisy(), model, votes=2)
    first, second = defended(x), defended(x)
    assert not torch.equal(first, second)
    again = Defended(noisy(), model, votes=2)
    assert torch.equal(first, again(x))
    defended.seed(0)
    assert torch.equal(first, defended(x))
    assert torch.equal(second, defended(x))
    defended.seed(1)
    assert not torch.equal(first, defended(x))
    assert not torch.equal(first, Defended(noisy(seed=1), model, votes=2)(x))


def test_votes_are_the_log_of_the_mean_softmax_of_independent_noise() -> None:
    """Four votes are the mean softmax of four single calls from the same seed, in value and in gradient."""
    model, x = classifier(), images()
    four, one = Defended(noisy(), model, votes=4), Defended(noisy(), model)
    ours = input_gradient(four, x)
    start = x.clone().requires_grad_()
    calls = [one(start).softmax(1) for _ in range(4)]
    assert not any(torch.equal(calls[0], call) for call in calls[1:])
    mean = torch.stack(calls).mean(0).log()
    four.seed(0)
    assert torch.allclose(four(x), mean, atol=1e-5)
    (expected,) = torch.autograd.grad(nn.functional.nll_loss(mean, LABELS), start)
    assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gradient", [*GRADIENTS, "none"])
def test_noise_is_the_same_for_every_gradient(gradient: str) -> None:
    """From the same seed, the noisy values are bit-equal whatever the gradient."""
    model, x = classifier(), images()
    assert torch.equal(Defended(noisy(), model, gradient=gradient, votes=2)(x), Defended(noisy(), model, votes=2)(x))


# The object


def test_the_users_purifier_is_left_alone() -> None:
    """Neither making nor calling `Defended`, with noise and another gradient, changes the settings of the purifier given."""
    purifier = Purifier(small_model(), None, Settings(noise_std=1.0, seed=3, gradient="none", tile=9))
    before = purifier(images())
    input_gradient(Defended(purifier, classifier(), gradient="soft", votes=2), images())
    assert purifier.settings == Settings(noise_std=1.0, seed=3, gradient="none", tile=9)
    assert torch.equal(purifier(images()), before)


def test_weights_are_shared_and_move_together() -> None:
    """Parameters are the user's own objects, each once; moving and setting them moves and sets the user's."""
    purifier, model = Purifier(small_model()), classifier()
    defended, other = Defended(purifier, model, (MEAN, STD)), Defended(purifier, model, gradient="soft")
    own = [*purifier.parameters(), *model.parameters()]
    assert [id(parameter) for parameter in defended.parameters()] == [id(parameter) for parameter in own]
    assert [id(parameter) for parameter in other.parameters()] == [id(parameter) for parameter in own]
    storages = [parameter.untyped_storage().data_ptr() for parameter in defended.parameters()]
    assert storages == [parameter.untyped_storage().data_ptr() for parameter in own]
    assert len(set(storages)) == len(own)
    defended.double()
    assert {parameter.dtype for parameter in own} == {torch.float64}
    assert defended(images().double()).dtype == torch.float64
    defended.float()
    weights = {name: torch.zeros_like(value) for name, value in defended.state_dict().items()}
    defended.load_state_dict(weights)
    assert not any(parameter.any() for parameter in own)


def test_state_keys_are_those_of_the_parts() -> None:
    """The state is "purifier." and "classifier." and the parts' own keys, nothing else; mean and std are buffers outside it."""
    purifier, model = Purifier(small_model()), classifier()
    defended = Defended(purifier, model, (MEAN, STD))
    expected = [f"purifier.{name}" for name in purifier.state_dict()] + [f"classifier.{name}" for name in model.state_dict()]
    assert sorted(defended.state_dict()) == sorted(expected)
    assert [name for name, _ in defended.named_buffers()] == ["normalize.mean", "normalize.std"]


def test_copies_are_whole_and_independent() -> None:
    """A deep copy and an unpickled object continue with the same noise and own their weights."""
    x = images()
    defended = Defended(noisy(), classifier(), (MEAN, STD), "soft", votes=2)
    defended(x)
    copies = [copy.deepcopy(defended), pickle.loads(pickle.dumps(defended))]
    expected = defended(x)
    for other in copies:
        assert torch.equal(other(x), expected)
        assert (other.gradient, other.votes) == ("soft", 2)
        with torch.no_grad():
            next(other.purifier.parameters()).zero_()
        assert next(defended.purifier.parameters()).any()


def test_modes_and_repr() -> None:
    """train() and eval() reach both parts, and printing says what is chosen."""
    defended = Defended(Purifier(small_model()), classifier(), (MEAN, STD), "identity", votes=3)
    assert not defended.eval().purifier.training
    assert defended.train().classifier.training
    assert "gradient='identity', votes=3" in repr(defended)


def test_wrong_use_is_refused() -> None:
    """Each wrong argument is an error of usage with the reason; an image of integers is a type error."""
    purifier, model, x = Purifier(small_model()), classifier(), images()
    for arguments, reason in (
        ({"gradient": "x"}, "gradient"),
        ({"votes": 0}, "vote"),
        ({"normalize": (0.5, 0.0)}, "std"),
        ({"normalize": (0.5,)}, "mean, std"),
        ({"normalize": [0.5, 0.5]}, "mean, std"),
    ):
        with pytest.raises(UsageError, match=reason):
            Defended(purifier, model, **arguments)
    with pytest.raises(UsageError, match="channels"):
        Defended(purifier, model, (MEAN, STD))(images(1))
    with pytest.raises(UsageError, match="shape"):
        Defended(nn.AvgPool2d(2), model, gradient="identity")(x)
    shrunk = nn.Sequential(nn.AdaptiveAvgPool2d(16), model)
    assert input_gradient(Defended(nn.AvgPool2d(2), shrunk, gradient="none"), x).shape == x.shape
    with pytest.raises(UsageError, match="seed"):
        Defended(purifier, model).seed(-1)
    with pytest.raises(TypeError, match="floating"):
        Defended(purifier, model)((x * 255).int())
    assert torch.equal(Defended(purifier, model)((x * 255).byte()), Defended(purifier, model)((x * 255).byte().float() / 255))
    with pytest.raises(ValueError, match="found NaN"):
        Defended(purifier, model)(x * float("nan"))


# Attack libraries


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_under_foolbox(gradient: str) -> None:
    """Foolbox's model and loss see the module's own, non-zero, input gradient, and its attack changes every image."""
    defended, x = Defended(Purifier(small_model()), classifier(), (MEAN, STD), gradient).eval(), images()
    model = foolbox.PyTorchModel(defended, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(steps=2, random_start=False)
    loss = attack.get_loss_fn(model, eagerpy.astensor(LABELS))
    _, seen = attack.value_and_grad(loss, eagerpy.astensor(x))
    assert torch.isfinite(seen.raw).all()
    assert (seen.raw != 0).any(dim=1).any(dim=1).any(dim=1).all()
    assert torch.allclose(seen.raw, 3 * input_gradient(defended, x), rtol=1e-4, atol=1e-7), "foolbox sums over the batch"
    _, clipped, _ = attack(model, x, LABELS, epsilons=8 / 255)
    assert ((clipped - x).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_none_under_foolbox_and_art_is_zero_and_no_error() -> None:
    """Both libraries run through a hidden gradient; what they get is zero."""
    defended, x = Defended(Purifier(small_model()), classifier(), gradient="none").eval(), images()
    model = foolbox.PyTorchModel(defended, bounds=(0, 1), device="cpu")
    _, clipped, _ = foolbox.attacks.LinfFastGradientAttack()(model, x, LABELS, epsilons=8 / 255)
    assert torch.equal(clipped, x)
    assert not estimator(defended).loss_gradient(x.numpy(), one_hot()).any()
    hidden = ComDefendPreprocessor(Purifier(small_model()), gradient="none")
    assert not estimator(classifier(), [hidden]).class_gradient(x.numpy()).any()


def one_hot() -> np.ndarray:
    """The labels as ART wants them."""
    return np.eye(4, dtype=np.float32)[LABELS.numpy()]


def estimator(model: nn.Module, defences: list[ComDefendPreprocessor] | None = None, **arguments: object) -> PyTorchClassifier:
    """ART's classifier around a module."""
    values = {"input_shape": (3, 16, 16), "clip_values": (0.0, 1.0), **arguments}
    return PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        nb_classes=4,
        preprocessing_defences=defences,
        device_type="cpu",
        **values,
    )


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_under_art(gradient: str) -> None:
    """ART's loss and class gradients of the module are autograd's own, non-zero; its predictions are the module's."""
    defended, x = Defended(Purifier(small_model()), classifier(), (MEAN, STD), gradient).eval(), images()
    wrapped = estimator(defended)
    check_art(wrapped, defended, x)


def check_art(wrapped: PyTorchClassifier, defended: nn.Module, x: Tensor) -> None:
    """Predictions, loss gradients and class gradients are those of the module."""
    with torch.no_grad():
        assert np.array_equal(wrapped.predict(x.numpy()), defended(x).numpy())
    loss = wrapped.loss_gradient(x.numpy(), one_hot())
    assert np.isfinite(loss).all()
    assert (loss != 0).any(axis=(1, 2, 3)).all()
    assert np.allclose(loss, input_gradient(defended, x).numpy(), rtol=1e-4, atol=1e-8)
    classes = wrapped.class_gradient(x.numpy())
    start = x.clone().requires_grad_()
    logits = defended(start)
    expected = [torch.autograd.grad(logits[:, index].sum(), start, retain_graph=True)[0] for index in range(4)]
    assert np.allclose(classes, torch.stack(expected, 1).numpy(), rtol=1e-4, atol=1e-7)
    assert (classes != 0).any(axis=(2, 3, 4)).all()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_arts_preprocessor_is_the_plain_pipeline(gradient: str) -> None:
    """In front of ART's own standardization, in batches of two, predictions and gradients are those of `Defended`."""
    purifier, model, x = Purifier(small_model()), classifier(), images()
    preprocessor = ComDefendPreprocessor(purifier, gradient=gradient, batch_size=2)
    check_art(estimator(model, [preprocessor]), Defended(purifier, model, gradient=gradient), x)
    standard = tuple(np.array(values, np.float32).reshape(3, 1, 1) for values in (MEAN, STD))
    wrapped = estimator(model, [preprocessor], preprocessing=standard)
    assert wrapped.all_framework_preprocessing
    defended = Defended(purifier, model, (MEAN, STD), gradient)
    assert np.allclose(wrapped.predict(x.numpy()), defended(x).detach().numpy(), atol=1e-5)
    assert np.allclose(wrapped.loss_gradient(x.numpy(), one_hot()), input_gradient(defended, x).numpy(), rtol=1e-3, atol=1e-7)


def test_arts_preprocessor_in_other_ranges_and_layouts() -> None:
    """Images in [0, 255], or channels last, give the same predictions, and gradients in their own units and layout."""
    purifier, model, x = Purifier(small_model()), classifier(), images()
    plain = estimator(model, [ComDefendPreprocessor(purifier)])
    expected, slope = plain.predict(x.numpy()), plain.loss_gradient(x.numpy(), one_hot())
    scaled = nn.Sequential(Scale(1 / 255), model)
    bytes_wide = estimator(scaled, [ComDefendPreprocessor(purifier, clip_values=(0, 255))], clip_values=(0, 255))
    assert np.allclose(bytes_wide.predict(255 * x.numpy()), expected, atol=1e-5)
    assert np.allclose(255 * bytes_wide.loss_gradient(255 * x.numpy(), one_hot()), slope, rtol=1e-3, atol=1e-6)
    last = nn.Sequential(ChannelsFirst(), model)
    defence = ComDefendPreprocessor(purifier, channels_first=False)
    channels_last = estimator(last, [defence], channels_first=False, input_shape=(16, 16, 3))
    turned = x.permute(0, 2, 3, 1).contiguous().numpy()
    assert np.allclose(channels_last.predict(turned), expected, atol=1e-6)
    assert np.allclose(channels_last.loss_gradient(turned, one_hot()), slope.transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-7)


class Scale(nn.Module):
    """Multiply."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class ChannelsFirst(nn.Module):
    """(N, H, W, C) to (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


def test_arts_preprocessor_applies_where_told() -> None:
    """In training only with apply_fit, in prediction only with apply_predict; labels pass; called with arrays it returns arrays."""
    purifier, model, x = Purifier(small_model()), classifier(), images()
    array, plain = x.numpy(), model(x).detach().numpy()
    off = estimator(model, [ComDefendPreprocessor(purifier, apply_fit=True, apply_predict=False)])
    assert np.allclose(off.predict(array), plain)
    fitted, _ = off._apply_preprocessing(array, one_hot(), fit=True)
    assert np.array_equal(fitted, purifier(x).numpy())
    on = estimator(model, [ComDefendPreprocessor(purifier)])
    assert not np.allclose(on.predict(array), plain)
    untouched, _ = on._apply_preprocessing(array, one_hot(), fit=True)
    assert np.array_equal(untouched, array)
    purified, labels = ComDefendPreprocessor(purifier)(array, one_hot())
    assert np.array_equal(purified, purifier(x).numpy())
    assert np.array_equal(labels, one_hot())
    assert ComDefendPreprocessor(purifier).estimate_gradient(array, array).any()
    before = [parameter.clone() for parameter in purifier.parameters()]
    off.fit(array, one_hot(), nb_epochs=1, batch_size=3)
    assert all(torch.equal(*pair) for pair in zip(before, purifier.parameters(), strict=True))


def test_arts_preprocessor_takes_new_noise_and_restarts_it() -> None:
    """Two predictions of a noisy defence differ, and repeat after `seed`."""
    preprocessor = ComDefendPreprocessor(noisy())
    wrapped, array = estimator(classifier(), [preprocessor]), images().numpy()
    first = wrapped.predict(array)
    assert not np.array_equal(first, wrapped.predict(array))
    preprocessor.seed(0)
    assert np.array_equal(first, wrapped.predict(array))


def test_arts_preprocessor_refuses_what_it_cannot_do() -> None:
    """Channels elsewhere, integers, and settings that are no range or batch are errors that say what to do."""
    purifier = Purifier(small_model())
    for arguments in ({"clip_values": (1, 0)}, {"clip_values": (0,)}, {"clip_values": (np.zeros(3), np.ones(3))}, {"batch_size": 0}):
        with pytest.raises(UsageError):
            ComDefendPreprocessor(purifier, **arguments)
    preprocessor = ComDefendPreprocessor(purifier)
    with pytest.raises(UsageError, match="channels_first=False"):
        preprocessor.forward(torch.rand(1, 8, 8, 3))
    with pytest.raises(UsageError, match="channels_first=True"):
        ComDefendPreprocessor(purifier, channels_first=False).forward(torch.rand(1, 3, 8, 8))
    with pytest.raises(UsageError, match="four"):
        preprocessor.forward(torch.rand(3, 8, 8))
    with pytest.raises(TypeError, match="float32"):
        preprocessor.forward(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert "gradient='straight-through'" in repr(preprocessor)


def test_without_art_the_extra_is_named() -> None:
    """Where ART is not installed, importing its plug says what to install, and the other plugs work."""
    code = (
        "import sys; sys.modules['art'] = None\n"
        "import comdefend_cli.integrations as plugs; print(plugs.__all__)\n"
        "from comdefend_cli.errors import UsageError\n"
        "try:\n    import comdefend_cli.integrations.art\n"
        "except UsageError as error:\n    print(error)\n"
        "assert not {'foolbox', 'art.defences', 'torchvision'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "['Defended', 'PurifyTransform', 'Smoothed']" in result.stdout
    assert "comdefend-cli[evaluate]" in result.stdout


def steps_of_pgd(model: nn.Module, x: Tensor, y: Tensor, device: torch.device) -> Tensor:
    """Projected gradient descent as torchattacks and AutoAttack write it: their calls, their device moves, their modes."""
    assert next(model.parameters()).device.type == device.type
    training = model.training
    model.eval()
    loss = nn.CrossEntropyLoss()
    found = []
    for batch, labels in zip(x.split(2), y.split(2), strict=True):
        start, labels = batch.clone().detach().to(device), labels.clone().detach().to(device)
        adversarial = start + torch.empty_like(start).uniform_(-4 / 255, 4 / 255)
        adversarial = adversarial.clamp(0, 1).detach()
        for _ in range(3):
            adversarial.requires_grad = True
            (gradient,) = torch.autograd.grad(loss(model(adversarial), labels), adversarial, retain_graph=False, create_graph=False)
            assert gradient.abs().flatten(1).amax(1).min() > 0
            adversarial = adversarial.detach() + 2 / 255 * gradient.sign()
            adversarial = (start + (adversarial - start).clamp(-8 / 255, 8 / 255)).clamp(0, 1).detach()
        # AutoAttack's APGD: the sum of losses of single images, and `backward` in place of `grad`.
        adversarial.requires_grad_()
        nn.CrossEntropyLoss(reduction="none")(model(adversarial), labels).sum().backward()
        assert adversarial.grad is not None
        assert adversarial.grad.any()
        with torch.no_grad():
            assert model(adversarial).argmax(1).shape == labels.shape
        found.append(adversarial.detach())
    model.train(training)
    return torch.cat(found).cpu()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_callers_as_torchattacks_and_autoattack(gradient: str) -> None:
    """A caller with their habits attacks through the module, with votes over noise too, and raises the loss without noise."""
    cpu, x = torch.device("cpu"), images()
    torch.manual_seed(0)
    steps_of_pgd(Defended(noisy(), classifier(), (MEAN, STD), gradient, votes=2).to(cpu), x, LABELS, cpu)
    defended = Defended(Purifier(small_model()), classifier(), (MEAN, STD), gradient).to(cpu)
    adversarial = steps_of_pgd(defended, x, LABELS, cpu)
    assert (adversarial - x).abs().max() <= 8 / 255 + 1e-6
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(defended(value), LABELS) for value in (x, adversarial))
    assert after > before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_on_cuda(gradient: str) -> None:
    """Moved to CUDA as one module, it is attacked there, its gradient is the CPU's, and ART's preprocessor runs there."""
    cuda, x = torch.device("cuda"), images()
    expected = input_gradient(Defended(Purifier(small_model()), classifier(), (MEAN, STD), gradient), x)
    defended = Defended(Purifier(small_model()), classifier(), (MEAN, STD), gradient).to(cuda)
    found = input_gradient(defended, x.to(cuda), LABELS.to(cuda)).cpu()
    assert nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.99
    steps_of_pgd(defended, x, LABELS, cuda)
    steps_of_pgd(Defended(noisy(), classifier(), (MEAN, STD), gradient, votes=2).to(cuda), x, LABELS, cuda)
    preprocessor = ComDefendPreprocessor(Purifier(small_model()).to(cuda), gradient=gradient)
    wrapped = PyTorchClassifier(
        classifier(), nn.CrossEntropyLoss(), (3, 16, 16), 4, clip_values=(0.0, 1.0), preprocessing_defences=[preprocessor]
    )
    assert wrapped.loss_gradient(x.numpy(), one_hot()).any()


# The transform


def test_transform_returns_the_kind_it_was_given(small_weights: Path, astronaut: np.ndarray) -> None:
    """Pillow images and tensors, single or in batches, uint8 or float, come back as themselves and as the purifier's result."""
    transform, purifier = PurifyTransform(small_weights, precision="float32"), Purifier(small_model())
    image = Image.fromarray(astronaut[:20, :30])
    result = transform(image)
    assert (type(result), result.mode, result.size) == (Image.Image, "RGB", (30, 20))
    assert np.array_equal(np.array(result), purifier(astronaut[:20, :30]))
    batch = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    for x in (batch, batch / 255, torch.cat([batch, batch]).double() / 255):
        assert torch.equal(transform(x), purifier(x))
        assert torch.equal(transform(x[0]), purifier(x)[0])
    assert transform(image.convert("LA")).mode == "LA"


@pytest.mark.parametrize("family", FAMILIES)
def test_transform_and_art_take_weights_of_either_family(family_weights: dict[str, Path], astronaut: np.ndarray, family: str) -> None:
    """In a data loader's pipeline, and before ART's classifier, images of an odd size come out as the purifier makes them."""
    path = family_weights[family]
    purifier = Purifier.from_pretrained(path, device="cpu", precision="float32")
    pixels = astronaut[:21, :35]
    image = PurifyTransform(path, precision="float32")(Image.fromarray(pixels))
    assert np.array_equal(np.array(image), purifier(pixels))
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
    found, _ = ComDefendPreprocessor(purifier)(x.numpy())
    assert np.allclose(found, purifier(x).numpy(), atol=1e-6)


def test_transform_refuses_other_kinds(small_weights: Path) -> None:
    """Unknown weights fail when it is made, other objects and shapes when it is called."""
    with pytest.raises(UsageError, match="no such weights"):
        PurifyTransform("no-such-weights")
    transform = PurifyTransform(str(small_weights))
    with pytest.raises(TypeError, match="Pillow"):
        transform("image.png")
    with pytest.raises(ValueError, match="expected"):
        transform(torch.rand(8, 8))


def test_transform_is_light_to_pickle_and_says_what_it_does(small_weights: Path) -> None:
    """Its pickle holds no weights, before and after use; the unpickled one gives the same images; repr and random state are sane."""
    state = torch.random.get_rng_state()
    transform = PurifyTransform(str(small_weights), precision="float32", settings=Settings("paper", noise_std=0.5, seed=4))
    unused = pickle.dumps(transform)
    x = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = transform(x)
    assert pickle.dumps(transform) == unused
    assert len(unused) < 2000
    assert torch.equal(pickle.loads(unused)(x), result)
    assert repr(transform).startswith(f"PurifyTransform(weights={str(small_weights)!r}, device='cpu', precision='float32', settings=Set")
    assert torch.equal(torch.random.get_rng_state(), state)


class Patches(Dataset[Tensor]):
    """Images through a transform."""

    def __init__(self, transform: PurifyTransform) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(images()[index])


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_transform_in_workers(small_weights: Path, start: str) -> None:
    """Data loader workers, spawned or forked, give what the transform gives in the process itself."""
    transform = PurifyTransform(str(small_weights), precision="float32")
    if start == "fork":
        transform(images())  # Loaded before the fork, and used after it.
    loader = DataLoader(Patches(transform), batch_size=3, num_workers=1, multiprocessing_context=start)
    (batch,) = list(loader)
    assert torch.equal(batch, transform(images()))


# The examples


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("attack_with_foolbox", ("undefended", "straight-through", "identity", "under PGD at 8/255")),
        ("attack_with_art", ("undefended under PGD", "defended   under PGD")),
        ("dataloader_transform", ("PurifyTransform(", "astronaut.png", "PSNR")),
    ],
)
def test_examples_run(name: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    """Each example, run as a person runs it from anywhere, ends well and prints what it promises."""
    command = [sys.executable, "-W", "error::RuntimeWarning", str(EXAMPLES / f"{name}.py")]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert all(text in result.stdout for text in expected), result.stdout


@pytest.mark.slow
def test_the_flagship_example_shows_what_it_is_for(tmp_path: Path) -> None:
    """Of images that the attack took nearly all of, the purifier brings back a good part; who knows it takes most of them again."""
    command = [sys.executable, str(EXAMPLES / "defend_classifier.py")]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300, check=True
    )
    clean, attacked, adaptive = ([float(word) for word in line.split()[-2:]] for line in result.stdout.splitlines()[1:])
    assert min(clean) > 65 and attacked[0] < 10 and attacked[1] > attacked[0] + 25
    assert adaptive[1] < attacked[1]


def test_every_example_is_run() -> None:
    """No example is left out of the tests above."""
    (mark,) = (mark for mark in test_examples_run.pytestmark if mark.name == "parametrize")
    assert {name for name, _ in mark.args[1]} | {"tiny", "shapes", "defend_classifier"} == {path.stem for path in EXAMPLES.glob("*.py")}
