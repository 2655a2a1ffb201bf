"""What a file says about its image."""

from __future__ import annotations

from PIL import Image

_ORIENTATION = 0x0112
#: Tags of a TIFF file that are not about the image but about how this file holds it (TIFF 6.0, sections 8 to 22): written into
#: another file they would contradict it. And profile, XMP, IPTC and Photoshop blocks, which are not EXIF.
_STRUCTURE = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291, 292, 293, 301),
    *(317, *range(320, 344), 347, *range(512, 522), 529, 530, 531, 532),
    *(700, 33723, 34377, 34675, 37724),
}


def read_exif(image: Image.Image, notices: list[str]) -> tuple[bytes | None, bool]:
    """The EXIF block without orientation and what describes the file only, or None; and whether the image must be turned."""
    try:
        # The image's own, which is left as it was. A PNG's own method would decode it to look behind its pixels; read ones are decoded.
        tags = Image.Image.getexif(image)
        orientation = tags.get(_ORIENTATION, 1)
        apart = {tag: tags[tag] for tag in (_STRUCTURE | {_ORIENTATION}) & tags.keys()}
        for tag in apart:
            del tags[tag]
        try:
            return tags.tobytes() if len(tags) else None, orientation != 1
        finally:
            tags.update(apart)
    except Exception:  # Its parsing raises whatever it meets.
        notices.append("its EXIF block is damaged and was left out")
        return None, False
