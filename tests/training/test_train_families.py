"""Training residual networks, and training on several sources: what is drawn, shared, resumed and minimized."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import photo, small_model
from torch import Tensor, nn

from comdefend_cli.classifiers.loading import ClassifierHeader, build
from comdefend_cli.data.drawings import Drawings
from comdefend_cli.data.mixture import join_datasets
from comdefend_cli.data.sources import Crops, Dataset, ImageArray
from comdefend_cli.errors import TrainingError, UsageError
from comdefend_cli.network.architecture import PaperArchitecture, ResidualArchitecture
from comdefend_cli.training import loop, purifier
from comdefend_cli.training.checkpoint import load_checkpoint, save_checkpoint
from comdefend_cli.training.config import TrainConfig, name_networks
from comdefend_cli.training.history import History
from comdefend_cli.training.objective import FeatureDistance, noisy_code
from comdefend_cli.training.purifier import PurifierTrainer

CPU = torch.device("cpu")
#: Networks of the second family that train in moments.
RESIDUAL = {"arch": "residual", "width": 8, "blocks": 1}
#: All that can be done to images.
VARIED = {"jitter": 0.5, "small": 0.3, "input_noise": 20.0}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def parts() -> list[Dataset]:
    """Crops of 16x16 in memory twice, drawings of 32x32, and crops of a photograph that is made smaller."""
    image = torch.from_numpy(photo("astronaut.png")).permute(2, 0, 1)
    labels = torch.empty(0, dtype=torch.int64)
    crops = torch.stack([image[:, y : y + 16, x : x + 16] for y in range(0, 480, 40) for x in range(0, 480, 40)])
    first = Dataset("crops", ImageArray(crops[:120], labels), ImageArray(crops[120:], labels))
    drawn = Drawings(32)
    second = Dataset("drawings", drawn, ImageArray(drawn.batch(4, torch.Generator().manual_seed(0)), labels))
    return [first, second, first, Dataset("folder:x", Crops([image], 32, 3), first.test)]


@pytest.fixture(scope="module")
def mixture(parts: list[Dataset]) -> Dataset:
    """All of them."""
    return join_datasets(parts)


def config(**changes: object) -> TrainConfig:
    """A short run of residual networks."""
    return TrainConfig(**{"data": "made", "steps": 8, "batch_size": 4, "warmup": 2, **RESIDUAL, **changes})  # type: ignore[arg-type]


def weights_of(trainer: PurifierTrainer) -> Tensor:
    """All weights in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("changes", [{}, {"downscale": 4}, {"loss": "rmse"}, {"blocks": 0}, {"optimizer": "adam", "lr": 3e-3}])
def test_residual_networks_train(parts: list[Dataset], changes: dict[str, object]) -> None:
    """Sixty steps lower the loss and raise the PSNR; Muon takes the kernels within, of which there may be none."""
    run = PurifierTrainer(config(steps=60, batch_size=8, **changes), parts[0], CPU)
    first = run.validate()
    reports = list(run.run(measure_every=60))
    losses = [report.loss for report in reports]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert reports[-1].measured is not None and reports[-1].measured > first + 1


def test_the_settings_name_the_networks() -> None:
    """An architecture makes settings that make it again, but for its channels."""
    for architecture in (PaperArchitecture(3, 8), ResidualArchitecture(3, 4, 4, 24, 5), ResidualArchitecture(1, 12)):
        assert TrainConfig(channels=architecture.channels, **name_networks(architecture)).architecture == architecture


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "other"}, "use paper or residual"),
        ({"downscale": 3}, "downscale must be"),
        ({"width": 0}, "width must be"),
        ({"blocks": 65}, "blocks must be"),
        ({"loss": "l1"}, "use mse or rmse"),
        ({"crop": 7}, "crop must be"),
        ({"shrink": 0}, "shrink must be"),
        ({"jitter": 1.1}, "jitter must be"),
        ({"small": -0.1}, "small must be"),
        ({"small": math.nan}, "small must be"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    """Each value that a run cannot have is an error of usage in one line."""
    with pytest.raises(UsageError, match=message) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [VARIED, {**VARIED, "gray": True, "channels": 1, "bits": 4}])
