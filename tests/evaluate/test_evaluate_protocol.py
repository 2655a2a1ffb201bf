"""The protocol: threat models kept apart, images shared, cells kept, and the masking alarm on a defence masked on purpose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import small_model
from safetensors.torch import save_file
from torch import Tensor, nn

from comdefend_cli.classifiers.loading import Classifier
from comdefend_cli.data.labelled import Labelled
from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.attacker import LENGTHS
from comdefend_cli.evaluate.attacks.catalogue import Attack
from comdefend_cli.evaluate.cache import Cache
from comdefend_cli.evaluate.defences.base import Defence
from comdefend_cli.evaluate.defences.catalogue import make_defence
from comdefend_cli.evaluate.evaluation import Evaluation
from comdefend_cli.evaluate.protocol import Protocol
from comdefend_cli.evaluate.reporting.gallery_images import make_gallery, save_adversarial
from comdefend_cli.evaluate.systems import System, fit_classifier
from comdefend_cli.network.weight_file import save_weights

CPU = torch.device("cpu")
QUICK = Protocol(
    attacks=("fgsm", "bim", "pgd", "square"),
    epsilons=(4.0, 16.0),
    slow_epsilons=(16.0,),
    limit_adaptive=24,
    limit_black_box=16,
    steps=5,
    eot=3,
    queries=60,
)


def stripes(count: int) -> Labelled:
    """Faint noisy stripes, lying (0) or standing (1), 8x8 RGB: a small step turns the one into the other."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    wave = (torch.arange(8) % 2).float() * 16 + 120
    lying = wave.view(1, 1, 8, 1).expand(1, 3, 8, 8)
    images = torch.where(labels.view(-1, 1, 1, 1) == 0, lying, lying.transpose(2, 3))
    noise = 6 * torch.randn((count, 3, 8, 8), generator=generator)
    return Labelled("stripes", (images + noise).clamp(0, 255).round().byte(), labels, ("lying", "standing"))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """A small network that tells the stripes apart."""
    torch.manual_seed(0)
    data = stripes(64)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model((data.floats() - 0.5) * 10), data.labels).backward()
        optimizer.step()
    found = Classifier("stripes-net", "", nn.Sequential(_Spread(), model).eval().requires_grad_(False))
    assert float((found.model(data.floats()).argmax(1) == data.labels).float().mean()) == 1
    return found


class _Spread(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) * 10


class Same(Defence):
    """No defence."""

    gradients: ClassVar[tuple[str, ...]] = ("identity",)

    def __init__(self, name: str = "same") -> None:
        super().__init__(name, {"defence": name})

    def purify(self, x: Tensor) -> Tensor:
        return x


class Masked(Same):
    """Rounds to three levels with the rounding's own gradient of zero: it looks strong to whoever follows gradients."""

    gradients: ClassVar[tuple[str, ...]] = ("straight-through",)

    def purify(self, x: Tensor) -> Tensor:
        return (x * 8).round() / 8 + 0 * x


