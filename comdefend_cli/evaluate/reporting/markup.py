"""HTML from Python, escaped by construction: what is not `Html` is text."""

from __future__ import annotations

import html
from collections.abc import Iterable

#: Elements without content.
VOID = frozenset({"br", "hr", "img", "link", "meta", "wbr"})


class Html(str):
    """A piece of HTML, as :func:`tag` makes it; any other string is text and gets escaped."""

    __slots__ = ()


Child = str | Iterable["Child"] | None


def join(*children: Child) -> Html:
    """Children one after another: `Html` as it is, other strings escaped, iterables flattened, None left out."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(html.escape(child))
        elif child is not None:
            parts.append(join(*child))
    return Html("".join(parts))


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """An element.

    Args:
        name: of the element.
        *children: see :func:`join`.
        **attributes: `class_` is class, other underscores are hyphens; True is an attribute without value; None and False are left out.
    """
    said = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        said.append(f" {attribute}" if value is True else f' {attribute}="{html.escape(str(value))}"')
    opened = f"<{name}{''.join(said)}>"
    return Html(opened) if name in VOID else Html(f"{opened}{join(*children)}</{name}>")
