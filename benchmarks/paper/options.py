"""What the commands of this folder have in common: options, and errors as one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from comdefend_cli.errors import ComdefendError

#: Of the paper's attacks.
ATTACKS = ("fgsm", "bim", "mi-fgsm", "deepfool", "cw")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With what every command takes."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, help="folder of the results, and of what is kept between runs")
    made.add_argument("--seed", type=int, default=0, help="of samples, attacks, training")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    made.add_argument("--precision", default="auto", help="of ComDefend: auto, float32, bfloat16 or float16")
    made.add_argument("--note", default="", help="a remark that goes below the table")
    return made


def add_evaluation(made: argparse.ArgumentParser, *, limit: int, batch_size: int) -> None:
    """What the commands that attack classifiers take."""
    made.add_argument("--limit", type=int, default=limit, help=f"images, a random sample; default {limit}")
    made.add_argument("--batch-size", type=int, default=batch_size, help=f"images at a time; default {batch_size}")
    made.add_argument("--attacks", help=f"some of {','.join(ATTACKS)}; default all that the table has")
    made.add_argument("--float", action="store_true", help="do not round adversarial images to 8 bits, as saved files are")
    made.add_argument("--hgd", type=Path, help="file of comdefend train-baseline hgd")


def add_weights(made: argparse.ArgumentParser, *default: str) -> None:
    """ComDefend's weights."""
    text = f"names or files of ComDefend's; default {' '.join(default)}"
    made.add_argument("--weights", nargs="+", default=list(default), metavar="NAME|PATH", help=text)


def add_classifiers(made: argparse.ArgumentParser) -> None:
    """Data sets of small images, and where the classifiers for them are."""
    made.add_argument("--data-dir", type=Path, required=True, help="official files of the data set")
    made.add_argument("--classifiers", type=Path, default=Path("classifiers"), help="folder of ARCH-DATA[-KIND].safetensors, see README.md")
    made.add_argument("--pixelcnn", type=Path, help="file of comdefend train-baseline pixelcnn")


def add_folder(made: argparse.ArgumentParser) -> None:
    """A folder of ImageNet images."""
    made.add_argument("--data", required=True, metavar="FOLDER", help="images with labels.csv, or a sub-folder a class")
    made.add_argument("--size", type=int, default=224, help="side that they are scaled and cropped to; default 224")


def run(main: Callable[[], None]) -> None:
    """Run a command; what a user can cause is said on one line."""
    try:
        main()
    except ComdefendError as error:
        sys.exit(f"error: {error}")