class Noisy(Same):
    """Adds noise of its own at every call."""

    def __init__(self) -> None:
        super().__init__("noisy")
        self.stochastic, self.votes = True, 3

    def purify(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.next_seed() % 2**63)
        return (x + 0.02 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def evaluation(classifier: Classifier, *defences: Defence, folder: Path | None = None, **settings: Any) -> Evaluation:
    systems = [System(classifier, defence) for defence in defences]
    return Evaluation(replace(QUICK, **settings), stripes(32), systems, Cache(folder), CPU)


def test_all_threat_models(classifier: Classifier) -> None:
    """Every system meets each attack of each threat model once an epsilon, on as many images as the protocol says."""
    done = evaluation(classifier, Same("none"), Noisy())
    cells = list(done.run())
    assert len(cells) == done.count()
    seen = {(c.defence, c.threat, c.attack, c.epsilon): c.n for c in cells}
    for defence in ("none", "noisy"):
        assert seen[defence, "clean", "", None] == 32
        for epsilon in (4.0, 16.0):
            assert [seen[defence, "grey-box", attack, epsilon] for attack in ("fgsm", "bim", "pgd")] == [32] * 3
            assert [seen[defence, "adaptive", attack, epsilon] for attack in ("fgsm", "pgd")] == [24] * 2
    # Square is made at the slow epsilon alone, and not on a random pipeline.
    assert [key for key in seen if key[2] == "square"] == [("none", "black-box", "square", 16.0)]
    assert seen["none", "black-box", "square", 16.0] == 16
    clean = next(c for c in cells if c.threat == "clean" and c.defence == "none")
    hit = next(c for c in cells if c.threat == "grey-box" and c.attack == "bim" and c.epsilon == 16 and c.defence == "none")
    assert clean.correct == 32 and hit.correct < 4
    assert hit.mean_linf <= 16 and clean.mean_linf == 0
    noisy = next(c for c in cells if c.threat == "adaptive" and c.defence == "noisy")
    assert noisy.settings["eot"] == 3


def test_an_attacker_may_try_again(classifier: Classifier) -> None:
    """An attacked image meets a random defence as often as the protocol says, and one wrong answer is enough; a clean one meets it once."""

    class Flaky(Same):
        def __init__(self) -> None:
            super().__init__("flaky")
            self.stochastic = True

        def purify(self, x: Tensor) -> Tensor:
            self.next_seed()
            return x.transpose(2, 3) if self._calls == 4 else x

    found = {}
    for times in (1, 3, 4):
        once = {"attacks": ("fgsm",), "epsilons": (1.0,), "slow_epsilons": None, "threats": ("grey-box",)}
        cells = list(evaluation(classifier, Flaky(), **once, resubmissions=times).run())
        found[times] = {cell.threat: cell.outcomes for cell in cells}
        attacked = next(cell for cell in cells if cell.threat == "grey-box")
        assert attacked.settings["resubmissions"] == times
    assert found[1]["clean"] == found[4]["clean"] and found[1]["grey-box"] == found[3]["grey-box"] != found[4]["grey-box"]
    assert any(found[1]["grey-box"]) and not any(
        once and last for once, last in zip(found[1]["grey-box"], found[4]["grey-box"], strict=True)
    )


def test_grey_box_knows_only_the_classifier(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacked model is the bare classifier, once an attack and epsilon, and all defences meet the same images."""
    seen: list[Tensor] = []
    attacked: list[nn.Module] = []

    class Watching(Same):
        def purify(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return x

    original = Attack.run

    def run(self: Attack, model: nn.Module, *args: Any, **options: Any) -> Tensor:
        attacked.append(model)
        return original(self, model, *args, **options)

    monkeypatch.setattr(Attack, "run", run)
    folder: dict[str, Any] = {"attacks": ("bim",), "threats": ("grey-box",), "epsilons": (16.0,)}
    list(evaluation(classifier, Watching("one"), Watching("two"), **folder).run())
    assert all(model is classifier.model for model in attacked)
    clean, same_clean, first, second = seen
    assert torch.equal(clean, same_clean) and torch.equal(first, second) and not torch.equal(clean, first)


def test_images_are_rounded_to_files(classifier: Classifier) -> None:
    """Grey-box images have 8-bit levels within epsilon; with float pixels they need not."""
    rounded = evaluation(classifier, Same()).make_gray_images(classifier, "bim", 4.5)
    levels = rounded * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert float((levels - stripes(32).pixels).abs().max()) == pytest.approx(4, abs=1e-3)
    floats = evaluation(classifier, Same(), float_pixels=True).make_gray_images(classifier, "bim", 4.5) * 255
    assert float((floats - floats.round()).abs().max()) > 0.01


def test_a_smallest_perturbation_serves_all_epsilons(classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepFool is run once for both epsilons, and its images are brought within each."""
    runs = []
    original = Attack.run
    monkeypatch.setattr(Attack, "run", lambda self, *a, **o: (runs.append(self.name), original(self, *a, **o))[1])
    done = evaluation(classifier, Same(), folder=tmp_path, attacks=("deepfool",), threats=("grey-box",))
    list(done.run())
    assert runs == ["deepfool"]
    for epsilon in (4, 16):
        distance = (done.make_gray_images(classifier, "deepfool", epsilon) * 255 - stripes(32).pixels).abs()
        assert float(distance.max()) <= epsilon + 0.001


def test_smallest_perturbations_outlast_rounding(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of perturbations that end just past the border, rounding undoes few: each is made the least longer that still fools."""
    data = stripes(32)

    def barely(self: Attack, model: nn.Module, x: Tensor, y: Tensor, *rest: Any, **options: Any) -> Tensor:
        found = original(self, model, x, y, *rest, **options)
        near, far = x.clone(), found
        for _ in range(20):
            middle = (near + far) / 2
            fooled = (model(middle).argmax(1) != y)[:, None, None, None]
            near, far = torch.where(fooled, near, middle), torch.where(fooled, middle, far)
        return far

    original = Attack.run
    monkeypatch.setattr(Attack, "run", barely)
    done = evaluation(classifier, Same(), attacks=("deepfool",), threats=("grey-box",))
    plain = barely(done.protocol.make("deepfool"), classifier.model, data.floats(), data.labels, 1.0, seed=0)
    undone = classifier.model((plain * 255).round() / 255).argmax(1) == data.labels
    assert int(undone.sum()) > 3
    made = done.make_gray_images(classifier, "deepfool", 255.0)
    assert torch.allclose(made * 255, (made * 255).round(), atol=1e-4)
    assert int((classifier.model(made).argmax(1) == data.labels).sum()) <= int(undone.sum()) / 4
    assert torch.equal(made[~undone], ((plain * 255).round() / 255)[~undone]), "those that outlast it as they are stay as they are"
    lengths = (made - data.floats()).abs().amax((1, 2, 3)) / (plain - data.floats()).abs().amax((1, 2, 3))
    assert float(lengths.max()) < max(LENGTHS) + 1
    cell = next(cell for cell in done.run() if cell.attack == "deepfool")
    assert cell.settings["lengths"] == LENGTHS


def test_cells_are_kept(classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run of the same evaluation attacks nothing and finds the same; another seed or weight is another cell."""
    first = list(evaluation(classifier, Same("none"), Noisy(), folder=tmp_path).run())

    def forbidden(*args: Any, **options: Any) -> Tensor:
        raise AssertionError("attacked again")

    monkeypatch.setattr(Attack, "run", forbidden)
    again = evaluation(classifier, Same("none"), Noisy(), folder=tmp_path)
    assert list(again.run()) == first
    assert again.to_json()["gradients"]
    for other in ({"seed": 1}, {"steps": 6}, {"float_pixels": True}, {"limit_adaptive": 20}):
        with pytest.raises(AssertionError, match="attacked again"):
            list(evaluation(classifier, Same("none"), folder=tmp_path, **other).run())
    changed = replace(classifier, model=nn.Sequential(_Spread(), nn.Flatten(), nn.Linear(192, 2)))
    with pytest.raises(AssertionError, match="attacked again"):
        list(evaluation(changed, Same("none"), folder=tmp_path).run())


@pytest.mark.parametrize(
    "damage",
    [
        *(("cell", {name: None}) for name in ("outcomes", "threat", "title", "seconds", "settings", "mean_linf", "epsilon")),
        *(("cell", {"outcomes": bits}) for bits in ("01", "", "2" * 24, 7, ["1"] * 24)),
        *(("cell", wrong) for wrong in ({"seconds": "1"}, {"settings": []}, {"epsilon": "8"}, {"mean_l2": float("nan")}, {"threat": "x"})),
        *(("check", wrong) for wrong in ({"zero_share": None}, {"zero_share": "0"}, {"zero_share": 2}, {"zero_share": [0.5]})),
    ],
)
def test_damaged_records_are_made_again(classifier: Classifier, tmp_path: Path, damage: tuple[str, dict[str, Any]]) -> None:
    """A record of the cache that lacks a field (None here), or has one that cannot be, counts as absent: no error, and the same result."""
    settings: dict[str, Any] = {"attacks": ("fgsm",), "threats": ("adaptive",), "epsilons": (16.0,), "limit_adaptive": 24}
    first = evaluation(classifier, Same(), folder=tmp_path, **settings)
    cells = [replace(cell, seconds=0.0) for cell in first.run()]
    kind, fields = damage
    for path in tmp_path.glob("*.json"):
        record = json.loads(path.read_text())
        if ("zero_share" in record) is (kind == "check"):
            record.update(fields)
            path.write_text(json.dumps({name: value for name, value in record.items() if name not in fields or value is not None}))
    again = evaluation(classifier, Same(), folder=tmp_path, **settings)
    assert [replace(cell, seconds=0.0) for cell in again.run()] == cells and again.checks == first.checks
    written = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert all(name in record for name in fields for record in written if ("zero_share" in record) is (kind == "check"))


@pytest.mark.parametrize("kept", [torch.zeros(31, 3, 8, 8), torch.zeros(32, 3, 8, 8).double(), torch.full((32, 3, 8, 8), 2.0)])
def test_damaged_images_are_made_again(classifier: Classifier, tmp_path: Path, kept: Tensor) -> None:
    """Images of the cache of another number or type, or that are none, count as absent."""
    settings: dict[str, Any] = {"attacks": ("fgsm",), "threats": ("grey-box",), "epsilons": (16.0,)}
    whole = list(evaluation(classifier, Same(), folder=tmp_path, **settings).run())
    for path in tmp_path.iterdir():
        path.unlink() if path.suffix == ".json" else save_file({"pictures": kept}, path)
    again = list(evaluation(classifier, Same(), folder=tmp_path, **settings).run())
    assert [cell.outcomes for cell in again] == [cell.outcomes for cell in whole]


class _Answers(nn.Module):
    """A user's own code, whose weights and structure say nothing of what it answers."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self._answer = answer

    def forward(self, x: Tensor) -> Any:
        return self._answer(x)


def test_another_answer_is_another_classifier(tmp_path: Path) -> None:
    """Code that changed while structure and weights did not is measured anew, and not found in the cache."""
    accuracy = []
    for turned in (False, True):
        net = _Answers(
            lambda x, turned=turned: torch.stack([x[:, 0, 0, 1] - x[:, 0, 1, 0], x[:, 0, 1, 0] - x[:, 0, 0, 1]], 1) * (-1) ** turned
        )
        done = evaluation(Classifier("mine:make", "", net), Same("none"), folder=tmp_path, threats=("grey-box",), attacks=("fgsm",))
        accuracy.append(next(iter(done.run())).correct)
    assert accuracy[0] != accuracy[1] and sum(accuracy) == 32


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x.mean((1, 2, 3))[:, None], r"must return logits \(8, 2 or more classes\) .* not \(8, 1\)"),
        (lambda x: x, "must return logits"),
        (lambda x: "cat", "must return logits .* not str"),
        (lambda x: nn.functional.conv2d(x, torch.zeros(2, 1, 3, 3)), r"fails on images of the shape \(8, 3, 8, 8\)"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(answer: Any, message: str) -> None:
    """Before anything is measured, and with what was expected."""
    with pytest.raises(UsageError, match=message):
        evaluation(Classifier("mine:make", "", _Answers(answer)), Same("none"))


def test_slow_attacks_are_made_at_one_epsilon() -> None:
    """At 8 levels, where that is not asked for at the middle one, and else at those that were named; other names are known."""
    assert Protocol().epsilons_of("square") == (8.0,)
    assert Protocol(epsilons=(4.0,)).epsilons_of("apgd-fmn-square") == (4.0,)
    assert Protocol(epsilons=(1.0, 2.0, 4.0)).epsilons_of("apgd-fmn-square") == (2.0,)
    assert Protocol(slow_epsilons=(2.0, 16.0)).epsilons_of("square") == (2.0, 16.0)
    assert Protocol(epsilons=(4.0,)).epsilons_of("pgd") == (4.0,)
    assert Protocol(attacks=("ifgsm", "c&w", "MI-FGSM", "AutoAttack")).attacks == ("bim", "cw", "mi-fgsm", "apgd-fmn-square")


def test_an_interrupted_run_goes_on(classifier: Classifier, tmp_path: Path) -> None:
    """What was done before the interruption is not done again, and the end is that of a run in one piece."""
    whole = list(evaluation(classifier, Same("none"), Masked("masked")).run())
    broken: Iterator[Any] = evaluation(classifier, Same("none"), Masked("masked"), folder=tmp_path).run()
    before = [next(broken) for _ in range(9)]
    broken.close()  # type: ignore[attr-defined]
    (tmp_path / "damaged.json").write_text("{")
    rest = list(evaluation(classifier, Same("none"), Masked("masked"), folder=tmp_path).run())
    assert rest[:9] == before
    assert [(c.defence, c.threat, c.attack, c.epsilon, c.outcomes) for c in rest] == [
        (c.defence, c.threat, c.attack, c.epsilon, c.outcomes) for c in whole
    ]


def test_the_alarm_rings_on_a_masked_defence(classifier: Classifier) -> None:
    """A defence whose gradient was hidden on purpose is called out: no gradient, and queries that beat gradients."""
    done = evaluation(classifier, Same("none"), Masked("masked"), queries=400, steps=20, epsilons=(16.0,))
    list(done.run())
    rung = {(alarm.defence, alarm.kind) for alarm in done.find_alarms()}
    assert ("masked", "zero-gradient") in rung and ("masked", "black-box-beats-white-box") in rung
    assert not [alarm for alarm in done.find_alarms() if alarm.defence == "none"]
    assert done.to_json()["alarms"]


def test_comdefend_through_all_its_gradients(classifier: Classifier, tmp_path: Path) -> None:
    """ComDefend is attacked through each of its gradients, and the results name its weights' hash."""
    sha256 = save_weights(tmp_path / "w.safetensors", small_model(), {})
    defence = make_defence(str(tmp_path / "w.safetensors"), device="cpu", precision="float32")
    done = evaluation(classifier, defence, epsilons=(16.0,), attacks=("pgd",), threats=("adaptive",))
    cells = list(done.run())
    assert {cell.gradient for cell in cells if cell.threat == "adaptive"} == {"straight-through", "identity", "soft"}
    results = done.to_json()
    assert results["systems"][0]["settings"]["sha256"] == sha256
    assert results["systems"][0]["classifier_sha256"] == fit_classifier(classifier, done.data, CPU).sha256 != ""


def test_results_have_an_interval_and_n(classifier: Classifier) -> None:
    """Each cell of results.json has n, accuracy in percent and its interval, and headlines keep threat models apart."""
    done = evaluation(classifier, Same("none"), epsilons=(16.0,))
    list(done.run())
    results = done.to_json()
    for cell in results["cells"]:
        assert cell["low"] <= cell["accuracy"] <= cell["high"] and cell["n"] == len(cell["outcomes"])
        assert cell["accuracy"] == round(100 * cell["correct"] / cell["n"], 1)
    assert {line["threat"] for line in results["headlines"]} == {"clean", "grey-box", "adaptive", "black-box"}


def test_images_to_look_at(classifier: Classifier, tmp_path: Path) -> None:
    """The gallery shows images that the attack turned; the saved ones are what the cells met, with a table of labels."""
    done = evaluation(classifier, Same("none"), Noisy(), epsilons=(16.0,), attacks=("bim",), threats=("grey-box",), folder=tmp_path / "c")
    list(done.run())
    items = make_gallery(done)
    assert items and all(item.clean_label == item.true_label != item.adversarial_label for item in items)
    assert save_adversarial(done, tmp_path / "saved") == 32
    from comdefend_cli.data.labelled import load_labelled

    back = load_labelled(str(tmp_path / "saved" / "stripes-net-bim-16"), Path())
    met = (done.make_gray_images(classifier, "bim", 16) * 255).round().byte()
    assert len(back) == 32 and back.classes == ("lying", "standing")
    assert {tuple(p.flatten().tolist()) for p in back.pixels} == {tuple(p.flatten().tolist()) for p in met}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attacks": ("magic",)}, "unknown attack 'magic'"),
        ({"threats": ("white-box",)}, "unknown threat model"),
        ({"attacks": ("apgd-rand",)}, "unknown attack"),
        ({"attacks": ()}, "no attack"),
        ({"threats": ()}, "no threat model"),
        ({"epsilons": (2.0,), "slow_epsilons": (4.0,)}, "would be left out"),
        ({"epsilons": ()}, "epsilons must be"),
        ({"epsilons": (0.0,)}, "epsilons must be"),
        ({"eot": 0}, "eot must be at least 1"),
        ({"resubmissions": 0}, "resubmissions must be at least 1"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    """Settings out of range are said before anything is attacked."""
    with pytest.raises(UsageError, match=message):
        Protocol(**settings)
