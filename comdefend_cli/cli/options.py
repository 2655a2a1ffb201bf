"""Options that two or more commands share, one alias each.

Defaults are the dataclasses' own, read from the class where the command is declared: `tile: options.Tile = Settings.tile`. A module
that holds such a dataclass is imported by `comdefend --help`, so it imports neither torch nor much else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from comdefend_cli.cli.helping import complete, complete_weights

#: For paths: Typer's own check of what may be read takes four lines and exit code 2 to say what we say in one, with 1.
UNCHECKED: dict[str, Any] = {"readable": False}

# What purifies, and on what.
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        envvar="COMDEFEND_WEIGHTS",
        autocompletion=complete_weights,
        help="A name that `comdefend weights list` prints, or a weight file. "
        "Default: comdefend-fast, and for grey images comdefend-fast-gray.",
        metavar="NAME|PATH",
    ),
]
ColorWeights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        envvar="COMDEFEND_WEIGHTS",
        autocompletion=complete_weights,
        help="A name that `comdefend weights list` prints, or a weight file.",
        metavar="NAME|PATH",
        show_default="comdefend-fast",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        envvar="COMDEFEND_DEVICE",
        autocompletion=complete("auto", "cpu", "cuda", "cuda:0", "mps"),
        help="Where to compute: auto, cpu, cuda, cuda:N or mps. A device that is absent is an error.",
        metavar="DEVICE",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        envvar="COMDEFEND_PRECISION",
        autocompletion=complete("auto", "float32", "bfloat16", "float16", "int8", "float8"),
        help="Number format: auto (the fastest the device does natively), float32, bfloat16, float16, int8 (openvino), float8 (triton).",
        metavar="NAME",
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        autocompletion=complete("auto", "torch", "openvino", "triton"),
        envvar="COMDEFEND_BACKEND",
        help="Software: auto (the fastest that is installed), torch, openvino (the extra of that name; CPU only), triton (NVIDIA GPUs).",
        metavar="NAME",
    ),
]

# How it purifies: `inference.settings.Settings`.
Tiling = Annotated[
    str,
    typer.Option(
        "--tiling",
        help="Cut the image exactly (as if all at once, no seams) or as in the paper (independent 32x32 patches).",
        metavar="exact|paper",
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(
        "--tile",
        envvar="COMDEFEND_TILE",
        min=1,
        help="Side of a tile of exact tiling, in pixels; smaller takes less memory.",
        show_default="by device",
    ),
]
NoiseStd = Annotated[
    float,
    typer.Option("--noise-std", min=0.0, help="Standard deviation of noise on the code's logits, as in the authors' release (1). 0: none."),
]
InputNoise = Annotated[
    float | None,
    typer.Option(
        "--input-noise",
        envvar="COMDEFEND_INPUT_NOISE",
        min=0.0,
        help="Standard deviation of noise on the image, in 8-bit levels, to drown an attack. 0: none.",
        show_default="what the weights are made for",
    ),
]
Samples = Annotated[
    int, typer.Option("--samples", envvar="COMDEFEND_SAMPLES", min=1, help="Draws of the noise; the mean of what is rebuilt is written.")
]
NoiseSeed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise; every image of a run gets the same noise.")]

# How images are read and written: `batch.options.Options`.
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Go through subfolders too; the output mirrors them.")]
Strip = Annotated[bool, typer.Option("--strip", help="Leave ICC profile, EXIF, XMP and IPTC out of the output.")]
Quality = Annotated[int | None, typer.Option("--quality", min=1, max=100, help="Quality of JPEG and AVIF output.", show_default="95")]
MaxMegapixels = Annotated[
    float,
    typer.Option(
        "--max-megapixels", envvar="COMDEFEND_MAX_MEGAPIXELS", min=0.0, help="Refuse larger images: a small file can claim to be huge."
    ),
]

# Data sets.
Data = Annotated[str, typer.Option("--data", metavar="NAME|DIR", help="Clean images: cifar10, fashion-mnist, mnist, or a folder of yours.")]
DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir", envvar="COMDEFEND_DATA_DIR", help="Where the official files of NAME are, or go when downloaded.", **UNCHECKED
    ),
]
NoDownload = Annotated[bool, typer.Option("--no-download", help="Never download; fail if the files are absent.")]

# Training: `TrainConfig`, `ClassifierConfig`, `BaselineConfig`.
TrainingPrecision = Annotated[
    str, typer.Option("--precision", help="Number format: auto, float32, or bfloat16 for mixed precision.", metavar="NAME")
]
TrainingSeed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the initial weights, the batches and all that is drawn.")]
CheckpointEvery = Annotated[int, typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint beside --out.")]

# What is written and said.
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", envvar="COMDEFEND_QUIET", help="Print nothing but errors.")]
