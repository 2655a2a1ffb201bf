"""The loss against float64, the schedule, exact resumption, collapse, and that training trains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, SMALL, photo, small_model

from comdefend_cli.classifiers.loading import ClassifierHeader, build
from comdefend_cli.data.sources import Dataset, ImageArray
from comdefend_cli.errors import TrainingError, UsageError
from comdefend_cli.network import architecture, metrics
from comdefend_cli.network.architecture import PaperArchitecture
from comdefend_cli.network.model import ComDefend
from comdefend_cli.training import objective
from comdefend_cli.training.checkpoint import load_checkpoint, save_checkpoint
from comdefend_cli.training.config import TrainConfig
from comdefend_cli.training.history import History
from comdefend_cli.training.objective import Objective, noisy_code, rounded_code
from comdefend_cli.training.purifier import PurifierTrainer

CPU = torch.device("cpu")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the trainer build networks of few channels, which train in moments, and on one thread: more wait for each other."""
    monkeypatch.setattr(architecture, "PaperArchitecture", partial(PaperArchitecture, hidden=SMALL))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Crops of 16x16 from a photograph."""
    pixels = torch.from_numpy(photo("astronaut.png")).permute(2, 0, 1)
    crops = torch.stack([pixels[:, y : y + 16, x : x + 16] for y in range(0, 480, 40) for x in range(0, 480, 40)])
    labels = torch.empty(0, dtype=torch.int64)
    return Dataset("crops", ImageArray(crops[:120], labels), ImageArray(crops[120:], labels))


def config(**changes: object) -> TrainConfig:
    """A short run."""
    return TrainConfig(**{"data": "crops", "steps": 8, "batch_size": 4, "warmup": 2, **changes})  # type: ignore[arg-type]


def weights_of(trainer: PurifierTrainer) -> torch.Tensor:
    """All weights in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_subnormals_are_zero_within_a_step_only(narrow: None, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step, which they would slow down, takes them as zero; a program that trains, or that asked for it, has what it had."""
    seen = []

    def flushed() -> bool:
        return not torch.tensor(1e-39).mul(1)

    run = PurifierTrainer(config(), dataset, CPU)
    forward = run.losses
    monkeypatch.setattr(run, "losses", lambda: (seen.append(flushed()), forward())[1])
    try:
        for before in (False, True):
            torch.set_flush_denormal(before)
            run.step()
            assert flushed() == before
        assert seen == [True, True]
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(("rooted", "rounded"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_equation_3_in_float64(family: str, rooted: bool, rounded: bool) -> None:
    """Mean squared error, or the mean of the images' roots of it, plus lambda times the code's mean square, from the logits on in NumPy."""
    model = small_model(family=family)
    generator = torch.Generator().manual_seed(0)
    x, target = torch.rand(2, 3, 9, 8, generator=generator), torch.rand(2, 3, 9, 8, generator=generator)
    noise = 20 * torch.randn(2, 12, 9, 8, generator=generator)
    target[0] = 0.5 + 0.05 * target[0]  # Of unlike difficulty, so that the order of root and mean shows.
    loss, mean_square = Objective(model, 0.3, 20.0, rooted=rooted)(x, target, None if rounded else noise)
    logits = model.com(x).double().numpy()
    code = (logits > 0).astype(np.float64) if rounded else 1 / (1 + np.exp(-(logits + noise.double().numpy())))
    rebuilt = model.rec(torch.from_numpy(code).float()).double().numpy()
    errors = ((rebuilt - target.double().numpy()) ** 2).mean((1, 2, 3))
    expected = (np.sqrt(errors + 1 / 255**2) if rooted else errors).mean() + 0.3 * (code**2).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(mean_square) == pytest.approx((logits**2).mean(), rel=1e-5)


@pytest.mark.parametrize("rounded", [False, True])
def test_the_code_in_training_and_its_gradient(rounded: bool) -> None:
    """Forward is sigmoid(logits + noise), or inference's zeros and ones; backward the documented normal density at the logit."""
    logits = torch.linspace(-120, 120, 41, dtype=torch.float32, requires_grad=True)
    noise = torch.linspace(30, -30, 41)
    code = rounded_code(logits, 20.0) if rounded else noisy_code(logits, noise, 20.0)
    assert torch.equal(code, (logits > 0).float()) if rounded else torch.allclose(code, torch.sigmoid(logits + noise))
    (gradient,) = torch.autograd.grad(code.sum(), logits)
    width = 2.5 * math.hypot(20, 1.702)
    values = logits.detach().double().numpy()
    expected = np.exp(-0.5 * (values / width) ** 2) / (width * math.sqrt(2 * math.pi))
    assert np.allclose(gradient.numpy(), expected, rtol=1e-5)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("share", "rounded"), [(0.0, [False] * 4), (0.5, [False, False, True, True]), (1.0, [True] * 4)])
