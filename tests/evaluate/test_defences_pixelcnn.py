"""The PixelCNN and PixelDefend: an exact likelihood, exact causality, decoding like the slow way, training, weight files."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import photo
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from comdefend_cli.data.sources import Dataset, ImageArray
from comdefend_cli.errors import ComdefendError, TrainingError, UsageError, WeightsError
from comdefend_cli.evaluate.defences import pixelcnn
from comdefend_cli.evaluate.defences.catalogue import make_defence
from comdefend_cli.evaluate.defences.mixture import Mixture, bin_log_probability, parameters_a_component, to_unit
from comdefend_cli.evaluate.defences.network_files import KEY, save_network
from comdefend_cli.evaluate.defences.pixelcnn import CausalConv, PixelCNN, PixelCNNArchitecture, PixelCNNTrainer, bits_per_dimension
from comdefend_cli.evaluate.defences.pixeldefend import decode, likeliest
from comdefend_cli.training.classifier_config import BaselineConfig

CPU = torch.device("cpu")


def network(channels: int = 3, *, width: int = 6, depth: int = 2, mixtures: int = 3, seed: int = 0) -> PixelCNN:
    """A narrow network in float64 whose weights are large enough that everything seen matters."""
    torch.manual_seed(seed)
    model = PixelCNN(PixelCNNArchitecture(channels, width, depth, mixtures)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.requires_grad_(False)


def levels(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Random levels, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator).double()


def crops(side: int = 16, channels: int = 3) -> Tensor:
    """Crops of a photograph, uint8 (64, channels, side, side)."""
    pixels = torch.from_numpy(photo("astronaut.png")[: 8 * side, : 8 * side].copy()).permute(2, 0, 1)[:channels]
    return pixels.reshape(channels, 8, side, 8, side).permute(1, 3, 0, 2, 4).reshape(64, channels, side, side)


def dataset(side: int = 16, channels: int = 3) -> Dataset:
    """A data set of these crops: 48 to learn from, 16 to measure on."""
    pixels = crops(side, channels)
    none = torch.empty(0, dtype=torch.int64)
    return Dataset("crops", ImageArray(pixels[:48], none), ImageArray(pixels[48:], none))


# The likelihood.


def test_bins_sum_to_one() -> None:
    """For sharp and flat logistics, inside and outside the range, the 256 bins are a distribution."""
    mean = torch.tensor([-1.5, -1.0, -0.3, 0.0, 0.62, 1.0, 1.2], dtype=torch.float64)
    scale = torch.tensor([-7.0, -4.0, -7.0, -1.0, 1.0, 0.0, -3.0], dtype=torch.float64)
    bins = bin_log_probability(torch.arange(256, dtype=torch.float64), mean, scale)
    assert bins.shape == (256, 7)
    assert torch.allclose(bins.exp().sum(0), torch.ones(7, dtype=torch.float64), atol=1e-12)


def test_bins_are_differences_of_the_logistic_curve() -> None:
    """Within a bin is the difference of two values of the cumulative distribution; the outermost bins reach to infinity."""
    mean, scale = torch.tensor([0.1], dtype=torch.float64), torch.tensor([-2.0], dtype=torch.float64)

    def cumulative(value: float) -> float:
        return 1 / (1 + math.exp(-(value - 0.1) / math.exp(-2.0)))

    for level in (0, 1, 128, 254, 255):
        centre = level / 127.5 - 1
        below = 0.0 if level == 0 else cumulative(centre - 1 / 255)
        above = 1.0 if level == 255 else cumulative(centre + 1 / 255)
        got = bin_log_probability(torch.tensor([float(level)], dtype=torch.float64), mean, scale)
        assert float(got) == pytest.approx(math.log(above - below), rel=1e-9)


def test_far_bins_stay_ordered_in_float32() -> None:
    """200 levels from a sharp component nothing is lost: nearer is likelier, by its exact slope, with finite gradient."""
    mean = torch.tensor([-0.9], requires_grad=True)
    scale = torch.tensor([-7.0], requires_grad=True)
    bins = bin_log_probability(torch.arange(212.0, 254.0), mean, scale)[:, 0]
    slope = -2 / 255 / math.exp(-7.0)
    assert torch.allclose(bins.detach().diff(), torch.full((41,), slope), rtol=1e-3)
    bins.sum().backward()
    assert mean.grad is not None and scale.grad is not None
    assert bool(torch.isfinite(mean.grad).all() and torch.isfinite(scale.grad).all())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mixture_is_a_distribution_over_pixels(channels: int) -> None:
    """Each channel's bins, weighted as the mixture has it given the channels before, sum to one; their product is the pixel's."""
    torch.manual_seed(3)
    mixture = Mixture(torch.randn(4 * parameters_a_component(channels), dtype=torch.float64), channels)
    pixel = torch.tensor([17.0, 140.0, 250.0], dtype=torch.float64)[:channels]
    every = torch.arange(256, dtype=torch.float64)
    joint, product_of_conditionals = mixture.log_weights, 0.0
    for channel in range(channels):
        bins = mixture.bins(channel, to_unit(pixel[:channel]), every)
        conditional = (joint + bins).logsumexp(-1) - joint.logsumexp(-1)
        assert float(conditional.exp().sum()) == pytest.approx(1, abs=1e-12)
        product_of_conditionals += float(conditional[int(pixel[channel])])
        joint = joint + bins[int(pixel[channel])]
    assert float(mixture.log_probability(pixel)) == pytest.approx(product_of_conditionals, abs=1e-12)


def test_blue_depends_on_red_and_green_each_by_a_coefficient_of_its_own() -> None:
    """Eq. 3 of PixelCNN++: changing one coefficient moves exactly the channels that it is for."""
    count = 2
    base = torch.zeros(count * parameters_a_component(3), dtype=torch.float64)
    earlier, every = torch.tensor([0.5, -0.7], dtype=torch.float64), torch.arange(256, dtype=torch.float64)
    for coefficient, moved in enumerate([[1], [2], [2]]):
        changed = base.clone()
        changed[count * (7 + coefficient)] = 0.8
        before, after = Mixture(base, 3), Mixture(changed, 3)
        differs = [not torch.equal(before.bins(c, earlier[:c], every)[:, 0], after.bins(c, earlier[:c], every)[:, 0]) for c in range(3)]
        assert [c for c in range(3) if differs[c]] == moved


# The network.


@pytest.mark.parametrize("channels", [1, 3])
def test_no_pixel_sees_itself_or_what_comes_after(channels: int) -> None:
    """Changing one channel of one pixel changes no prediction up to and including that pixel, bit for bit; some later ones it does."""
    model, x = network(channels), levels(1, channels, 7, 9)
    before = model(x)
    order = torch.arange(63).view(1, 7, 9)
    for row, column, channel in product((0, 3, 6), (0, 4, 8), range(channels)):
        changed = x.clone()
        changed[0, channel, row, column] = 255 - changed[0, channel, row, column]
        differs = (model(changed) != before).any(-1)
        here = row * 9 + column
        assert not bool(differs[order <= here].any())
        assert (row, column) == (6, 8) or bool(differs[order > here].any())


def test_within_a_pixel_later_channels_see_earlier_ones_only() -> None:
    """The likelihood's part of a channel does not change with the channels after it."""
    model, x = network(), levels(1, 3, 4, 4)
    mixture = Mixture(model(x), 3)
    pixels = x.permute(0, 2, 3, 1)
    every = torch.arange(256, dtype=torch.float64).expand(1, 4, 4, 256)
    for channel in range(3):
        changed = pixels.clone()
        changed[..., channel:] = 255 - changed[..., channel:]
        before = mixture.bins(channel, to_unit(pixels)[..., :channel], every)
        assert torch.equal(before, mixture.bins(channel, to_unit(changed)[..., :channel], every))


