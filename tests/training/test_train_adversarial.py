"""ComDefend trained against attacks through itself and a frozen classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from comdefend_cli.classifiers.loading import ClassifierHeader, build
from comdefend_cli.data.mixture import Mixture
from comdefend_cli.data.sources import Crops, Dataset, ImageArray
from comdefend_cli.errors import UsageError
from comdefend_cli.training.adversarial import AdversarialTrainer
from comdefend_cli.training.config import TrainConfig
from comdefend_cli.training.history import History
from comdefend_cli.training.purifier import PurifierTrainer

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    arch="residual", width=8, blocks=1, batch_size=8, steps=6, warmup=1, adversarial="pgd", adversarial_steps=3, seed=3, lr=0.01
)


class Sides(nn.Module):
    """Two classes by which half of the image is brighter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(6.0))

    def forward(self, x: Tensor) -> Tensor:
        difference = x[..., :8].mean((1, 2, 3)) - x[..., 8:].mean((1, 2, 3))
        return torch.stack([difference, -difference], 1) * self.scale


class Answers(nn.Module):
    """A classifier that is a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.fixture
def dataset() -> Dataset:
    """Images of 16x16 with noise, brighter on one side by a little; mirrored, a side's label would not hold, so both halves are alike."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(60, 200, (40, 3, 16, 16), generator=generator).to(torch.uint8)
    labels = torch.arange(40) % 2
    return Dataset("made", ImageArray(pixels, labels), ImageArray(pixels[:8], labels[:8]))


@pytest.mark.parametrize(("attack", "reach"), [("fgsm", 3.0), ("pgd", 1.0)])
def test_attacks_stay_near_and_do_harm(dataset: Dataset, attack: str, reach: float) -> None:
    """Within [0, 1] and epsilon, FGSM's start besides, and worse for the classifier behind the networks than that start."""
    run = AdversarialTrainer(replace(CONFIG, adversarial=attack), dataset, CPU, [Sides()])
    clean, labels, start, _ = run.draw_labelled()
    attacked = run._attack(run.systems[0], clean, labels, start)
    assert float((attacked - clean).abs().max()) <= reach * 8 / 255 + 1e-6 and float(attacked.min()) >= 0 and float(attacked.max()) <= 1
    random = (clean + start * max(1.0, reach - 1) * 8 / 255).clamp(0, 1)
    with torch.no_grad():
        harmed, harmless = (float(cross_entropy(run.systems[0](x), labels)) for x in (attacked, random))
    assert harmed > harmless


def test_images_are_shifted_and_keep_their_labels(dataset: Dataset) -> None:
    """By up to four pixels each way, reflected at the border, some of them mirrored, the same in every run of a step."""
    run = AdversarialTrainer(replace(CONFIG, batch_size=64), dataset, CPU, [Sides()])
    clean, labels, _, _ = run.draw_labelled()
    assert torch.equal(clean, run.draw_labelled()[0])
    run.step_done = 1
    assert not torch.equal(clean, run.draw_labelled()[0])
    train = dataset.train
    assert isinstance(train, ImageArray)
    known = torch.cat([train.pixels, train.pixels.flip(3)]).float().div(255)
    wide = pad(known, (4,) * 4, mode="reflect")
    shifts = torch.stack([wide[..., top : top + 16, left : left + 16] for top in range(9) for left in range(9)])
    for image, label in zip(clean, labels, strict=True):
        places = torch.nonzero((shifts - image).abs().amax((2, 3, 4)) < 1e-6)[:, 1] % 40
        assert len(places) and all(int(train.labels[place]) == int(label) for place in places)
    shifted = [not bool(((known - image).abs().amax((1, 2, 3)) < 1e-6).any()) for image in clean]
    assert sum(shifted) > 50  # All but one place of 81.


