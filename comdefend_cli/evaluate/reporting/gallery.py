"""Images under attack, before and after the defence, with what the classifier calls them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from comdefend_cli.evaluate.reporting.markup import Html, join, tag
from comdefend_cli.evaluate.reporting.tables import number, plain

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


def figures(items: Sequence[GalleryItem]) -> Html:
    """All items, as figures."""
    return join([_figure(item) for item in items])


def _figure(item: GalleryItem) -> Html:
    facts = [f"ε = {number(item.epsilon)}", item.threat, item.defence, item.classifier]
    said = " · ".join(plain(fact) for fact in facts if fact)
    caption = tag("figcaption", tag("b", plain(item.attack)), f" · {said} · true label: ", tag("b", plain(item.true_label)))
    images = [
        _panel("clean", item.clean, item.clean_label, item.true_label),
        _panel("adversarial", item.adversarial, item.adversarial_label, item.true_label),
        _panel("purified", item.purified, item.purified_label, item.true_label),
        _difference("adversarial − clean", item.clean, item.adversarial),
        _difference("purified − clean", item.clean, item.purified),
    ]
    return tag("figure", caption, tag("ul", images, class_="strip"), class_="item")


def _panel(name: str, pixels: np.ndarray, label: str, truth: str) -> Html:
    right = label == truth
    verdict = tag("span", "✓ right" if right else "✗ wrong", class_="right" if right else "wrong")
    alt = f"{name}: classified as {plain(label)}, {'right' if right else 'wrong'}"
    return tag("li", _image(pixels, alt), tag("span", name, class_="name"), tag("span", plain(label), " ", verdict))


def _difference(name: str, before: np.ndarray, after: np.ndarray) -> Html:
    alt = f"{name}, {AMPLIFY} times amplified"
    most = int(np.abs(after.astype(np.int16) - before).max())
    return tag("li", _image(amplified(before, after), alt), tag("span", name, class_="name"), tag("span", f"× {AMPLIFY}, largest: {most}"))


def amplified(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """`after - before`, `AMPLIFY` times, around 128; uint8, the shape of both."""
    difference = after.astype(np.int16) - before.astype(np.int16)
    return np.clip(128 + AMPLIFY * difference, 0, 255).astype(np.uint8)


def _image(pixels: np.ndarray, alt: str) -> Html:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    height, width = pixels.shape[:2]
    small = "pixelated" if max(height, width) < WIDTH else None
    return tag("img", src=source, alt=alt, width=width, height=height, class_=small)
