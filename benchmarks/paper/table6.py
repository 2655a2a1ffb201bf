#!/usr/bin/env python3
"""The paper's table 6: defences on Fashion-MNIST under FGSM, BIM, DeepFool and C&W at 8 and 25 levels, published beside measured.

    python benchmarks/paper/table6.py --data-dir DATA --out FOLDER [--classifiers DIR] [--weights NAME|PATH ...] [--pixelcnn FILE]

Writes FOLDER/table6.md and FOLDER/table6.json. Finished cells are kept in FOLDER/cache: the same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

from measuring import publish
from options import add_classifiers, add_evaluation, add_weights, parser, run
from published import TABLE6
from systems import absent_networks, lines_of_small_images

from comdefend_cli.data.labelled import load_labelled

DATA = "fashion-mnist"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is at hand and write the table."""
    made = parser(__doc__)
    add_classifiers(made)
    add_weights(made, "comdefend-12bit-denoise", "comdefend-4bit-gray")
    add_evaluation(made, limit=500, batch_size=100)
    arguments = made.parse_args(argv)
    lines = lines_of_small_images(TABLE6, DATA, arguments)
    data = load_labelled(DATA, arguments.data_dir, limit=arguments.limit, seed=arguments.seed)
    publish(TABLE6, lines, data, arguments, absent_networks(DATA, arguments))


if __name__ == "__main__":
    run(main)