@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.5, 4), (1.0, 8)])
def test_a_share_of_the_batch_is_attacked(dataset: Dataset, share: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first images of it; the others reach the networks as they are."""
    run = AdversarialTrainer(replace(CONFIG, adversarial_share=share), dataset, CPU, [Sides()])
    seen: list[Tensor] = []
    rebuild = run._objective.rebuild
    monkeypatch.setattr(run._objective, "rebuild", lambda x, *rest: (seen.append(x), rebuild(x, *rest))[1])
    run.losses()
    changed = (seen[0] != run.draw_labelled()[0]).flatten(1).any(1)
    assert changed.tolist() == [True] * count + [False] * (8 - count)


def test_the_classifier_stays_and_the_networks_learn(dataset: Dataset) -> None:
    """Its weights and its mode are as they were; the networks change."""
    torch.manual_seed(0)
    classifier = build(ClassifierHeader("small", 3, ("a", "b"), (0.5,) * 3, (0.25,) * 3)).eval()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    run = AdversarialTrainer(CONFIG, dataset, CPU, [classifier])
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    reports = list(run.run(measure_every=3))
    assert len(reports) == 6 and reports[-1].measured is not None
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items()) and not classifier.training
    assert any(not torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())


def test_classifiers_take_turns(dataset: Dataset) -> None:
    """One a step, the second one in the second step; once around, the rounding has another gradient."""
    asked: list[int] = []

    class Noted(Sides):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def forward(self, x: Tensor) -> Tensor:
            asked.append(self.number)
            return super().forward(x)

    run = AdversarialTrainer(replace(CONFIG, classifier="a+b"), dataset, CPU, [Noted(0), Noted(1)])
    asked.clear()
    seen = []
    for _ in range(4):
        run.step()
        seen.append((set(asked), run.systems[max(asked)].gradient))
        asked.clear()
    assert seen == [({0}, "soft"), ({1}, "soft"), ({0}, "straight-through"), ({1}, "straight-through")]


def test_loss_has_the_labels_of_all_images(dataset: Dataset) -> None:
    """The loss grows with the weight of the cross-entropy, by that much of it, and without it is the objective's on attacked images."""
    zero, one, two = (AdversarialTrainer(replace(CONFIG, label_weight=weight), dataset, CPU, [Sides()]) for weight in (0.0, 1.0, 2.0))
    losses = [float(run.losses()["loss"].detach()) for run in (zero, one, two)]
    assert losses[0] < losses[1] and losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)


def test_a_run_that_goes_on_is_the_undisturbed_one(dataset: Dataset) -> None:
    """All that is random in a step is of its number."""
    whole = AdversarialTrainer(CONFIG, dataset, CPU, [Sides()])
    list(whole.run(measure_every=6))
    first = AdversarialTrainer(CONFIG, dataset, CPU, [Sides()])
    for _ in range(3):
        first.step()
    rest = AdversarialTrainer(CONFIG, dataset, CPU, [Sides()])
    rest.load_state(first.state(), 3)
    history = History("psnr")
    for report in rest.run(measure_every=6):
        history.append(report)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True))


def test_without_labels_the_classifiers_own_answers_stand_for_them(dataset: Dataset) -> None:
    """To the clean images; in a mixture of two sizes, only where a source has no labels; of the classifier whose turn it is."""

    class Opposite(Sides):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flip(1)

    pictures = [torch.randint(0, 255, (3, 40, 40), generator=torch.Generator().manual_seed(seed)).to(torch.uint8) for seed in range(4)]
    crops, train = Crops(pictures, 32), dataset.train
    assert isinstance(train, ImageArray)
    wrong = replace(train, labels=torch.full((40,), 1))  # Not what either classifier says of all of them.
    mixed = Dataset("folder:x+made", Mixture((crops, wrong)), dataset.test)
    run = AdversarialTrainer(replace(CONFIG, classifier="a+b"), mixed, CPU, [Sides(), Opposite()])
    seen = set()
    for step in range(12):
        run.step_done = step
        clean, labels, start, noise = run.draw_labelled()
        assert clean.shape == start.shape and noise.shape[2:] == clean.shape[2:]
        own = (Sides(), Opposite())[step % 2](clean).argmax(1)
        assert torch.equal(labels, own if len(clean) == 8 else torch.ones_like(own))
        seen.add((len(clean), step % 2))
        run.step()
    assert seen == {(8, 0), (8, 1), (32, 0), (32, 1)}


