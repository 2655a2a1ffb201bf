"""The model as attacks see it, what they may not disturb, and what becomes of their finds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comdefend_cli.classifiers.signed_gradient import input_gradient


class Expectation(nn.Module):
    """A stochastic model seen through many of its answers: expectation over transformation (EOT, Athalye et al., ICML 2018).

    Attacks of this package that follow the gradient of a loss (FGSM, BIM, MI-FGSM, PGD and APGD), given an
    `Expectation`, follow the gradient of the expected loss E[loss(model(x), y)]: the mean of `samples` gradients, each
    drawn and freed in turn, so that memory does not grow with `samples`.

    Anything else sees a module whose forward is the logarithm of the mean probability, log E[softmax(model(x))]. That is
    the answer that a vote over `samples` runs gives, and its cross-entropy, -log E[p_y], is the attacker's objective against
    that vote. By Jensen's inequality it is at most the expected loss. Backward through it holds the graphs of all samples.

    Args:
        model: from float32 (N, C, H, W) in [0, 1] to logits (N, classes), different at every call.
        samples: calls for one answer, at least 1.

    Raises:
        ValueError: fewer samples.
    """

    def __init__(self, model: nn.Module, samples: int = 20) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"an expectation needs 1 sample or more, not {samples}")
        self.model = model
        self.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities, float32 (N, classes)."""
        return log_mean_softmax([self.model(x) for _ in range(self.samples)])


def log_mean_softmax(answers: list[Tensor]) -> Tensor:
    """Logarithm of the mean of the probabilities that several logits (N, classes) stand for."""
    return torch.stack([F.log_softmax(logits.float(), 1) for logits in answers]).logsumexp(0) - float(np.log(len(answers)))


class Guarded(nn.Module):
    """A model with float32 logits, and a finite gradient for every input: zero where the model gives none, or NaN."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32 (N, classes)."""
        wanted = x.requires_grad and torch.is_grad_enabled()
        x = x.clone()  # Some models normalize in place.
        if wanted:
            x.register_hook(lambda gradient: torch.nan_to_num(gradient, 0.0, 0.0, 0.0))  # type: ignore[no-untyped-call]
        logits: Tensor = self.model(x).float()
        if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
            raise ValueError(f"a classifier's logits must be (N, classes) with 2 classes or more, not {tuple(logits.shape)}")
        if wanted and not logits.requires_grad:
            # A detached answer: the libraries cannot go backward from it.
            logits = logits + 0 * x.flatten(1).sum(1, keepdim=True)
        return logits


@dataclass(frozen=True)
class Victim:
    """What an attack may ask of a model.

    Attributes:
        once: one answer; for an :class:`Expectation` one random draw.
        whole: the answer that counts; for an :class:`Expectation` the mean of its samples.
        samples: draws of `once` that make an expected loss.
    """

    once: Guarded
    whole: Guarded
    samples: int = 1

    @classmethod
    def of(cls, model: nn.Module) -> Victim:
        """As attacks see `model`, in evaluation mode."""
        if isinstance(model, Expectation):
            return cls(Guarded(model.model).eval(), Guarded(model).eval(), model.samples)
        guarded = Guarded(model).eval()
        return cls(guarded, guarded)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Logits that count, without a graph."""
        logits: Tensor = self.whole(x)
        return logits


class Worst:
    """For each image the version that the model got most wrong, of those it was shown.

    A misclassified version goes before every other; among the rest the lower margin z_y - max z_i counts.

    Args:
        clean: (N, C, H, W), what stands until something is shown.
        labels: int64 (N,).
    """

    def __init__(self, clean: Tensor, labels: Tensor) -> None:
        self.images = clean.clone()
        self.labels = labels
        self.wrong = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        self.margins = torch.full((len(clean),), float("inf"), device=clean.device)

    def standing(self) -> Tensor:
        """Indices of the images that are not misclassified yet, int64."""
        return (~self.wrong).nonzero().flatten()

    def see(self, shown: Tensor, logits: Tensor, rows: Tensor | None = None) -> None:
        """Take account of the logits of a version of each image, or of those whose indices are `rows`."""
        rows = torch.arange(len(self.labels), device=self.labels.device) if rows is None else rows
        labels, logits = self.labels[rows], logits.detach()
        wrong, margins = logits.argmax(1) != labels, compute_margin(logits, labels)
        better = (wrong & ~self.wrong[rows]) | ((wrong == self.wrong[rows]) & (margins < self.margins[rows]))
        chosen = rows[better]
        self.images[chosen] = shown.detach()[better]
        self.wrong[chosen], self.margins[chosen] = wrong[better], margins[better]


class Watched(nn.Module):
    """A model that shows a :class:`Worst` all that it is asked about whole batches."""

    def __init__(self, model: nn.Module, worst: Worst) -> None:
        super().__init__()
        self.model = model
        self.worst = worst

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits."""
        logits: Tensor = self.model(x)
        self.worst.see(x, logits)
        return logits


def compute_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y - max over i != y of z_i, (N,); negative where misclassified."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    return logits.gather(1, labels[:, None])[:, 0] - logits.masked_fill(own, -torch.inf).amax(1)


def clip_to_ball(images: Tensor, clean: Tensor, epsilon: float) -> Tensor:
    """Images clipped to the L-infinity ball of radius epsilon about the clean ones, and to [0, 1].

    Args:
        images: float (N, C, H, W); what is not finite becomes the clean pixel.
        clean: float (N, C, H, W) in [0, 1].
        epsilon: in [0, 1] units.
    """
    finite = torch.where(images.isfinite(), images, clean)
    return finite.clamp(clean - epsilon, clean + epsilon).clamp(0, 1)


def find_device(model: nn.Module, otherwise: torch.device) -> torch.device:
    """Where a model computes, or `otherwise` if it holds no tensors."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return otherwise


@contextmanager
def leave_undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate a model without gradients for its parameters, with gradients for its input; then put all back."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


@contextmanager
def seed_generators(seed: int) -> Iterator[None]:
    """Draw from the global generators of torch, NumPy and Python as after `seed`; then put their states back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    with torch.random.fork_rng(devices):
        try:
            cudnn.deterministic, cudnn.benchmark = True, False
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = flags
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def gradient_is_zero(model: nn.Module, x: Tensor, y: Tensor, *, batch: int = 128) -> float:
    """Share of images for which the gradient of the cross-entropy to the input is zero everywhere, or not finite somewhere.

    For an :class:`Expectation` the mean of its samples' gradients counts.

    Args:
        model: from float32 (N, C, H, W) in [0, 1] to logits (N, classes).
        x: float (N, C, H, W) in [0, 1], at least one image.
        y: int64 labels (N,).
        batch: images at a time.

    Returns:
        From 0 to 1.
    """
    draws, samples = (model.model, model.samples) if isinstance(model, Expectation) else (model, 1)
    device, missing = find_device(model, x.device), 0
    with leave_undisturbed(model):
        for images, labels in zip(torch.split(x, batch), torch.split(y, batch), strict=True):
            clean = images.detach().to(device, torch.float32).clone()
            true, gradient = labels.to(device).clone(), torch.zeros_like(clean)
            for _ in range(samples):
                gradient += input_gradient(draws, clean, true)
            flat = gradient.flatten(1)
            missing += int(((flat == 0).all(1) | ~flat.isfinite().all(1)).sum())
    return missing / len(x)
