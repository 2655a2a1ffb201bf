#!/usr/bin/env python3
"""The paper's table 5: defences on CIFAR-10 under FGSM, BIM, DeepFool and C&W at 2, 8 and 16 levels, published beside measured.

    python benchmarks/paper/table5.py --data-dir DATA --out FOLDER [--classifiers DIR] [--weights NAME|PATH ...] [--pixelcnn FILE]

Writes FOLDER/table5.md and FOLDER/table5.json. Finished cells are kept in FOLDER/cache: the same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

from measuring import publish
from options import add_classifiers, add_evaluation, add_weights, parser, run
from published import TABLE5
from systems import absent_networks, lines_of_small_images

from comdefend_cli.data.labelled import load_labelled

DATA = "cifar10"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is at hand and write the table."""
    made = parser(__doc__)
    add_classifiers(made)
    add_weights(made, "comdefend-12bit-denoise")
    add_evaluation(made, limit=500, batch_size=100)
    arguments = made.parse_args(argv)
    lines = lines_of_small_images(TABLE5, DATA, arguments)
    data = load_labelled(DATA, arguments.data_dir, limit=arguments.limit, seed=arguments.seed)
    publish(TABLE5, lines, data, arguments, absent_networks(DATA, arguments))


if __name__ == "__main__":
    run(main)