def test_processes_share_a_batch(dataset: Dataset) -> None:
    """What two processes draw is, together, what one draws."""
    run = AdversarialTrainer(CONFIG, dataset, CPU, [Sides()])
    whole = run.draw_labelled(2)
    run.processes, halves = 2, []
    for run.rank in range(2):
        halves.append(run.draw_labelled(2))
    for index in range(3):
        assert torch.equal(torch.cat([half[index] for half in halves]), whole[index])
    first, second = (half[3].unflatten(0, (2, 4)) for half in halves)  # type: ignore[no-untyped-call]
    assert torch.equal(torch.cat([first, second], 1).flatten(0, 1), whole[3])


def test_digits_are_not_mirrored(dataset: Dataset) -> None:
    """They would be none; other images are."""
    train = dataset.train
    assert isinstance(train, ImageArray)
    lit = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    lit[..., :8] = 200
    for name, mirrored in (("mnist", False), ("fashion-mnist", True)):
        images = Dataset(name, replace(train, pixels=lit), dataset.test)
        run = AdversarialTrainer(replace(CONFIG, batch_size=32), images, CPU, [Sides()])
        clean = run.draw_labelled()[0]
        # Shifts of four pixels leave the outermost columns on their sides of the edge, or reflect them.
        brighter = clean[..., :8].mean((1, 2, 3)) > clean[..., 8:].mean((1, 2, 3))
        assert bool(brighter.all()) != mirrored


def test_grey_images_have_one_channel(dataset: Dataset) -> None:
    """Also with labels; a step takes them."""

    class OfGrey(Sides):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1] == 1
            return super().forward(x)

    run = AdversarialTrainer(replace(CONFIG, gray=True, channels=1), dataset, CPU, [OfGrey()])
    assert run.draw_labelled()[0].shape == (8, 1, 16, 16)
    run.step()


def test_what_is_refused(dataset: Dataset) -> None:
    """Input noise, images too small for a class, a batch of one, a classifier of other images, unknown attacks."""
    with pytest.raises(UsageError, match="small images are no images of a class"):
        replace(CONFIG, classifier="a", small=0.1)
    with pytest.raises(UsageError, match="input-noise"):
        replace(CONFIG, input_noise=20.0)
    with pytest.raises(UsageError, match="fgsm or pgd"):
        replace(CONFIG, adversarial="cw")
    with pytest.raises(UsageError, match="adversarial-share must be above 0"):
        replace(CONFIG, adversarial_share=0.0)
    with pytest.raises(UsageError, match="too small"):
        AdversarialTrainer(replace(CONFIG, batch_size=1), dataset, CPU, [Sides()])
    with pytest.raises(UsageError, match="logits of 2 classes"):
        AdversarialTrainer(CONFIG, dataset, CPU, [nn.Flatten(2)])
    with pytest.raises(UsageError, match=r"mine: fails on images of the shape \(2, 3, .*RuntimeError"):
        AdversarialTrainer(CONFIG, dataset, CPU, [nn.Linear(5, 2)], names=["mine"])
    with pytest.raises(UsageError, match="not finite"):
        AdversarialTrainer(CONFIG, dataset, CPU, [Answers(lambda x: Sides()(x) / 0)])
    with pytest.raises(UsageError, match="no gradient"):
        AdversarialTrainer(CONFIG, dataset, CPU, [Answers(lambda x: Sides()(x.detach()))])
    two_sizes = Dataset("made+x", Mixture((Crops([torch.zeros(3, 40, 40, dtype=torch.uint8)], 32), dataset.train)), dataset.test)
    with pytest.raises(UsageError, match=r"mine: fails on images of the shape \(2, 3, 32, 32\)"):
        AdversarialTrainer(CONFIG, two_sizes, CPU, [nn.Sequential(nn.Flatten(), nn.Linear(768, 2))], names=["mine"])
    with pytest.raises(UsageError, match="nothing would be learnt"):
        replace(CONFIG, classifier="a", label_weight=0.0)
    assert type(PurifierTrainer(replace(CONFIG, adversarial=""), dataset, CPU)) is PurifierTrainer