def test_a_mixture_resumed_equals_uninterrupted(mixture: Dataset, tmp_path: Path, changes: dict[str, object]) -> None:
    """Stopped after three steps and continued from the checkpoint: the same sources, losses and weights, bit for bit."""
    whole = PurifierTrainer(config(**changes), mixture, CPU)
    expected = [report.loss for report in whole.run()]
    first, history = PurifierTrainer(config(**changes), mixture, CPU), History("psnr")
    for report in first.run():
        history.append(report)
        first.stop_asked = report.step == 2  # Seen in the step after.
    save_checkpoint(tmp_path / "run.checkpoint", first, history)
    second = PurifierTrainer(config(**changes), mixture, CPU)
    history = load_checkpoint(tmp_path / "run.checkpoint", second)
    assert second.step_done == 3
    for report in second.run():
        history.append(report)
    assert list(history.columns["loss"]) == expected
    assert torch.equal(weights_of(second), weights_of(whole))
    with pytest.raises(TrainingError, match=r"--jitter 0\.5, not 0\.25"):
        load_checkpoint(tmp_path / "run.checkpoint", PurifierTrainer(config(**{**changes, "jitter": 0.25}), mixture, CPU))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_batch_of_a_mixture(mixture: Dataset, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Whatever source and size a step draws, all processes draw the same, and their shares make up the batch that one alone has."""
    whole = PurifierTrainer(config(**VARIED), mixture, CPU)
    shares = []
    for rank in range(count):
        for module in (loop, purifier):
            monkeypatch.setattr(module, "find_place", lambda rank=rank: (rank, count))
        shares.append(PurifierTrainer(config(**VARIED), mixture, CPU))
    sizes, places = set(), set()
    for step in range(20):
        place, *expected = whole._draw(step)
        drawn = [share._draw(step) for share in shares]
        assert {each[0] for each in drawn} == {place}
        for index, tensor in enumerate(expected, 1):
            assert torch.equal(torch.cat([each[index] for each in drawn]), tensor)
        assert len({len(each[1]) for each in drawn}) == 1
        places.add(place)
        sizes.add(expected[0].shape[2:])
    assert places == {0, 1, 2, 3} and len(sizes) > 2


def test_grey_runs_learn_from_grey_and_are_measured_on_grey(parts: list[Dataset]) -> None:
    """Colour and grey parts, made grey, train networks of one channel; test images are grey as well; without it they do not fit."""
    gray = Dataset("gray", ImageArray(parts[0].train.pixels[:, :1], torch.empty(0)), parts[0].test)  # type: ignore[attr-defined]
    run = PurifierTrainer(config(gray=True, channels=1, bits=4), join_datasets([parts[0], gray], gray=True), CPU)
    assert run.test_images.shape == (24, 1, 16, 16) and run.model.architecture.channels == 1
    assert all(run._draw(step)[1].shape[1] == 1 for step in range(6))
    run.step()
    assert run.measure(4)["test_images"] == 4
    with pytest.raises(UsageError, match="has 3 channels, not 1"):
        PurifierTrainer(config(channels=1), parts[0], CPU)


def test_each_part_has_the_features_of_its_own_classifier(mixture: Dataset) -> None:
    """The loss adds the distance in the classifier of the part that a step draws, and nothing where it has none, or the images are tiny."""
    torch.manual_seed(0)
    one, other = (build(ClassifierHeader("small", 3, ("a", "b"), (0.5,) * 3, (0.25,) * 3)).eval() for _ in range(2))
    chosen: list[list[nn.Module]] = [[one], [], [one], [other]]
    plain = PurifierTrainer(config(), mixture, CPU)
    weights = [0.5, 0.0, 0.0, 2.0]
    run = PurifierTrainer(config(feature_weight=0.5), mixture, CPU, features=chosen)
    single = PurifierTrainer(config(feature_weight=weights), mixture, CPU, features=chosen)
    with pytest.raises(UsageError, match="3 values for 4 parts"):
        PurifierTrainer(config(feature_weight=weights[:3]), mixture, CPU, features=chosen)
    places = set()
    for step in range(12):
        place, clean, x, noise = run._draw(step)
        found, weighted, without = (float(each._objective(x, clean, noise, place)[0].detach()) for each in (run, single, plain))
        rebuilt = run.model.rec(noisy_code(run.model.com(x), noise, 20.0))
        distance = sum(float(FeatureDistance(classifier)(rebuilt, clean)[0].detach()) for classifier in chosen[place])
        assert found == pytest.approx(without + 0.5 * distance, rel=1e-4)
        assert weighted == pytest.approx(without + weights[place] * distance, rel=1e-4)
        assert (found == without) == (not chosen[place])
        places.add(place)
        tiny = [part[:, :, :15, :15].contiguous() for part in (x, clean, noise)]
        assert float(run._objective(*tiny, place)[0].detach()) == float(plain._objective(*tiny, place)[0].detach())
    assert places == {0, 1, 2, 3}


def test_each_part_has_its_own_noise(mixture: Dataset) -> None:
    """Images of a part get noise of its own range; lists of unlike lengths, and a least above the most of a part, are refused."""
    run = PurifierTrainer(config(input_noise=[0.0, 2.0, 90.0, 2.0], input_noise_min=[0.0, 1.0, 80.0, 1.0], jitter=0.0), mixture, CPU)
    seen: dict[int, float] = {}
    for step in range(24):
        place, clean, x, _ = run._draw(step)
        seen[place] = float((x - clean).std() * 255)
    assert seen[0] == 0 and 0.3 < seen[1] < 3 and 20 < seen[2] < 90 and 0.3 < seen[3] < 3
    with pytest.raises(UsageError, match="unlike numbers of parts: 2, 4"):
        config(input_noise=[1.0] * 4, feature_weight=[1.0] * 2)
    with pytest.raises(UsageError, match="at most input-noise"):
        config(input_noise=[1.0, 9.0], input_noise_min=[0.5, 10.0])
    with pytest.raises(UsageError, match="0 or more"):
        config(input_noise=[1.0, -1.0])


def test_a_classifier_of_several_parts_is_hooked_once(mixture: Dataset) -> None:
    """A foreign network's blocks are looked at by one distance, however many parts it is for."""
    torch.manual_seed(0)
    body = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(3)])
    foreign = nn.Sequential(body, nn.Sequential(nn.Flatten(), nn.LazyLinear(2)))
    foreign(torch.zeros(1, 3, 16, 16))
    PurifierTrainer(config(), mixture, CPU, features=[[foreign], [], [foreign], [foreign]])
    assert [len(block._forward_hooks) for block in body] == [1, 1, 1]


