"""From the options of `comdefend train` to its run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from comdefend_cli.cli.epsilons import parse_epsilon
from comdefend_cli.cli.origin import load_told
from comdefend_cli.cli.training import is_given, make_config, refuse_idle
from comdefend_cli.errors import UsageError
from comdefend_cli.training.config import TrainConfig, name_networks

if TYPE_CHECKING:
    import torch
    from torch import nn

    from comdefend_cli.classifiers.loading import Classifier
    from comdefend_cli.data.sources import Dataset
    from comdefend_cli.network.weight_file import Weights
    from comdefend_cli.training.purifier import PurifierTrainer


def refuse_unused(context: typer.Context) -> None:
    """Raise :class:`UsageError` where options say two things, or one that the others leave without effect."""
    chosen = context.params
    if chosen["steps"] is not None and chosen["epochs"] is not None:
        raise UsageError("--steps and --epochs both say how long to train; give one of them")
    if not chosen["features"]:
        refuse_idle(context, ["feature_weight", "stability_weight"], "--features")
    if not chosen["adversarial"]:
        refuse_idle(context, ["adversarial_epsilon", "adversarial_steps", "adversarial_share"], "--adversarial")
    if not chosen["sigma"]:
        refuse_idle(context, ["draws", "consistency"], "--sigma")
    if not (chosen["adversarial"] or chosen["sigma"]):
        refuse_idle(context, ["classifier", "label_weight"], "--adversarial or --sigma")
    if chosen["adversarial"] != "pgd":
        refuse_idle(context, ["adversarial_steps"], "--adversarial pgd")


def choose_networks(context: typer.Context, *, quiet: bool) -> tuple[dict[str, Any], Weights | None]:
    """The options, and the weights to start from, whose family and sizes of networks stand for those that are not given."""
    chosen = dict(context.params)
    start = load_told(chosen["init"], quiet=quiet) if chosen["init"] else None
    for name, value in name_networks(start.header.architecture).items() if start else ():
        if is_given(context, name):
            if chosen[name] == value or name == "bits":
                continue  # Layers that depend on the bits are drawn anew.
            raise UsageError(f"--{name} {chosen[name]}: the weights to start from have {value}; leave it out, or start from others")
        chosen[name] = value
    if chosen["arch"] == "paper":
        refuse_idle(context, ["downscale", "width", "blocks"], "--arch residual")
    return chosen, start


def make_trainer(chosen: Mapping[str, Any], parts: list[Dataset], where: torch.device, start: Weights | None) -> PurifierTrainer:
    """The run that the options ask for."""
    from comdefend_cli.data.mixture import join_datasets
    from comdefend_cli.training.adversarial import AdversarialTrainer
    from comdefend_cli.training.purifier import PurifierTrainer
    from comdefend_cli.training.smoothing import SmoothedPurifierTrainer

    judges = _load_judges(chosen)
    data = chosen["data"]
    seen, named, weights = _load_features(chosen["features"] or [], chosen["feature_weight"] or [], data, parts)
    dataset = join_datasets(parts, gray=chosen["gray"])
    if chosen["input_noise_least"] is not None:
        chosen = {**chosen, "input_noise_min": [chosen["input_noise_least"]]}
    config = make_config(
        TrainConfig,
        chosen,
        where,
        data=dataset.name,
        steps=_steps(chosen["steps"], chosen["epochs"], len(dataset.train), chosen["batch_size"]),
        channels=1 if chosen["gray"] else dataset.train.channels,
        features=named,
        feature_weight=weights,
        input_noise=_spread("--input-noise", chosen["input_noise"] or [TrainConfig.input_noise], data),
        input_noise_min=_spread("--input-noise-min", chosen["input_noise_min"] or [TrainConfig.input_noise_min], data),
        init=start.sha256 if start else "",
        adversarial=chosen["adversarial"] or "",
        adversarial_epsilon=parse_epsilon("--adversarial-epsilon", chosen["adversarial_epsilon"]),
        classifier="+".join(judge.sha256 or name for judge, name in zip(judges, chosen["classifier"] or [], strict=True)),
    )
    model = start.model if start else None
    if not judges:
        return PurifierTrainer(config, dataset, where, start=model, features=seen)
    names = [f"--classifier {name}" for name in chosen["classifier"]]
    labelled = SmoothedPurifierTrainer if config.sigma else AdversarialTrainer
    return labelled(config, dataset, where, [judge.model for judge in judges], names=names, start=model)


def _load_judges(chosen: Mapping[str, Any]) -> list[Classifier]:
    """The classifiers that the networks learn in front of; empty where there are none.

    Raises:
        UsageError: attacks or noise without a classifier, or with features, which are of clean images.
    """
    from comdefend_cli.classifiers.loading import load_classifier

    option = "--adversarial" if chosen["adversarial"] else "--sigma" if chosen["sigma"] else ""
    if not option:
        return []
    if not chosen["classifier"]:
        raise UsageError(f"{option} needs --classifier: the networks learn in front of it")
    if chosen["features"]:
        raise UsageError(f"--features and {option} are two ways to train; give one of them")
    return [load_classifier(name, data=chosen["data"][0]) for name in chosen["classifier"]]


def _steps(steps: int | None, epochs: float | None, images: int, batch_size: int) -> int:
    if epochs is None:
        return TrainConfig.steps if steps is None else steps
    if not 0 < epochs < math.inf:
        raise UsageError(f"--epochs must be above 0, not {epochs}")
    return math.ceil(epochs * images / batch_size)


def _spread(option: str, values: list[float], data: list[str]) -> float | list[float]:
    """A setting of all parts of the data, or of each part, whose option was given once for each different data set."""
    if len(values) == 1:
        return values[0]
    different = list(dict.fromkeys(data))
    if len(values) != len(different):
        raise UsageError(f"{option} is there {len(values)} times for {len(different)} different --data: give it once, or once for each")
    by_name = dict(zip(different, values, strict=True))
    return [by_name[name] for name in data]


def _load_features(
    specs: list[str], weights: list[float], data: list[str], parts: list[Dataset]
) -> tuple[list[list[nn.Module]], str, float | list[float]]:
    """The classifiers of each part of the data; what the settings call them; their weight, or that of each part."""
    from comdefend_cli.classifiers.loading import load_classifier, try_classifier

    alone = len(set(data)) == 1
    by_name: dict[str, list[str]] = {}
    for spec in specs:
        name, _, classifier = (data[0], "", spec) if alone else spec.rpartition("=")
        if name not in data:
            raise UsageError(f"--features {spec}: say whose it is as DATA=CLASSIFIER, DATA being one of {', '.join(dict.fromkeys(data))}")
        by_name.setdefault(name, []).append(classifier)
    if len(weights) > 1 and len(weights) != len(by_name):
        raise UsageError(
            f"--feature-weight is there {len(weights)} times for {len(by_name)} data sets with --features: give it once, or once for each"
        )
    seen: dict[str, list[nn.Module]] = {}
    called = []
    for name, wanted in by_name.items():
        own = parts[data.index(name)].name
        loaded = [load_classifier(classifier, data=own) for classifier in wanted]
        for each, classifier in zip(loaded, wanted, strict=True):
            try_classifier(each.model.eval(), parts[data.index(name)].test.pixels[:2].float().div(255), f"--features {classifier}")
        seen[name] = [each.model for each in loaded]
        said = "+".join(each.sha256 or classifier for each, classifier in zip(loaded, wanted, strict=True))
        called.append(said if alone else f"{own}={said}")
    found = [seen.get(name, []) for name in data] if specs else []
    if len(weights) > 1:
        by_part = dict(zip(by_name, weights, strict=True))
        return found, ",".join(called), [by_part.get(name, 0.0) for name in data]
    return found, ",".join(called), weights[0] if weights else TrainConfig.feature_weight