def test_the_last_steps_learn_from_the_rounded_code(dataset: Dataset, share: float, rounded: list[bool]) -> None:
    """A share of the steps, at the end, has no noise on the logits."""
    run = PurifierTrainer(config(steps=4, rounded_share=share), dataset, CPU)
    seen: list[bool] = []
    run._objective.register_forward_pre_hook(lambda _, given: seen.append(given[2] is None))
    for _ in range(4):
        run.step()
    assert seen == rounded
    assert sum(config(steps=10, rounded_share=0.7).rounds(step) for step in range(10)) == 7  # 1 - 0.7 is a little above 0.3.


def test_the_learning_rate_rises_then_falls_exponentially() -> None:
    """Linear to the peak at the end of the warm-up, lr_end at the last step, and a constant ratio in between."""
    run = config(steps=100, warmup=10, lr_end=0.02)
    factors = [run.lr_factor(step) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[99] == pytest.approx(0.02)
    ratios = [factors[step + 1] / factors[step] for step in range(10, 99)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_logits_are_centred_and_spread(family: str) -> None:
    """On the images they were set on, each bit's logits average to zero and spread by START_RMS."""
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = ComDefend(small_model(family=family).architecture)
    objective.initialize(model, images, torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.com(images.float() / 255)
    assert logits.mean((0, 2, 3)).abs().max() < 0.1
    assert float(logits.std()) == pytest.approx(objective.START_RMS, rel=0.3)


@pytest.mark.usefixtures("narrow")
def test_training_trains(dataset: Dataset) -> None:
    """A hundred small steps lower the loss and raise the PSNR of the rounded code's reconstruction."""
    run = PurifierTrainer(config(steps=120, batch_size=8, warmup=10), dataset, CPU)
    first = run.validate()
    reports = list(run.run(measure_every=120))
    assert len(reports) == 120
    assert np.mean([report.loss for report in reports[-20:]]) < 0.5 * np.mean([report.loss for report in reports[:20]])
    assert reports[-1].measured is not None
    assert reports[-1].measured > first + 3


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("changes", [{}, {"optimizer": "adam"}, {"input_noise": 30.0}, {"precision": "bfloat16"}])
def test_resumed_equals_uninterrupted(dataset: Dataset, tmp_path: Path, changes: dict[str, object]) -> None:
    """Stopped after three steps and continued from the checkpoint: the same losses and weights, bit for bit."""
    whole = PurifierTrainer(config(**changes), dataset, CPU)
    expected = [report.loss for report in whole.run()]
    first = PurifierTrainer(config(**changes), dataset, CPU)
    history = History("psnr")
    for report in first.run():
        history.append(report)
        first.stop_asked = report.step == 2  # Seen in the step after.
    assert first.step_done == 3
    save_checkpoint(tmp_path / "run.checkpoint", first, history)
    second = PurifierTrainer(config(**changes), dataset, CPU)
    history = load_checkpoint(tmp_path / "run.checkpoint", second)
    for report in second.run():
        history.append(report)
    assert list(history.columns["loss"]) == expected
    assert torch.equal(weights_of(second), weights_of(whole))


@pytest.mark.usefixtures("narrow")
def test_the_seed_decides(dataset: Dataset) -> None:
    """The same seed gives the same losses; another seed, and input noise, give others."""
    changes: list[dict[str, object]] = [{}, {}, {"seed": 1}, {"input_noise": 50.0}]
    runs = [[report.loss for report in PurifierTrainer(config(**change), dataset, CPU).run()] for change in changes]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert runs[0] != runs[3]


def test_input_noise_is_drawn_between_its_bounds(dataset: Dataset) -> None:
    """Each image's noise has a standard deviation of its own from the least to the most, and the target stays clean."""
    run = PurifierTrainer(config(input_noise=12.0, input_noise_min=8.0, batch_size=8), dataset, CPU)
    _, clean, x, _ = run._draw(0)
    inside = (clean > 0.2) & (clean < 0.8)
    stds = [float(((b - a) * 255)[keep].std()) for a, b, keep in zip(clean, x, inside, strict=True) if keep.sum() > 500]
    assert len(stds) >= 4 and all(7.5 < std < 12.5 for std in stds) and max(stds) - min(stds) > 0.3
    assert torch.equal((clean * 255).round() / 255, clean)
    with pytest.raises(UsageError, match="input-noise-min must be at most input-noise"):
        config(input_noise_min=1.0)


@pytest.mark.usefixtures("narrow")
def test_noise_at_inference_is_measured_with_and_changes_no_step(dataset: Dataset) -> None:
    """What is measured has the noise that the weights will be used with; what is learnt is the same without."""
    plain, noisy = (PurifierTrainer(config(inference_noise=std), dataset, CPU) for std in (0.0, 60.0))
    losses = [[report.loss for report in run.run()] for run in (plain, noisy)]
    assert losses[0] == losses[1] and noisy.model.input_noise == 60.0
    assert plain.measure(4)["psnr_db"] != noisy.measure(4)["psnr_db"]
    with pytest.raises(UsageError, match="inference-noise must be from 0 to 255"):
        config(inference_noise=256.0)


@pytest.mark.parametrize("arch", ["small", "medium"])
def test_feature_distance_is_of_the_blocks_and_the_logits(arch: str) -> None:
    """It is the mean relative square distance of the blocks' outputs and the logits, zero for equal images, and has a gradient."""
    torch.manual_seed(0)
    model = build(ClassifierHeader(arch, 3, ("a", "b"), (0.5,) * 3, (0.25,) * 3))
    distance = objective.FeatureDistance(model)
    clean, rebuilt = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16, requires_grad=True)
    assert [float(part) for part in distance(clean, clean)] == [0, 0]
    value, _ = distance(rebuilt, clean)
    outputs: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    blocks = [layer for layer in model.body if isinstance(layer, torch.nn.Sequential)][-3:]
    for which, x in ((True, rebuilt), (False, clean)):
        hooks = [block.register_forward_hook(lambda module, inputs, out, to=outputs[which]: to.append(out.detach())) for block in blocks]
        outputs[which].append(model(x).detach())
        for hook in hooks:
            hook.remove()
    pairs = list(zip(outputs[True], outputs[False], strict=True))
    assert len(pairs) == 4
    expected = sum(float((a - b).double().square().mean() / b.double().square().mean()) for a, b in pairs) / 4
    assert float(value.detach()) == pytest.approx(expected, rel=1e-4)
    value.backward()
    assert rebuilt.grad is not None and float(rebuilt.grad.abs().sum()) > 0
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training
    with pytest.raises(UsageError, match="train-classifier"):
        objective.FeatureDistance(torch.nn.Flatten())


@pytest.mark.usefixtures("narrow")
def test_features_enter_the_loss(dataset: Dataset) -> None:
    """The loss adds the features' distance and the change of probabilities, times their weights, in the classifier whose turn it is."""
    torch.manual_seed(0)
    models = [build(ClassifierHeader("small", 3, ("a", "b"), (0.5,) * 3, (0.25,) * 3)).eval() for _ in range(2)]
    plain = PurifierTrainer(config(), dataset, CPU)
    zero, some = (
        PurifierTrainer(config(feature_weight=weight, stability_weight=4 * weight), dataset, CPU, features=[models])
        for weight in (0.0, 0.5)
    )
    _, clean, x, noise = plain._draw(0)
    rebuilt = plain.model.rec(objective.noisy_code(plain.model.com(x), noise, 20.0))
    for turn in range(3):
        losses = [float(run._objective(x, clean, noise, turn=turn)[0].detach()) for run in (plain, zero, some)]
        assert losses[0] == losses[1] < losses[2]
        model = models[turn % 2]
        wanted, found = (model(images).softmax(1).double() for images in (clean, rebuilt))
        change = float((wanted * (wanted / found).log()).sum(1).mean().detach())
        distance = float(objective.FeatureDistance(model)(rebuilt, clean)[0].detach())
        assert losses[2] == pytest.approx(losses[0] + 0.5 * distance + 2 * change, rel=1e-4)


@pytest.mark.usefixtures("narrow")
def test_checkpoints_of_other_runs_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    """Another setting, no file, and a damaged file are each an error that says so."""
    path = tmp_path / "run.checkpoint"
    save_checkpoint(path, PurifierTrainer(config(), dataset, CPU), History("psnr"))
    with pytest.raises(TrainingError, match="--penalty"):
        load_checkpoint(path, PurifierTrainer(config(penalty=0.5), dataset, CPU))
    with pytest.raises(TrainingError, match="no checkpoint"):
        load_checkpoint(tmp_path / "absent", PurifierTrainer(config(), dataset, CPU))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(TrainingError, match="not a checkpoint"):
        load_checkpoint(path, PurifierTrainer(config(), dataset, CPU))


@pytest.mark.usefixtures("narrow")
def test_collapse_is_noticed(dataset: Dataset) -> None:
    """A constant image, logits that ran away, and a loss that is no number each end the run with advice."""
    run = PurifierTrainer(config(steps=3, warmup=0), dataset, CPU)
    list(run.run())
    with torch.no_grad():
        run.model.rec[-1].weight.zero_()
    with pytest.raises(TrainingError, match=r"constant image.*--lr"):
        run.validate()
    with torch.no_grad():
        run.model.rec[-1].bias.fill_(-100)
    with pytest.raises(TrainingError, match="black image"):
        run.validate()
    run = PurifierTrainer(config(), dataset, CPU)
    with torch.no_grad():
        run.model.com[-1].weight.mul_(1e4)
    with pytest.raises(TrainingError, match=r"ran away.*--lr"):
        run.step()
    run = PurifierTrainer(config(), dataset, CPU)
    with torch.no_grad():
        run.model.rec[-1].bias.fill_(math.nan)
    with pytest.raises(TrainingError, match="not finite"):
        run.step()


@pytest.mark.usefixtures("narrow")
def test_going_on_from_weights(dataset: Dataset) -> None:
    """A run can start from other weights, which it leaves alone, if they are of its family and sizes."""
    start = small_model()
    before = start.com[0].weight.clone()
    run = PurifierTrainer(config(), dataset, CPU, start=start)
    assert torch.equal(run.model.com[0].weight, before)
    run.step()
    assert not torch.equal(run.model.com[0].weight, before)
    assert torch.equal(start.com[0].weight, before)
    with pytest.raises(UsageError, match="start from"):
        PurifierTrainer(config(), dataset, CPU, start=small_model(family="residual-2"))


@pytest.mark.parametrize(
    "changes",
    [
        *({"bits": 11}, {"steps": 0}, {"batch_size": 0}, {"seed": -1}, {"seed": 2**32}, {"penalty": -1}, {"optimizer": "sgd"}),
        *(
            {"lr": 0.0},
            {"lr": math.inf},
            {"lr_end": 0.0},
            {"lr_end": 2.0},
            {"noise_std": math.nan},
            {"rounded_share": 1.1},
            {"precision": "float16"},
            {"channels": 2},
        ),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object]) -> None:
    """Each value that a run cannot have is an error of usage."""
    with pytest.raises(UsageError):
        config(**changes)


@pytest.mark.usefixtures("narrow")
def test_mixed_precision_trains_in_float32_weights(dataset: Dataset) -> None:
    """Under bfloat16 the weights stay float32 and the first loss is near that of float32."""
    exact, mixed = (PurifierTrainer(config(precision=name), dataset, CPU) for name in ("float32", "bfloat16"))
    assert mixed.step()["loss"] == pytest.approx(exact.step()["loss"], rel=0.05)
    assert {parameter.dtype for parameter in mixed.model.parameters()} == {torch.float32}


@pytest.mark.usefixtures("narrow")
def test_the_paper_s_optimizer_is_adam(dataset: Dataset) -> None:
    """A step with --optimizer adam moves the weights as torch.optim.Adam moves a copy along the same gradient."""
    run = PurifierTrainer(config(optimizer="adam", warmup=0, noise_std=50.0), dataset, CPU)
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    run.step()
    copies = [torch.nn.Parameter(values) for values in before]
    for copy, parameter in zip(copies, run.model.parameters(), strict=True):
        copy.grad = parameter.grad
    torch.optim.Adam(copies, lr=1e-3).step()
    for copy, parameter in zip(copies, run.model.parameters(), strict=True):
        assert torch.allclose(copy, parameter, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("narrow")
def test_checkpoints_from_before_a_setting_existed(dataset: Dataset, tmp_path: Path) -> None:
    """A setting that a checkpoint does not know counts as its default; one from before the first step resumes too."""
    path = tmp_path / "run.checkpoint"
    save_checkpoint(path, PurifierTrainer(config(), dataset, CPU), History("psnr"))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    field = rb"\"input_noise\": 0.0, "
    header = data[8 : 8 + length]
    assert field in header
    path.write_bytes(data[:8] + header.replace(field, b"") + b" " * len(field) + data[8 + length :])
    run = PurifierTrainer(config(), dataset, CPU)
    assert len(load_checkpoint(path, run)) == 0
    assert run.step_done == 0
    with pytest.raises(TrainingError, match=r"--input-noise 0\.0, not 5\.0"):
        load_checkpoint(path, PurifierTrainer(config(input_noise=5.0), dataset, CPU))


@pytest.mark.usefixtures("narrow")
def test_checkpoints_from_before_a_setting_was_renamed(dataset: Dataset, tmp_path: Path) -> None:
    """One that calls the least input noise by its old name is resumed, with that setting."""
    path, changes = tmp_path / "run.checkpoint", {"input_noise": 30.0, "input_noise_min": 10.0}
    save_checkpoint(path, PurifierTrainer(config(**changes), dataset, CPU), History("psnr"))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b"input_noise_min", b"input_noise_least")
    path.write_bytes((len(header) + -len(header) % 8).to_bytes(8, "little") + header + b" " * (-len(header) % 8) + data[8 + length :])
    assert len(load_checkpoint(path, PurifierTrainer(config(**changes), dataset, CPU))) == 0
    with pytest.raises(TrainingError, match=r"--input-noise-min 10\.0, not 5\.0"):
        load_checkpoint(path, PurifierTrainer(config(**{**changes, "input_noise_min": 5.0}), dataset, CPU))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("changes", [{"steps": 1}, {"steps": 1, "optimizer": "adam"}, {"noise_std": 0.0}, {"warmup": 50}])
def test_young_healthy_runs_are_left_alone(dataset: Dataset, changes: dict[str, object]) -> None:
    """Short runs, validated at every step and at their end, are not taken for collapsed ones; nor is one test image."""
    for count in (1, 16):
        reports = list(PurifierTrainer(config(**changes), dataset, CPU, validation_images=count).run(measure_every=1))
        assert all(report.measured is not None for report in reports)


@pytest.mark.usefixtures("narrow")
def test_exact_reconstructions_have_a_finite_psnr(dataset: Dataset) -> None:
    """An image rebuilt without error counts as `TOP_PSNR`, so that one black crop does not make the mean infinite."""
    black = ImageArray(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    run = PurifierTrainer(config(), Dataset("black", dataset.train, black), CPU)
    with torch.no_grad():
        run.model.rec[-1].weight.zero_()
        run.model.rec[-1].bias.fill_(-100)
    assert run.measure(2)["psnr_db"] == metrics.TOP_PSNR