def test_going_on_from_residual_weights(parts: list[Dataset]) -> None:
    """A run starts from weights of its own family and sizes, and leaves them alone; others are refused in one line."""
    start = small_model(family="residual-2")
    run = PurifierTrainer(config(width=16, blocks=2), parts[0], CPU, start=start)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(run.model.parameters(), start.parameters(), strict=True))
    before = [parameter.clone() for parameter in start.parameters()]
    run.step()
    assert all(torch.equal(kept, parameter) for kept, parameter in zip(before, start.parameters(), strict=True))
    for changes in ({"downscale": 4}, {"width": 8}, {"blocks": 1}, {"arch": "paper"}):
        with pytest.raises(UsageError, match="start from") as caught:
            PurifierTrainer(config(**{"width": 16, "blocks": 2, **changes}), parts[0], CPU, start=start)
        assert "\n" not in str(caught.value)


def test_gradients_are_no_longer_than_the_clip(parts: list[Dataset]) -> None:
    """A step's gradient keeps its direction and gets the length asked for; a shorter one stays as it is."""
    found = []
    for clip in (0.0, 1e-3, 1e3):
        run = PurifierTrainer(config(width=16, blocks=2, clip=clip), parts[0], CPU)
        run.step()
        found.append(torch.cat([parameter.grad.flatten() for parameter in run.model.parameters() if parameter.grad is not None]))
    free, short, long = found
    assert torch.equal(free, long) and float(free.norm()) > 1e-3
    assert float(short.norm()) == pytest.approx(1e-3, rel=1e-3)
    assert float(torch.cosine_similarity(free, short, 0)) == pytest.approx(1, abs=1e-4)
