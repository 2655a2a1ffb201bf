"""How commands explain themselves: what they do, three examples, then their options by what they are about, on 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

#: Options by what they are about; what no panel names is the command's own.
PANELS = {
    "Output": (
        *(
            "out",
            "recursive",
            "format",
            "quality",
            "strip",
            "compare",
            "report",
            "save_adversarial",
            "fail_under",
            "checkpoint_every",
            "resume",
        ),
        *("overwrite", "as_json", "quiet"),
    ),
    "Protection": ("weights", "input_noise", "samples", "tiling", "noise_std"),
    "Performance": ("device", "precision", "backend", "tile", "strips", "batch_size"),
    "Advanced": (
        *("seed", "max_megapixels", "engine", "workers", "cpus_per_worker", "gpus_per_worker", "ray_address", "data_dir", "no_download"),
        *("steps", "restarts", "eot", "resubmissions", "queries", "float_pixels", "slow_epsilons", "size", "noise_seed", "n0", "alpha"),
    ),
}
#: Panels of commands whose own options are what training is about.
TRAINING = {
    "Output": PANELS["Output"],
    "Data": ("data", "data_dir", "no_download", "crop", "shrink", "jitter", "small", "gray", "input_noise", "input_noise_min", "cutout"),
    "Networks": ("arch", "downscale", "width", "blocks", "bits", "inference_noise", "init", "classifier"),
    "Performance": PANELS["Performance"],
}
OWN = "Options"

EXAMPLES = {
    "purify": (
        "comdefend purify photo.jpg",
        "comdefend purify a.png b.png c.png -o purified/",
        "comdefend purify photos/ --weights comdefend-12bit-denoise",
    ),
    "purify-dir": (
        "comdefend purify-dir photos",
        "comdefend purify-dir photos -o out --recursive --format png",
        "comdefend purify-dir photos --report done.jsonl --json",
    ),
    "train": (
        "comdefend train --data cifar10",
        "comdefend train --data photos --data drawings --input-noise 30",
        "comdefend train --data photos --init comdefend-fast --resume",
    ),
    "evaluate": (
        "comdefend evaluate --data cifar10 --classifier small",
        "comdefend evaluate --data photos --classifier mine:load --size 224",
        "comdefend evaluate --data cifar10 --classifier small --epsilons 4/255",
    ),
    "certify": (
        "comdefend certify --data cifar10 --classifier small",
        "comdefend certify --data photos --classifier mine:load --sigma 0.5",
        "comdefend certify --data cifar10 --classifier small --weights none",
    ),
    "calibrate-detector": (
        "comdefend calibrate-detector --data clean --classifier mine:load",
        "comdefend calibrate-detector --data cifar10 --classifier small",
        "comdefend calibrate-detector --data clean --classifier mine:load --size 224",
    ),
    "detect": (
        "comdefend detect photo.png",
        "comdefend detect incoming --recursive --report scores.jsonl",
        "comdefend detect photo.png --detector detector.json --json",
    ),
    "train-classifier": (
        "comdefend train-classifier --data cifar10",
        "comdefend train-classifier --data cifar10 --purify comdefend-12bit",
        "comdefend train-classifier --data mnist --adversarial fgsm",
    ),
    "train-baseline": (
        "comdefend train-baseline pixelcnn --data cifar10",
        "comdefend train-baseline hgd --data cifar10 --classifier small",
        "comdefend train-baseline pixelcnn --data photos --crop 32",
    ),
    "export": (
        "comdefend export purifier.onnx --format onnx",
        "comdefend export purifier.xml --format openvino",
        "comdefend export purifier.onnx --format onnx --check photo.jpg",
    ),
    "quantize": (
        "comdefend quantize --data photos --out fast-int8.safetensors",
        "comdefend quantize --data cifar10 --out small.safetensors",
        "comdefend quantize --data photos --pictures 128 --out x.safetensors",
    ),
    "doctor": ("comdefend doctor", "comdefend doctor --device cpu", "comdefend doctor --json > report.json"),
}


class Command(TyperCommand):
    """A command whose help has panels and examples, and no column of types."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What stands behind the command's name in its first line."""
        return ["[OPTIONS]", *(str(item.metavar or item.name) for item in self.params if item.param_type_name == "argument")]

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence, whole on the narrowest terminal too."""
        return str(super().get_short_help_str(10**4))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help into click's formatter."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        arguments = [parameter for parameter in self.params if parameter.param_type_name == "argument"]
        _write_section(formatter, "Arguments", [(str(item.metavar or item.name), str(getattr(item, "help", ""))) for item in arguments])
        if examples := EXAMPLES.get(str(ctx.info_name)):
            with formatter.section("Examples"):
                for example in examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")
        named = [each for each in self.params if each.param_type_name == "option" and not getattr(each, "hidden", False)]
        for panel, names in sort_into_panels(str(ctx.info_name), [str(item.name) for item in named]).items():
            _write_section(formatter, panel, [describe_option(item, ctx) for item in named if item.name in names])
        _write_section(formatter, "Help", [("-h, --help", "Show this and exit.")])


def sort_into_panels(command: str, names: Sequence[str]) -> dict[str, set[str]]:
    """The panels of a command's help, in order, with the names of the options in each; some may have none."""
    panels = TRAINING if command.startswith("train") else PANELS
    taken = {name for panel in panels.values() for name in panel}
    own = {"Output": (), OWN: tuple(name for name in names if name not in taken)}
    chosen = own | panels if command in ("purify", "purify-dir") else {OWN: own[OWN]} | panels
    return {panel: set(parts) for panel, parts in chosen.items()}


def _write_section(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(typer.style(title, bold=True)):
            formatter.write_dl(rows, col_max=28)


def describe_option(option: Any, ctx: Any) -> tuple[str, str]:
    """An option's names with what it takes, and its help with default and variable."""
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        names += f"/{option.secondary_opts[0]}"
    elif not option.is_flag:
        made = str(option.get_help_record(ctx)[0]).lower()
        names += f" {option.metavar or next((short for kind, short in _METAVARS.items() if kind in made), 'TEXT')}"
    notes = [f"default: {default}"] if (default := _find_default(option)) else []
    notes += [f"variable: {option.envvar}"] if option.envvar else []
    if option.required:
        notes.append("required")
    return names, f"{option.help} [{'; '.join(notes)}]" if notes else str(option.help)


_METAVARS = {"int": "N", "float": "X", "path": "PATH"}


def _find_default(option: Any) -> str:
    """What is taken where the option is not given, in words; "" for nothing worth saying."""
    if isinstance(option.show_default, str):
        return option.show_default
    if option.default is None or option.default is False or option.default == []:
        return ""
    return f"{option.default:g}" if isinstance(option.default, float) else str(option.default)


def complete(*names: str) -> Callable[[str], list[str]]:
    """For a shell: which of some names begin as what was typed."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def complete_weights(incomplete: str) -> list[str]:
    """For a shell: the weights that ship whose names begin so; nothing where the registry cannot be read."""
    import json

    from comdefend_cli.runtime.files import find_weights_folder

    try:
        names = json.loads((find_weights_folder() / "registry.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [name for name in names if name.startswith(incomplete)]
