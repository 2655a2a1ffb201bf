"""Images under attack, before and after the defence, with what the classifier calls them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from comdefend_cli.evaluate.cells import say_epsilon

#: How many times differences are amplified, around middle grey.
AMPLIFY = 8
#: Images are enlarged, each pixel a square, to about this width in CSS pixels.
WIDTH = 160


@dataclass(frozen=True, eq=False)
class GalleryItem:
    """One image of the gallery.

    Attributes:
        attack: its title, "BIM".
        epsilon: in 8-bit levels.
        defence: its name.
        true_label: the image's class.
        clean_label: what the undefended classifier calls the clean image.
        adversarial_label: what it calls the adversarial one, undefended.
        purified_label: what it calls the adversarial one behind the defence.
        clean, adversarial, purified: uint8 (H, W, C), C is 1 or 3, all of one shape.
        threat: the threat model, if it is to be said.
        classifier: its name, if it is to be said.

    Raises:
        ValueError: images of another type or of different shapes.
    """

    attack: str
    epsilon: float
    defence: str
    true_label: str
    clean_label: str
    adversarial_label: str
    purified_label: str
    clean: np.ndarray
    adversarial: np.ndarray
    purified: np.ndarray
    threat: str = ""
    classifier: str = ""

    def __post_init__(self) -> None:
        shapes = {image.shape for image in (self.clean, self.adversarial, self.purified)}
        types = {image.dtype for image in (self.clean, self.adversarial, self.purified)}
        if types != {np.dtype(np.uint8)} or len(shapes) != 1 or self.clean.ndim != 3 or self.clean.shape[2] not in (1, 3):
            raise ValueError(f"gallery images must be uint8 (H, W, 1 or 3) of one shape, not {shapes}, {types}")

    def facts(self) -> list[str]:
        """What its caption says beside attack and label."""
        return [fact for fact in (f"ε = {say_epsilon(self.epsilon)}", self.threat, self.defence, self.classifier) if fact]

    def panels(self) -> list[Panel]:
        """The three versions with what they are called, and two differences to the clean one."""
        versions = (
            ("clean", self.clean, self.clean_label),
            ("adversarial", self.adversarial, self.adversarial_label),
            ("purified", self.purified, self.purified_label),
        )
        shown = []
        for name, pixels, label in versions:
            right = label == self.true_label
            shown.append(Panel(name, pixels, label, f"{name}: classified as {label}, {'right' if right else 'wrong'}", right))
        for name, pixels, _ in versions[1:]:
            most = int(np.abs(pixels.astype(np.int16) - self.clean).max())
            said = f"× {AMPLIFY}, largest: {most}"
            shown.append(Panel(f"{name} − clean", amplify(self.clean, pixels), said, f"{name} − clean, {AMPLIFY} times amplified", None))
        return shown


@dataclass(frozen=True, eq=False)
class Panel:
    """One image in the page: its pixels, uint8 (H, W, 1 or 3), what stands below it, and whether that is right, if it can be."""

    name: str
    pixels: np.ndarray
    text: str
    alt: str
    right: bool | None

    @property
    def source(self) -> str:
        """A PNG file as a data URI."""
        file = io.BytesIO()
        Image.fromarray(self.pixels[..., 0] if self.pixels.shape[2] == 1 else self.pixels).save(file, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width = self.pixels.shape[:2]
        return width, height

    @property
    def small(self) -> bool:
        """Whether it is enlarged with each pixel a square."""
        return max(self.size) < WIDTH


def amplify(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """`after - before`, `AMPLIFY` times, around 128; uint8, the shape of both."""
    difference = after.astype(np.int16) - before.astype(np.int16)
    return np.clip(128 + AMPLIFY * difference, 0, 255).astype(np.uint8)
