"""Is an image attacked? A classifier's answer to it against its answer to the purified image (feature squeezing, Xu et al., NDSS 2018).

An attack moves the answer and purification moves it back; on clean images both answers agree. That holds for an attacker who does not know
of the detector: one who does makes both answers agree.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from comdefend_cli.classifiers.loading import Classifier, load_classifier
from comdefend_cli.errors import ComdefendError, ImageError, UsageError, explain
from comdefend_cli.evaluate.cache import hash_identity
from comdefend_cli.evaluate.defences.base import Defence
from comdefend_cli.evaluate.defences.catalogue import make_defence
from comdefend_cli.runtime.files import write_atomically

FORMAT = "comdefend-detector"
FORMAT_VERSION = 1
#: Pixels that images may be scaled to.
LEAST_SIZE, MOST_SIZE = 8, 4096


@dataclass(frozen=True)
class Calibration:
    """What a detector file says.

    Attributes:
        classifier: spec of the classifier.
        classifier_sha256: of its file, or of its structure and weights.
        squeezers: specs of what purifies, as of `evaluate --defences`.
        squeezers_sha256: of all that decides their results.
        size: images are scaled to this and cropped, or None for as they are.
        channels: of the images.
        false_alarms: share of clean images that may be flagged.
        threshold: scores above it are flagged.
        images: how many clean ones the threshold is from.
    """

    classifier: str
    classifier_sha256: str
    squeezers: tuple[str, ...]
    squeezers_sha256: str
    size: int | None
    channels: int
    false_alarms: float
    threshold: float
    images: int

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the file; errors as of :func:`.write_atomically`."""
        record = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode(), overwrite=overwrite)

    def check(self) -> None:
        """Raise :class:`ValueError` where a value is of another type or out of range, as a file's may be."""
        texts = (self.classifier, self.classifier_sha256, self.squeezers_sha256, *self.squeezers)
        if not all(type(text) is str and text for text in texts) or not self.squeezers:
            raise ValueError("a name is missing")
        if not all(type(number) in (int, float) for number in (self.threshold, self.false_alarms)):
            raise ValueError("a number is none")
        if not (0 <= self.threshold <= 2 and 0 < self.false_alarms < 1) or type(self.channels) is not int or self.channels not in (1, 3):
            raise ValueError("a number is out of range")
        if self.size is not None and (type(self.size) is not int or not LEAST_SIZE <= self.size <= MOST_SIZE):
            raise ValueError("a size is out of range")

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read a file.

        Raises:
            ComdefendError: it cannot be read.
            UsageError: it is no detector of this version.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.pop("format") != FORMAT or record.pop("format_version") != FORMAT_VERSION:
                raise ValueError("of another version")
            found = cls(**{**record, "squeezers": tuple(record["squeezers"])})
            found.check()
        except OSError as error:
            kind = UsageError if isinstance(error, FileNotFoundError) else ComdefendError
            raise kind(f"{path}: cannot read: {explain(error)}; make one with comdefend calibrate-detector") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(
                f"{path}: no detector of this version ({explain(error)}); make one with comdefend calibrate-detector"
            ) from error
        return found


