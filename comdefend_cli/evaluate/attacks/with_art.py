"""Attacks from the Adversarial Robustness Toolbox, ART (Nicolae et al., 2018). Imported only where it is known to be installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from art.attacks.evasion.auto_projected_gradient_descent import AutoProjectedGradientDescent
from art.attacks.evasion.square_attack import SquareAttack
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.estimator import BaseEstimator, LossGradientsMixin, NeuralNetworkMixin
from torch import Tensor

from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.attacks.victim import Victim, Worst, log_mean_softmax

Settings = dict[str, Any]
#: From logits (N, classes) and label rows to losses (N,) that grow as the answer gets worse. A label row (classes,)
#: has 1 at the true class and, for a targeted attack, 1/2 at the target: ART hands rows of any numbers through.
Loss = Callable[[Tensor, Tensor], Tensor]


def apgd_fmn_square(settings: Settings, victim: Victim, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """An ensemble after AutoAttack's standard version (Croce and Hein, ICML 2020), of what ART and foolbox have.

    APGD on the cross-entropy, APGD on the targeted DLR loss against each of the highest other classes, a minimum-norm
    attack, and Square, each on the images that stood the ones before. Images that the model gets wrong without
    any attack come back as they are. It is not AutoAttack: FAB is in neither library, and foolbox's FMN has its place; APGD starts
    uniformly in the ball, not on its surface; Square draws one square for a whole batch. The authors' own code, which is not on
    PyPI, fails on fewer than ten classes.

    ART's `AutoAttack` runs something else by default, APGD on cross-entropy and on the untargeted DLR loss,
    DeepFool for L2, and Square, and takes APGD's last iterate only; its targeted mode has a DLR loss
    that is flat where the target comes third. Hence its parts are used, and not that class.
    """
    from comdefend_cli.evaluate.attacks import with_foolbox

    worst = Worst(x, y)
    clean = victim.predict(x)
    worst.see(x, clean)
    apgd(settings, victim, x, worst, epsilon, cross_entropy)
    others = clean.masked_fill(F.one_hot(y, clean.shape[1]).bool(), -torch.inf).argsort(1, descending=True)
    for rank in range(min(settings["targets"], clean.shape[1] - 1)):
        apgd(settings, victim, x, worst, epsilon, targeted_dlr, others[:, rank])
    rows = worst.standing()
    if len(rows):
        found = with_foolbox.fast_minimum_norm(settings["fmn_steps"], victim, x[rows], y[rows])
        found = found.clamp(x[rows] - epsilon, x[rows] + epsilon)
        worst.see(found, victim.predict(found), rows)
    _square_rows(settings, victim, x, worst, epsilon)
    return worst.images


def apgd_rand(settings: Settings, victim: Victim, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """For stochastic models, the parts of AutoAttack's version for them: APGD on the cross-entropy, and on the DLR loss.

    The caller wraps the model in an :class:`~comdefend_cli.evaluate.attacks.victim.Expectation` of 20 samples, as the authors do.
    """
    worst = Worst(x, y)
    worst.see(x, victim.predict(x))
    for loss in (cross_entropy, dlr):
        apgd(settings, victim, x, worst, epsilon, loss)
    return worst.images


def square(settings: Settings, victim: Victim, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """Square (Andriushchenko et al., ECCV 2020) for L-infinity: random squares, kept where they lower the margin.

    No gradients. Images that the model gets wrong without any attack come back as they are, and an image
    that is misclassified costs no more queries. The model is taken to answer the same question always the same.
    """
    worst = Worst(x, y)
    worst.see(x, victim.predict(x))
    _square_rows(settings, victim, x, worst, epsilon)
    return worst.images


ATTACKS = {"apgd-fmn-square": apgd_fmn_square, "apgd-rand": apgd_rand, "square": square}


def apgd(settings: Settings, victim: Victim, x: Tensor, worst: Worst, epsilon: float, loss: Loss, targets: Tensor | None = None) -> None:
    """APGD by ART on the images that still stand; every iterate counts, not only the last, as in the paper's algorithm 1."""
    for _ in range(settings["restarts"]):
        rows = worst.standing()
        if len(rows) == 0:
            return
        labels = worst.labels[rows]
        watched = Worst(x[rows], labels)
        estimator = Estimator(victim, x, loss, watched)
        label_rows = F.one_hot(labels, estimator.nb_classes).float()
        if targets is not None:
            label_rows[torch.arange(len(rows), device=rows.device), targets[rows]] = 0.5
        attack = AutoProjectedGradientDescent(
            estimator,
            norm=np.inf,
            eps=float(epsilon),
            eps_step=2 * float(epsilon),
            max_iter=settings["steps"],
            nb_random_init=1,
            batch_size=len(rows),
            loss_type=None,
            verbose=False,
        )
        attack.generate(x[rows].cpu().numpy(), label_rows.cpu().numpy())
        worst.see(watched.images, victim.predict(watched.images), rows)


def _square_rows(settings: Settings, victim: Victim, x: Tensor, worst: Worst, epsilon: float) -> None:
    """Square by ART on the images that still stand."""
    rows = worst.standing()
    if len(rows) == 0:
        return
    height, width = x.shape[2:]
    side = min(height, width) - 1
    if side < 1:
        raise UsageError(f"Square needs images of 2 pixels a side or more, not {height}x{width}")
    attack = SquareAttack(
        Estimator(victim, x, cross_entropy, remember=victim.samples == 1),
        norm=np.inf,
        max_iter=settings["queries"],
        eps=float(epsilon),
        # ART fails on a square that does not fit.
        p_init=min(settings["p_init"], side**2 / (height * width)),
        nb_restarts=1,
        batch_size=len(rows),
        verbose=False,
    )
    found = attack.generate(x[rows].cpu().numpy(), worst.labels[rows].cpu().numpy())
    images = torch.from_numpy(found).to(x)
    worst.see(images, victim.predict(images), rows)


