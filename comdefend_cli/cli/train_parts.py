"""Options of `comdefend train` that are of each part of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comdefend_cli.errors import UsageError
from comdefend_cli.training.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from comdefend_cli.data.sources import Dataset


def spread(option: str, values: list[float], data: list[str]) -> float | list[float]:
    """A setting of all parts of the data, or of each part, whose option was given once for each different data set."""
    if len(values) == 1:
        return values[0]
    different = list(dict.fromkeys(data))
    if len(values) != len(different):
        raise UsageError(f"{option} is there {len(values)} times for {len(different)} different --data: give it once, or once for each")
    by_name = dict(zip(different, values, strict=True))
    return [by_name[name] for name in data]


def load_features(
    specs: list[str], weights: list[float], data: list[str], parts: list[Dataset]
) -> tuple[list[nn.Module | None], str, float | list[float]]:
    """The classifier of each part of the data, or None; what the settings call them; their weight, or that of each part."""
    from comdefend_cli.classifiers.loading import load_classifier

    if len(weights) > 1 and len(weights) != len(specs):
        raise UsageError(f"--feature-weight is there {len(weights)} times for {len(specs)} --features: give it once, or once for each")
    found: list[nn.Module | None] = [None] * len(parts)
    each_weight = [0.0] * len(parts)
    called = {}
    for place_of_spec, spec in enumerate(specs):
        name, _, classifier = spec.rpartition("=") if len(set(data)) > 1 else (data[0], "", spec)
        if name not in data:
            raise UsageError(f"--features {spec}: say whose it is as DATA=CLASSIFIER, DATA being one of {', '.join(dict.fromkeys(data))}")
        places = [place for place, each in enumerate(data) if each == name]
        loaded = load_classifier(classifier, data=parts[places[0]].name)
        called[parts[places[0]].name] = loaded.sha256 or classifier
        for place in places:
            found[place] = loaded.model
            each_weight[place] = weights[place_of_spec] if len(weights) > 1 else 0.0
    alone = len(set(data)) == 1
    named = ",".join(said if alone else f"{name}={said}" for name, said in called.items())
    if len(weights) > 1:
        return found, named, each_weight
    return found if specs else [], named, weights[0] if weights else TrainConfig.feature_weight
