"""A classifier, or a purifier before one that stays, learns for randomized smoothing: fresh noise, purified, one answer to all of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_train_adversarial import CONFIG, Sides, dataset  # noqa: F401  # The images of 16x16.
from test_train_classifier import CPU, DATA, tiny  # noqa: F401  # The small architecture.
from torch.nn.functional import cross_entropy

from comdefend_cli.classifiers.loading import Classifier
from comdefend_cli.data.sources import Dataset
from comdefend_cli.errors import UsageError
from comdefend_cli.inference.purifier import Purifier
from comdefend_cli.training.classifier_config import ClassifierConfig
from comdefend_cli.training.smoothing import SmoothedClassifierTrainer, SmoothedPurifierTrainer


def trainer(purifier: Purifier | None = None, start: Classifier | None = None, **settings: Any) -> SmoothedClassifierTrainer:
    config = ClassifierConfig(**{"data": "gratings", "arch": "tiny", "epochs": 8.0, "batch_size": 16, "sigma": 0.25, **settings})
    return SmoothedClassifierTrainer(config, DATA, ("lying", "standing"), CPU, start, purifier=purifier)


class Spy:
    """A purifier that keeps what it sees, and halves it."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def purify(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images)
        return images // 2


def test_copies_are_noisy_then_purified() -> None:
    """Each copy has noise of its own of that deviation, new each step, in 8 bits, and the network sees what the purifier makes of it."""
    spy: Any = Spy()
    run = trainer(spy, draws=3, sigma=0.1)
    inputs: list[torch.Tensor] = []
    run.model.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    clean, _ = run._batch()
    for step in range(2):
        run.step_done = step
        run.losses()
    first, second = spy.seen
    assert first.dtype == torch.uint8 and first.shape == (48, 1, 16, 16) and torch.equal(inputs[0], (first // 2).float() / 255)
    noise = first.float().view(3, 16, 1, 16, 16) / 255 - clean
    inside = ((clean > 0.35) & (clean < 0.65)).expand_as(noise)  # Far enough from black and white not to be cut.
    assert float(noise[inside].std()) == pytest.approx(0.1, rel=0.05) and abs(float(noise[inside].mean())) < 0.01
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(first, second)


def test_the_loss_is_that_of_consistency_regularization() -> None:
    """Cross-entropy of all copies, weighted divergence from the mean answer, half its entropy; computed anew in float64."""
    run = trainer(consistency=7.0, draws=3)
    with torch.no_grad():
        list(run.model.parameters())[-2].mul_(100)  # So that its answers are not all alike.
    seen: list[torch.Tensor] = []
    run.model.register_forward_hook(lambda module, given, out: seen.append(out.detach().double()))
    found = run.losses()
    _, labels = run._batch()
    answers = seen[0].softmax(1).view(3, 16, 2)
    mean = answers.mean(0)
    apart = (mean * (mean / answers).log()).sum(2).mean()
    entropy = -(mean * mean.log()).sum(1).mean()
    expected = cross_entropy(seen[0], labels.repeat(3)) + 7 * apart + 0.5 * entropy
    assert float(found["loss"].detach()) == pytest.approx(float(expected), rel=1e-5)
    assert float(found["consistency"].detach()) == pytest.approx(float(apart), rel=1e-4)


def test_it_learns_under_noise_and_resumes_exactly() -> None:
    """Stripes are told apart under noise that is stronger than they are, and a run put back half-way ends alike."""
    whole, half = trainer(epochs=20.0, sigma=0.4), trainer(epochs=20.0, sigma=0.4)
    reports = list(whole.run())
    assert reports[-1].measured is not None and reports[-1].measured > 85
    for _ in range(9):
        half.step()
    resumed = trainer(epochs=20.0, sigma=0.4)
    resumed.load_state({name: tensor.clone() for name, tensor in half.state().items()}, 9)
    list(resumed.run())
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


SMOOTHED = replace(
    CONFIG, adversarial="", sigma=0.2, draws=3, consistency=7.0, label_weight=2.0, rounded_share=1.0, loss="mse", penalty=0.5
)


def test_the_purifier_sees_noise_of_its_own_on_each_copy(dataset: Dataset) -> None:  # noqa: F811
    """Of that deviation, in 8 bits, new each step; what it should rebuild has none."""
    run = SmoothedPurifierTrainer(SMOOTHED, dataset, CPU, [Sides()])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    rebuild = run._objective.rebuild
    run._objective.rebuild = lambda x, clean, noise: (seen.append((x, clean)), rebuild(x, clean, noise))[1]  # type: ignore[method-assign]
    for step in range(2):
        run.step_done = step
        run.losses()
    run.step_done = 0
    x, clean = seen[0]
    assert x.shape == (24, 3, 16, 16) and torch.equal(clean[:8], clean[8:16]) and torch.equal(x.mul(255), x.mul(255).round())
    assert torch.equal(clean[:8], run.draw_labelled()[0]) and not torch.equal(x, seen[1][0])
    noise = (x - clean).reshape(3, -1)
    inside = (clean.reshape(3, -1)[0] - 0.5).abs() < 0.05  # Hardly any of it is cut at black or white.
    assert float(noise[:, inside].std()) == pytest.approx(0.2, rel=0.06)
    assert float(torch.corrcoef(noise[:, inside])[0, 1].abs()) < 0.15


def test_the_purifiers_loss_is_the_rebuilding_the_labels_and_consistency(dataset: Dataset) -> None:  # noqa: F811
    """Computed anew in float64 from what was rebuilt."""
    run = SmoothedPurifierTrainer(SMOOTHED, dataset, CPU, [Sides()])
    seen: list[Any] = []
    rebuild = run._objective.rebuild
    run._objective.rebuild = lambda *given: (seen.extend([given, rebuild(*given)]), seen[1])[1]  # type: ignore[method-assign]
    found = run.losses()
    (x, clean, _), (_, _, rebuilt) = seen
    labels = run.draw_labelled()[1]
    logits = Sides()(rebuilt.detach().double())
    answers = logits.softmax(1).reshape(3, 8, 2)
    mean = answers.mean(0)
    apart = (mean * (mean / answers).log()).sum(2).mean()
    code = run.model.encode(x).double()
    expected = (rebuilt.double() - clean.double()).square().mean() + 0.5 * code.square().mean()
    expected = expected + 2 * (cross_entropy(logits, labels.repeat(3)) + 7 * apart - 0.5 * (mean * mean.log()).sum(1).mean())
    assert float(found["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(found["consistency"].detach()) == pytest.approx(float(apart.detach()), rel=1e-4)


def test_processes_share_the_noise(dataset: Dataset) -> None:  # noqa: F811
    """What two processes see is, together, what one sees."""
    run = SmoothedPurifierTrainer(SMOOTHED, dataset, CPU, [Sides()])
    seen: list[torch.Tensor] = []
    rebuild = run._objective.rebuild
    run._objective.rebuild = lambda x, *rest: (seen.append(x), rebuild(x, *rest))[1]  # type: ignore[method-assign]
    run.losses()
    shares = []
    for rank in range(2):
        run.processes, run.rank = 2, rank
        # No other process answers.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("comdefend_cli.training.smoothing.average", lambda tensors: None)
            run.losses()
        shares.append(seen[-1].reshape(3, 4, 3, 16, 16))
    assert torch.equal(torch.cat(shares, 1), seen[0].reshape(3, 8, 3, 16, 16))


def test_the_classifier_stays_and_the_purifier_goes_on_as_if_undisturbed(dataset: Dataset) -> None:  # noqa: F811
    """A run put back half-way ends alike; the classifier's only weight is as it was."""
    judge = Sides()
    whole, half, rest = (SmoothedPurifierTrainer(SMOOTHED, dataset, CPU, [judge]) for _ in range(3))
    before = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    list(whole.run(measure_every=6))
    for _ in range(3):
        half.step()
    rest.load_state({name: tensor.clone() for name, tensor in half.state().items()}, 3)
    list(rest.run(measure_every=6))
    after = whole.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in rest.model.state_dict().items())
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    assert float(judge.scale) == 6.0 and judge.scale.grad is None


def test_noise_for_smoothing_is_alone() -> None:
    """Not beside attacks, nor beside the noise of each image's own strength; nor more than there is room for."""
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"adversarial": "fgsm"}, "sigma is a way to train of its own"),
        ({"input_noise": 20.0}, "sigma is a way to train of its own"),
        ({"inference_noise": 20.0}, "leave it out"),
        ({"draws": 1}, "at least 2"),
    ]
    for more, said in refusals:
        with pytest.raises(UsageError, match=said):
            replace(SMOOTHED, **more)
    with pytest.raises(UsageError, match="at least 2"):
        ClassifierConfig(sigma=0.2, consistency=1.0, draws=1)
    for wrong in ({"sigma": 2.5}, {"draws": 0}, {"consistency": -1.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            replace(SMOOTHED, **wrong)