class Detector(nn.Module):
    """Scores images by how far a classifier's answer moves when they are purified.

    Args:
        classifier: from float (N, C, H, W) in [0, 1] to logits (N, classes).
        squeezers: modules from such images to such; several look each for itself, and the largest distance counts.

    Raises:
        UsageError: no squeezer.
    """

    def __init__(self, classifier: nn.Module, squeezers: Sequence[nn.Module]) -> None:
        super().__init__()
        if not squeezers:
            raise UsageError("a detector needs something that purifies: name at least one squeezer")
        self.classifier = classifier
        self.squeezers = nn.ModuleList(squeezers)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Scores of images.

        Args:
            x: float (N, C, H, W) in [0, 1].

        Returns:
            The L1 distance of the probabilities before and after purification, from 0 to 2, the largest over the squeezers: (N,).

        Raises:
            UsageError: the classifier answers with numbers that are not finite.
        """
        before = self.classifier(x).softmax(1)
        distances = []
        for squeezer in self.squeezers:
            if isinstance(squeezer, Defence) and squeezer.stochastic:
                squeezer.seed(0)  # The same image has the same score.
            distances.append((self.classifier(squeezer(x)).softmax(1) - before).abs().sum(1))
        score = torch.stack(distances).amax(0)
        if not bool(score.isfinite().all()):
            raise UsageError("the classifier answers with numbers that are not finite: look at its weights and its normalization")
        return score

    @torch.no_grad()
    def score(self, pixels: Tensor, batch: int = 100) -> Tensor:
        """Scores of 8-bit images, uint8 (N, C, H, W), a batch at a time: float32 (N,) on the CPU."""
        device = next(self.parameters(), torch.empty(0)).device
        return torch.cat([self(part.to(device).float() / 255).float().cpu() for part in torch.split(pixels, batch)])


def choose_threshold(scores: Tensor, false_alarms: float) -> float:
    """The score above which at most that share of clean images lies, in the long run.

    The smallest one that holds for the next clean image as for these (split conformal prediction): of n scores the one at place
    ceil((n + 1)(1 - false_alarms)), counted from the smallest.

    Args:
        scores: of clean images, (N,).
        false_alarms: above 0 and below 1.

    Raises:
        UsageError: a share out of range, or too few images for it.
    """
    refuse_false_alarms(false_alarms, len(scores))
    place = math.ceil((len(scores) + 1) * (1 - false_alarms))
    return float(scores.sort().values[place - 1])


def refuse_false_alarms(false_alarms: float, images: int) -> None:
    """Raise :class:`UsageError` for a share that is none, or that so many clean images are too few for."""
    if not 0 < false_alarms < 1:
        raise UsageError(f"the share of false alarms must be above 0 and below 1, not {false_alarms}")
    least = math.ceil(1 / false_alarms) - 1
    if images < least:
        raise UsageError(f"{images} clean images are too few for a false alarm rate of {false_alarms:g}: give {least} or more")


def make_squeezers(specs: Sequence[str], device: torch.device, precision: str) -> list[Defence]:
    """What purifies, by specs as of :func:`.make_defence`, which also says what is raised; "none" purifies nothing and is refused too."""
    if not specs or "none" in specs:
        raise UsageError("a detector needs something that purifies, such as --squeezers comdefend-fast")
    return [make_defence(spec, device=str(device), precision=precision) for spec in specs]


def hash_squeezers(squeezers: Sequence[Defence]) -> str:
    """Of all that decides what they do."""
    return hash_identity({"squeezers": [squeezer.settings for squeezer in squeezers]})


def hash_classifier(classifier: Classifier) -> str:
    """Of its file, or of a user's own network's structure and weights."""
    if classifier.sha256:
        return classifier.sha256
    digest = hashlib.sha256(repr(classifier.model).encode())
    for name, tensor in classifier.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_detector(calibration: Calibration, classifier: str | None, device: torch.device, precision: str) -> Detector:
    """The detector of a file.

    Args:
        calibration: what the file says.
        classifier: a spec in place of the file's, of the same classifier elsewhere, or None.
        device, precision: as of :func:`.make_defence`.

    Raises:
        UsageError: the classifier or a squeezer is not there, or not the one that was calibrated.
    """
    if classifier is None and ":" in calibration.classifier and not Path(calibration.classifier).is_file():
        said = f"the detector names code, {calibration.classifier}, which is run only if you name it too"
        raise UsageError(f"{said}: --classifier MODULE:FUNCTION")
    found = load_classifier(classifier or calibration.classifier, device)
    if hash_classifier(found) != calibration.classifier_sha256:
        remedy = "name that one" if classifier else "name that one with --classifier"
        raise UsageError(f"{found.name}: not the classifier that was calibrated for; calibrate anew, or {remedy}")
    squeezers = make_squeezers(calibration.squeezers, device, precision)
    if hash_squeezers(squeezers) != calibration.squeezers_sha256:
        raise UsageError(f"{', '.join(calibration.squeezers)}: other weights, settings or precision than were calibrated; calibrate anew")
    return Detector(found.model, squeezers)


def fit_image(pixels: np.ndarray, size: int | None, channels: int, name: str) -> Tensor:
    """An image as the classifier takes it, uint8 (1, C, H, W): scaled to the size on its shorter side and cropped, grey repeated as colour.

    Args:
        pixels: uint8 (H, W, 1 or 3).
        size: in pixels, or None for as it is.
        channels: 1 or 3.
        name: for errors.

    Raises:
        ImageError: a colour image where grey ones are taken.
    """
    if pixels.shape[2] > channels:
        raise ImageError(f"{name}: is in colour, and the detector is for grey images; make it grey")
    if size is not None:
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        pixels = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)).reshape(size, size, -1)
    shaped = np.broadcast_to(pixels, (*pixels.shape[:2], channels))
    return torch.from_numpy(shaped.transpose(2, 0, 1).copy())[None]