def cross_entropy(logits: Tensor, rows: Tensor) -> Tensor:
    """-log p_y."""
    return F.cross_entropy(logits, rows.argmax(1), reduction="none")


def dlr(logits: Tensor, rows: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein, 2020, equation 6); with two classes, where it is constant, its numerator."""
    top = logits.sort(1, descending=True)
    labels = rows.argmax(1)
    other = torch.where(top.indices[:, 0] == labels, top.values[:, 1], top.values[:, 0])
    return (other - _column(logits, labels)) / _spread(top.values[:, :3])


def targeted_dlr(logits: Tensor, rows: Tensor) -> Tensor:
    """Targeted difference of logits ratio (equation 7); with two or three classes as :func:`dlr` divides."""
    top = logits.sort(1, descending=True).values
    ranks = rows.argsort(1, descending=True)
    return (_column(logits, ranks[:, 1]) - _column(logits, ranks[:, 0])) / _spread(top[:, :4])


def _spread(top: Tensor) -> Tensor | float:
    """z_1 minus the mean of the third and what follows."""
    return 1.0 if top.shape[1] < 3 else top[:, 0] - top[:, 2:].mean(1) + 1e-12


def _column(logits: Tensor, indices: Tensor) -> Tensor:
    return logits.gather(1, indices[:, None])[:, 0]


class Estimator(ClassifierMixin, LossGradientsMixin, NeuralNetworkMixin, BaseEstimator):  # type: ignore[misc]
    """A victim as ART wants it: NumPy arrays in and out.

    ART's own `PyTorchClassifier` computes gradients and losses in separate runs and moves the model to the device that it
    thinks best; this one gets both from one run, over the samples of an expectation, and leaves the model where it is.

    Args:
        victim: the model.
        x: images whose shape and device hold for all that follow.
        loss: that ART's attack raises.
        watched: is shown each image whose loss is asked for; or None.
        remember: answers of the last calls, so that ART's asking again costs nothing.
    """

    estimator_params = BaseEstimator.estimator_params + NeuralNetworkMixin.estimator_params + ClassifierMixin.estimator_params

    def __init__(self, victim: Victim, x: Tensor, loss: Loss, watched: Worst | None = None, remember: bool = False) -> None:
        super().__init__(model=victim.whole, clip_values=(0.0, 1.0), channels_first=True, preprocessing=None)
        self.nb_classes = victim.predict(x[:1]).shape[1]
        self.victim, self.loss, self.watched, self.remember = victim, loss, watched, remember
        self._device, self._shape = x.device, tuple(x.shape[1:])
        self._last: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None
        self._answers: list[dict[int, np.ndarray]] = [{} for _ in range(4)]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self._shape

    def predict(self, x: np.ndarray, batch_size: int = 128, **_: Any) -> np.ndarray:
        """Logits (N, classes)."""
        if not self.remember:
            return self._predict(x)
        keys = [hash(image.tobytes()) for image in x]
        known = {key: answer for answers in self._answers for key, answer in answers.items()}
        new = [index for index, key in enumerate(keys) if key not in known]
        if new:
            known.update(zip((keys[index] for index in new), self._predict(x[new]), strict=True))
        self._answers = [*self._answers[1:], {key: known[key] for key in keys}]
        return np.stack([known[key] for key in keys])

    def _predict(self, x: np.ndarray) -> np.ndarray:
        return self.victim.predict(self._tensor(x)).cpu().numpy()

    def compute_loss(self, x: np.ndarray, y: np.ndarray, **_: Any) -> np.ndarray:
        """Losses (N,) for label rows (N, classes)."""
        return self._losses_and_gradients(x, y)[0]

    def loss_gradient(self, x: np.ndarray, y: np.ndarray, **_: Any) -> np.ndarray:
        """Gradient of each image's loss, as x."""
        return self._losses_and_gradients(x, y)[1]

    def _losses_and_gradients(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._last is not None and np.array_equal(x, self._last[0]) and np.array_equal(y, self._last[1]):
            return self._last[2:]
        point, rows = self._tensor(x).requires_grad_(), self._tensor(y)
        losses, gradient, answers = torch.zeros(len(x), device=self._device), torch.zeros_like(point), []
        for _ in range(self.victim.samples):
            logits = self.victim.once(point)
            drawn = self.loss(logits, rows)
            gradient += torch.autograd.grad(drawn.sum(), point)[0] / self.victim.samples
            losses += drawn.detach() / self.victim.samples
            answers.append(logits.detach())
        if self.watched is not None and len(x) == len(self.watched.labels):
            self.watched.see(point, answers[0] if len(answers) == 1 else log_mean_softmax(answers))
        self._last = x.copy(), y.copy(), losses.cpu().numpy(), gradient.detach().cpu().numpy()
        return self._last[2:]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self._device)

    def fit(self, x: np.ndarray, y: np.ndarray, **_: Any) -> None:
        """Not for training."""
        raise NotImplementedError

    def get_activations(self, x: np.ndarray, layer: int | str, batch_size: int, framework: bool = False) -> np.ndarray:
        """Not for looking inside."""
        raise NotImplementedError