def test_the_reach_is_what_the_layers_say() -> None:
    """A pixel sees as far up as the layers' radii together, no further, and around the corner what lies right above."""
    model, x = network(1), levels(1, 1, 12, 12)
    before = model(x)
    for (row, column), seen in (((5, 6), True), ((4, 6), False), ((10, 1), True), ((10, 0), False), ((9, 8), True)):
        changed = x.clone()
        changed[0, 0, row, column] = 255 - changed[0, 0, row, column]
        assert bool((model(changed) != before)[0, 10, 6].any()) is seen, (row, column)


@pytest.mark.parametrize(("radius", "centre"), [(1, True), (3, False)])
def test_a_convolution_sees_what_comes_before_and_no_more(radius: int, centre: bool) -> None:
    """Of a square around its pixel: the rows above, what is left of it in its own row, and with `centre` itself."""
    conv = CausalConv(1, 1, radius, centre=centre)
    nn.init.ones_(conv.weight)
    nn.init.zeros_(cast(Tensor, conv.bias))
    impulses = torch.eye(81).view(81, 1, 9, 9)
    seen = {(cell // 9 - 4, cell % 9 - 4) for cell in conv(impulses)[:, 0, 4, 4].nonzero().flatten().tolist()}
    square = product(range(-radius, radius + 1), repeat=2)
    assert seen == {place for place in square if place < (0, 0) or (centre and place == (0, 0))}


def test_the_border_is_told_from_grey() -> None:
    """Outside the image is not the same as the level in the middle: the plane of ones says so."""
    model = network(1)
    inside = model(torch.full((1, 1, 8, 8), 127.5, dtype=torch.float64))
    assert not torch.equal(inside[0, 0, 0], inside[0, 7, 4])


# Decoding.


def slow(model: PixelCNN, x: Tensor, epsilon: int) -> Tensor:
    """Greedy decoding by the whole network at every pixel, and every channel's levels one by one."""
    out = x.clone()
    for row, column in product(range(x.shape[2]), range(x.shape[3])):
        parameters = model(out)[:, row, column]
        for image in range(len(x)):
            mixture = Mixture(parameters[image], x.shape[1])
            joint, told = mixture.log_weights, torch.empty(0, dtype=torch.float64)
            for channel in range(x.shape[1]):
                start = int(x[image, channel, row, column])
                best, best_score = 0, -math.inf
                for level in range(max(0, start - epsilon), min(255, start + epsilon) + 1):
                    bins = mixture.bins(channel, told, torch.tensor([float(level)], dtype=torch.float64))[0]
                    score = float((joint + bins).logsumexp(-1))
                    if score > best_score:
                        best, best_score, best_bins = level, score, bins
                joint = joint + best_bins
                told = torch.cat([told, to_unit(torch.tensor([float(best)], dtype=torch.float64))])
                out[image, channel, row, column] = best
    return out


@pytest.mark.parametrize(("channels", "epsilon"), [(3, 16), (1, 40), (3, 0)])
def test_decoding_equals_the_slow_way(channels: int, epsilon: int) -> None:
    """Layer by layer at one place, for all images at once, gives what the whole network gives at every pixel anew."""
    model, x = network(channels), levels(2, channels, 4, 5)
    fast = decode(model, x, epsilon)
    assert torch.equal(fast, slow(model, x, epsilon))
    assert torch.equal(fast, x) is (epsilon == 0)


def test_the_decoder_gives_the_networks_parameters() -> None:
    """Told an image pixel by pixel, it has the parameters of the network in one pass, at every place."""
    model, x = network(), levels(2, 3, 6, 7)
    decoder = pixelcnn.Decoder(model, 2, 7)
    whole = model(x)
    for row, column in pixelcnn.pixels_in_order(6, 7, decoder):
        assert torch.allclose(decoder.at(column), whole[:, row, column], rtol=1e-12, atol=1e-12)
        decoder.put(column, x[:, :, row, column])


def test_decoded_levels_stay_within_epsilon_and_within_range() -> None:
    """Also where the image is black or white; with 255, where nothing holds, something moves further."""
    model = network()
    for x in (levels(2, 3, 5, 5), torch.zeros(1, 3, 5, 5).double(), torch.full((1, 3, 5, 5), 255.0).double()):
        for epsilon in (1, 16, 255):
            moved = decode(model, x, epsilon)
            assert float((moved - x).abs().max()) <= epsilon
            assert float(moved.min()) >= 0 and float(moved.max()) <= 255
            assert torch.equal(moved, moved.round())
    assert float((moved - x).abs().max()) > 16


def test_of_levels_alike_in_probability_the_lowest_is_taken() -> None:
    """A component so flat that all levels are alike leaves a pixel at the lowest of its range."""
    parameters = torch.zeros(1, parameters_a_component(1), dtype=torch.float64)
    parameters[0, 2] = 60.0
    assert likeliest(Mixture(parameters, 1), torch.tensor([[100.0]], dtype=torch.float64), 5).item() == 95


# Training.


@pytest.fixture(scope="module")
def trained() -> PixelCNNTrainer:
    """A narrow network, trained for a few steps."""
    return train(steps=60)


def train(steps: int, seed: int = 0, precision: str = "float32") -> PixelCNNTrainer:
    config = BaselineConfig("crops", steps=steps, batch_size=8, seed=seed, precision=precision)
    trainer = PixelCNNTrainer(config, dataset(), CPU, PixelCNNArchitecture(3, 8, 1, 3))
    trainer.reports = list(trainer.run(measure_every=20))  # type: ignore[attr-defined]
    return trainer


def test_training_learns(trained: PixelCNNTrainer) -> None:
    """Bits fall well below the 8 of a uniform guess, on images that it did not see."""
    reports: list[Any] = trained.reports  # type: ignore[attr-defined]
    assert [report.step for report in reports] == list(range(1, 61))
    assert [report.step for report in reports if report.measured is not None] == [20, 40, 60]
    assert reports[-1].measured < 6.5 < reports[0].loss
    assert reports[-1].images_per_second > 0


def test_bits_are_those_of_the_likelihood(trained: PixelCNNTrainer) -> None:
    """`measure` is the mean of -log2 p over all channels of all pixels of the test images."""
    x = trained.dataset.test.pixels[:16].float()
    with torch.no_grad():
        nats = trained.model.eval().log_probability(x)
    assert trained.measure(16) == pytest.approx(-float(nats.sum()) / (16 * 3 * 16 * 16 * math.log(2)), rel=1e-5)
    assert trained.measure(16) == pytest.approx(float(bits_per_dimension(nats, 3)), rel=1e-5)


def test_the_seed_decides_the_weights() -> None:
    """The same seed trains the same weights whatever was drawn before; another one others; the global stream stays as it was."""
    torch.manual_seed(5)
    first = train(3).model.state_dict()
    torch.manual_seed(6)
    before = torch.random.get_rng_state()
    second, other = train(3).model.state_dict(), train(3, seed=1).model.state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_mixed_precision_trains_alike() -> None:
    """In bfloat16 the first steps' losses are those in float32, to its precision; the weights stay float32."""
    full, half = train(5), train(5, precision="bfloat16")
    losses = [[report.loss for report in trainer.reports] for trainer in (full, half)]  # type: ignore[attr-defined]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())


def test_training_ends_when_the_loss_is_not_finite() -> None:
    """A collapse is one line with what to do."""
    trainer = PixelCNNTrainer(BaselineConfig("crops"), dataset(), CPU, PixelCNNArchitecture(3, 4, 1, 1))
    with torch.no_grad():
        trainer.model.enter.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"collapsed at step 1.*--lr"):
        trainer.step()


@pytest.mark.parametrize(
    "values", [{"steps": 0}, {"batch_size": 0}, {"seed": -1}, {"seed": 2**32}, {"lr": 0.0}, {"lr": math.nan}, {"precision": "float16"}]
)
def test_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    """Each on one line that names the setting."""
    with pytest.raises(UsageError, match=next(iter(values)).replace("_", "-") + "|float16") as caught:
        BaselineConfig(**values)
    assert "\n" not in str(caught.value)


def test_the_learning_rate_rises_and_falls() -> None:
    """Up over the first twentieth, down to nearly nothing at the last step, never above the peak."""
    config = BaselineConfig(steps=100)
    factors = [config.lr_factor(step) for step in range(100)]
    assert factors.index(max(factors)) in (4, 5) and max(factors) <= 1
    assert factors[:5] == sorted(factors[:5]) and factors[5:] == sorted(factors[5:], reverse=True)
    assert 0 < factors[-1] < 0.03


# Weight files, and the defence.


@pytest.fixture(scope="module")
def weight_file(trained: PixelCNNTrainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of that network."""
    path = tmp_path_factory.mktemp("weights") / "p.safetensors"
    save_network(path, trained.kind, trained.model, trained.record())
    return path


def test_a_weight_file_gives_the_network_again(weight_file: Path, trained: PixelCNNTrainer) -> None:
    """The same architecture, values and record; evaluation mode, no gradients."""
    loaded = pixelcnn.load(weight_file)
    x = crops()[:2].float()
    assert loaded.model.architecture == PixelCNNArchitecture(3, 8, 1, 3)
    kept, given = trained.model.state_dict(), loaded.model.state_dict()
    assert given.keys() == kept.keys() and all(torch.equal(given[name], kept[name]) for name in kept)
    assert torch.allclose(loaded.model(x), trained.model.eval()(x), atol=1e-5)
    assert not loaded.model.training and not any(parameter.requires_grad for parameter in loaded.model.parameters())
    record = loaded.training
    assert (record["steps"], record["seed"], record["data"], record["test_images"]) == (60, 0, "crops", 16)
    assert record["measured"] == pytest.approx(trained.measure(16), abs=1e-3)


def test_pixeldefend_purifies_real_crops(weight_file: Path) -> None:
    """Images stay within epsilon, come back in whole levels, become likelier, and the settings say what decided."""
    defence = make_defence(f"pixeldefend:weights={weight_file},epsilon=8", device="cpu")
    noisy = (crops()[:3].float() + 8 * torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)).sign()).clamp(0, 255)
    x = noisy / 255
    y = defence(x)
    assert y.dtype == torch.float32 and y.shape == x.shape
    assert float((y - x).abs().max()) <= 8 / 255 + 1e-6
    assert torch.allclose(y * 255, (y * 255).round(), atol=1e-4)
    model = pixelcnn.load(weight_file).model
    assert float(model.log_probability((y * 255).round()).mean()) > float(model.log_probability(noisy).mean()) + 0.5
    assert torch.equal(y, defence(x)) and not defence.stochastic
    assert defence.gradients == ("identity",)
    settings = json.loads(json.dumps(defence.settings))
    assert settings["epsilon"] == 8 and len(settings["sha256"]) == 64


def test_a_batch_is_decoded_as_its_images_are(weight_file: Path) -> None:
    """Images do not see each other, also across the batches that are decoded together."""
    defence = make_defence(f"pixeldefend:weights={weight_file}", device="cpu")
    x = crops()[:3, :, :6, :6].float() / 255
    repeated = x.repeat(50, 1, 1, 1)
    assert torch.allclose(defence(repeated), defence(x).repeat(50, 1, 1, 1), atol=1.5 / 255)
    assert float((defence(repeated) == defence(x).repeat(50, 1, 1, 1)).float().mean()) > 0.99


def test_pixeldefend_refuses_other_channels(weight_file: Path) -> None:
    """A grey image and a network for colour are an error on one line."""
    with pytest.raises(UsageError, match="3 channels, the images have 1"):
        make_defence(f"pixeldefend:weights={weight_file}", device="cpu")(torch.rand(1, 1, 8, 8))


def _rewritten(path: Path, out: Path, *, drop: str = "", add: dict[str, Tensor] | None = None, **header: Any) -> Path:
    """The file with other tensors or another header."""
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != drop} | (add or {})
    data = path.read_bytes()
    meta = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][KEY]) | header
    save_file(tensors, out, {KEY: json.dumps(meta)})
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": "enter.weight"}, "tensor 'enter.weight' is missing"),
        ({"add": {"more": torch.zeros(1)}}, r"tensor 'more' is \(1,\), its header's architecture has none"),
        ({"add": {"leave.bias": torch.zeros(3)}}, "tensor 'leave.bias'"),
        ({"add": {"enter.bias": torch.full((8,), math.nan)}}, "not finite"),
        ({"add": {"enter.bias": torch.zeros(8, dtype=torch.float16)}}, "not float32"),
        ({"kind": "hgd"}, "holds the weights of 'hgd'"),
        ({"format_version": 0}, "format version"),
        ({"architecture": {"width": 10**9}}, "width must be a whole number from 1 to 512"),
        ({"architecture": {"width": "8"}}, "width must be"),
        ({"architecture": {"channels": True}}, "channels must be 1 or 3"),
        ({"architecture": {"wide": 8}}, "wide"),
        ({"architecture": [8]}, "not a weight file for pixelcnn"),
        ({"architecture": {"channels": 3, "width": 512, "depth": 64, "mixtures": 64}}, "tensor"),
        ({"training": 5}, "not a weight file for pixelcnn"),
    ],
)
def test_damaged_weight_files_are_refused(weight_file: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """What is wrong, and what makes a right one, on one line."""
    path = _rewritten(weight_file, tmp_path / "bad.safetensors", **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        pixelcnn.load(path)
    assert "\n" not in str(caught.value) and "train-baseline pixelcnn" in str(caught.value)


def test_files_of_another_kind_are_refused(weight_file: Path, small_weights: Path, tmp_path: Path) -> None:
    """ComDefend's weights, bytes that are no safetensors, a truncated file, a folder and no file: each an error on one line."""
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "short").write_bytes(weight_file.read_bytes()[:-10])
    for path in (
        small_weights,
        tmp_path / "noise",
        tmp_path / "empty",
        tmp_path / "short",
        tmp_path,
        tmp_path / "absent",
        Path("x" * 5000),
    ):
        with pytest.raises(ComdefendError) as caught:
            pixelcnn.load(path)
        assert "\n" not in str(caught.value)


def test_a_weight_file_is_not_replaced_unasked(weight_file: Path, trained: PixelCNNTrainer) -> None:
    """Writing over a file needs `overwrite`."""
    before = weight_file.read_bytes()
    with pytest.raises(UsageError, match="already exists"):
        save_network(weight_file, trained.kind, trained.model, {})
    assert weight_file.read_bytes() == before


def test_grey_images_train_and_decode(tmp_path: Path) -> None:
    """One channel goes through all of it."""
    config = BaselineConfig("crops", steps=2, batch_size=4)
    trainer = PixelCNNTrainer(config, dataset(8, 1), CPU)
    assert trainer.model.architecture.channels == 1
    assert np.isfinite([report.loss for report in trainer.run()]).all()
    save_network(tmp_path / "grey.safetensors", trainer.kind, trainer.model, trainer.record())
    x = crops(8, 1)[:2].float() / 255
    assert make_defence(f"pixeldefend:weights={tmp_path / 'grey.safetensors'}", device="cpu")(x).shape == x.shape
