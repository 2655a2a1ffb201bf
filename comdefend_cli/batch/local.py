"""A folder of images, purified into another: plans input -> output, refuses collisions, resumes, yields one result a file.

    with folder.opened(source, out, networks, ...) as work:   # refuses here, before anything is written
        for result in work.results():
            ...

What was finished stands in the journal of the output folder (:mod:`comdefend_cli.batch.journal`); reading, network
and writing overlap (:mod:`comdefend_cli.batch.pipeline`).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Hashable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from comdefend_cli.backends.select import describe
from comdefend_cli.batch import journal
from comdefend_cli.batch import storage as places
from comdefend_cli.batch.budget import BUDGET, Stopped, fit_budget
from comdefend_cli.batch.journal import Journal
from comdefend_cli.batch.pipeline import Item, Pipeline
from comdefend_cli.batch.plan import Job, Options, Plan, default_output, plan, scan
from comdefend_cli.batch.storage import Place, Stamp
from comdefend_cli.errors import ImageError, reason
from comdefend_cli.imaging.formats import find_format, find_readable_formats, refuse_misfit
from comdefend_cli.imaging.raster import Raster
from comdefend_cli.imaging.reading import read_image
from comdefend_cli.imaging.writing import encode_image
from comdefend_cli.inference.purifier import BATCH_PIXELS, Purifier, Settings
from comdefend_cli.network.registry import DEFAULT_COLOR, DEFAULT_GRAY, load_weights, read_registry
from comdefend_cli.network.weight_file import Weights
from comdefend_cli.runtime.device import describe_device, dtype_name
from comdefend_cli.runtime.machine import count_cores, use_one_thread

__all__ = ["Job", "Networks", "Options", "Plan", "Result", "Work", "default_output", "opened"]

#: Bytes from which a file that does not even begin like an image is not read whole to say so.
_LARGE_FILE = 64 * 2**20
#: Bytes of a file that take as much memory as one million pixels.
_BYTES_A_MEGAPIXEL = 8e6

#: Megapixels in work for each thread that decodes or encodes, beside a GPU: a photograph of today's cameras.
_THREAD_BUDGET = 16.0

#: How the names of files begin in which workers on other machines say what they have begun (see :mod:`comdefend_cli.batch.ray_engine`).
BEGUN = ".comdefend-begun-"

Status = Literal["done", "kept", "failed"]


@dataclass(frozen=True)
class Result:
    """What came of one input.

    Attributes:
        input, output: paths, or URLs; the output is there unless the status is "failed".
        status: "done" now, "kept" from an earlier run, or "failed".
        reason: why it failed, or "".
        size: bytes of the input.
        width, height: in pixels, upright; None if it was not read.
        seconds: of work, without waiting.
        notices: what was changed in reading it, one sentence each.
        format: of the output, as Pillow names it, or "".
    """

    input: Path | str
    output: Path | str
    status: Status
    reason: str = ""
    size: int = 0
    width: int | None = None
    height: int | None = None
    seconds: float = 0.0
    notices: tuple[str, ...] = ()
    format: str = ""


class Networks:
    """The purifiers of a run, and what tells their results from those of others.

    Args:
        weights: a name or a file for all images, or loaded ones, or None for the defaults: one for colour, one for grey.
        device, precision, backend, settings: as of :class:`comdefend_cli.inference.purifier.Purifier`.

    Raises:
        UsageError, WeightsError: as :meth:`Purifier.from_pretrained`; the default for grey is loaded
            with the first grey image, so what is wrong with it fails those images.
    """

    def __init__(
        self,
        weights: str | Weights | None,
        *,
        device: str = "auto",
        precision: str = "auto",
        backend: str = "torch",
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self._given = weights is not None
        if not isinstance(weights, Weights):
            weights = load_weights(weights or DEFAULT_COLOR)
        self._color = weights
        self.purifier = Purifier.from_weights([self._color], device=device, precision=precision, backend=backend, settings=self.settings)
        parameter = next(self.purifier.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @property
    def how(self) -> str:
        """What is computed in, and by what where that is not PyTorch; a part of what tells results apart."""
        return describe(self.precision, self.backend)

    @property
    def precision(self) -> str:
        """What is computed in."""
        return self.purifier.precision

    @property
    def backend(self) -> str:
        """What computes."""
        return self.purifier.backend

    @property
    def where(self) -> str:
        """The device, for a person."""
        return describe_device(self.device)

    def route(self, *, gray: bool) -> tuple[Purifier, str]:
        """The purifier for a grey or a colour image, and the SHA-256 of its weights."""
        if gray and not self._given:
            return self._gray
        return self.purifier, self._color.sha256

    @cached_property
    def _gray(self) -> tuple[Purifier, str]:
        loaded = load_weights(DEFAULT_GRAY)
        # Samples that were asked for because of the colour weights' own noise are all the same without noise.
        noise = self.settings.random or (self.settings.input_noise is None and loaded.header.input_noise > 0)
        settings = self.settings if noise else replace(self.settings, samples=1)
        purifier = Purifier.from_weights(
            [loaded], device=self.device, precision=dtype_name(self.dtype), backend=self.purifier.backend, settings=settings
        )
        return purifier, loaded.sha256

    @property
    def sha256s(self) -> list[str]:
        """SHA-256 of all weights that may be used; the default for grey needs not be loaded for it."""
        gray = None if self._given else read_registry().get(DEFAULT_GRAY)
        return [self._color.sha256, *([gray["sha256"]] if gray else [])]

    def describe(self) -> list[object]:
        """All of the settings that can change pixels, but the weights."""
        settings = self.settings
        exact = settings.tiling == "exact"
        # The weights' SHA-256, beside this, says what noise they have of their own.
        noise = settings.random or settings.input_noise is None
        return [
            self.how,
            settings.tiling,
            settings.tile if exact and self.how != "float32" else None,
            settings.noise_std,
            settings.input_noise,
            *([settings.seed, settings.samples] if noise else []),
        ]


@contextmanager
def opened(source: Path, out: Path, networks: Networks, options: Options | None = None) -> Iterator[Work]:
    """Plan the way of a folder's images into another, and hold the output folder for it.

    Args:
        source: the folder of images; nothing in it is changed.
        out: the output folder, made if need be; it may lie in `source`, and is then left out of the scan.
        networks: what purifies.
        options: see :class:`Options`.

    Raises:
        UsageError: `source` is no folder; the outputs of two inputs, or an output and a file that is not
            ours, collide; another run works in `out`.
        ComdefendError: a folder cannot be read or written.
    """
    options = options or Options()
    places_ = places.Folder(source), places.Folder(out)
    with prepared(*places_, networks, options) as (planned, state):
        yield Work(*places_, networks, options, planned, state)


@contextmanager
def prepared(source: Place, out: Place, networks: Networks, options: Options) -> Iterator[tuple[Plan, Journal]]:
    """What any engine begins with: the plan, and the journal of the output folder, held. Errors as of :func:`opened`."""
    found = scan(source, out, options)
    with journal.opened(out) as state:
        adopt(out, state)
        keys = {sha256: _key(sha256, networks, options) for sha256 in networks.sha256s}
        planned = plan(source, out, found, state, set(keys.values()), overwrite=options.overwrite)
        state.sweep()
        yield planned, state


def adopt(out: Place, state: Journal) -> None:
    """Take over what workers of a run on several machines said to have begun and did not report."""
    for name in out.beginning_with(BEGUN):
        with suppress(ValueError, TypeError, KeyError):
            state.begin(list(map(str, json.loads(out.read(name))["outputs"])))
        state.sync()
        out.remove(name)
    for name in out.beginning_with(f".{BEGUN}"):  # Not whole yet when its writer died, before it had begun anything.
        out.remove(name)


def known(planned: Plan, source: Place, out: Place) -> Iterator[Result]:
    """Results of what needs no work: kept from before, or in folders that cannot be listed."""
    for name, output in planned.kept:
        yield Result(source.show(name), out.show(output), "kept")
    for name, text in planned.found.unreadable:
        yield Result(source.show(name), out.show(name), "failed", text)


def _key(sha256: str, networks: Networks, options: Options) -> str:
    """16 hexadecimal digits that differ if the output may differ; the format stands in the output's name."""
    text = json.dumps([sha256, *networks.describe(), options.strip, options.quality, options.ending])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class _File(Item):
    """An image on its way through the pipeline."""

    job: Job
    before: Stamp | None = field(default=None, init=False)
    data: bytes | None = field(default=None, init=False)
    image: Raster | None = field(default=None, init=False)
    shape: tuple[int, ...] = field(default=(), init=False)
    notices: tuple[str, ...] = field(default=(), init=False)
    key: str = field(default="", init=False)

    @property
    def read(self) -> Raster:
        """The image, of which it is known that it was read."""
        assert self.image is not None
        return self.image


class State(Protocol):
    """What work says of outputs while it goes on: a :class:`Journal`, or what carries it to one."""

    def begin(self, outputs: list[str]) -> None:
        """Say that these may appear from now on."""

    def done(self, output: str, source: str, before: Stamp, after: Stamp, key: str) -> None:
        """Say that one is whole."""

    def drop(self, output: str) -> None:
        """Say that one did not come to be."""


class Work:
    """A planned run: made by :func:`opened`, done by going through :meth:`results` once.

    Args:
        memory: this run's share of what the process may use, where others run beside it.

    Attributes:
        plan: what will be done.
        pixels: number of pixels that went through the network so far.
    """

    def __init__(
        self, source: Place, out: Place, networks: Networks, options: Options, plan: Plan, state: State, *, memory: float = 1.0
    ) -> None:
        self.plan = plan
        self.pixels = 0
        self._source, self._out = source, out
        self._networks, self._options, self._state = networks, options, state
        readers, writers = _threads(networks.device)
        # Beside a GPU the threads that decode and encode set the pace, and each needs an image at hand.
        most = BUDGET if networks.device.type == "cpu" else max(BUDGET, _THREAD_BUDGET * (readers + writers))
        budget = fit_budget(memory, most)
        self._pipeline: Pipeline[_File] = Pipeline(self, map(_File, plan.jobs), readers=readers, writers=writers, budget=budget)

    def stop(self) -> None:
        """End soon, with whole files; what is left is for the next run. May be called from a signal handler."""
        self._pipeline.stop_asked = True

    def results(self) -> Iterator[Result]:
        """One result an image, first those that are kept, the rest as they come to their end; fewer after :meth:`stop`."""
        yield from known(self.plan, self._source, self._out)
        # Where a GPU computes, the cores decode and encode, and what is left to PyTorch on them are copies.
        threads = nullcontext() if self._networks.device.type == "cpu" else use_one_thread()
        with threads, closing(self._pipeline.results()) as items:
            for item in items:
                yield self._result(item)

    def size(self, item: _File) -> float:
        """Megapixels that take as much memory as the file."""
        item.before = self._source.stamp(item.job.source)
        return item.before.st_size / _BYTES_A_MEGAPIXEL if item.before else 0.0

    def measure(self, item: _File) -> float:
        """Megapixels by the file's header."""
        name = item.job.source
        size = item.before.st_size if item.before else 0
        if size <= _LARGE_FILE:  # Read once, for its header and its pixels.
            item.data = self._source.read(name)
        pixels = 0  # Unless the header says more; if it says nothing, reading will say why.
        try:
            with (
                io.BytesIO(item.data) if item.data else self._source.open(name) as file,
                Image.open(file, formats=find_readable_formats()) as image,
            ):
                pixels = image.width * image.height
        except UnidentifiedImageError as error:
            if size > _LARGE_FILE:
                raise ImageError("not an image, or of an unknown format") from error
        except Exception:
            pixels = 0
        if pixels > self._options.max_megapixels * 1e6:
            pixels = 0  # Will be refused without being decoded.
        return pixels / 1e6

    def read(self, item: _File) -> None:
        """Decode."""
        name = item.job.source
        data, item.data = self._source.read(name) if item.data is None else item.data, None
        item.image = read_image(data, name=str(self._source.show(name)), max_megapixels=self._options.max_megapixels)
        del data
        item.shape, item.notices = item.image.pixels.shape, tuple(item.image.notices)
        refuse_misfit(item.image, find_format(Path(item.job.output)))

    def group(self, item: _File) -> tuple[Hashable, int]:
        """Images of one size and number of channels go together."""
        return item.shape, max(1, BATCH_PIXELS[self._networks.device.type] // (item.shape[0] * item.shape[1]))

    def compute(self, items: list[_File]) -> None:
        """Purify a batch of one shape."""
        purifier, sha256 = self._networks.route(gray=items[0].read.gray)
        pixels = items[0].read.pixels[None] if len(items) == 1 else np.stack([item.read.pixels for item in items])
        cleaned = purifier.purify(torch.from_numpy(pixels).permute(0, 3, 1, 2), self._count_pixels)
        arrays = cleaned.permute(0, 2, 3, 1).contiguous().numpy()
        self._state.begin([item.job.output for item in items])
        for item, array in zip(items, arrays, strict=True):
            item.image = replace(item.read, pixels=array)
            item.key = _key(sha256, self._networks, self._options)

    def write(self, item: _File) -> None:
        """Encode, and put the file into its place whole."""
        output = item.job.output
        try:
            format_name = find_format(Path(output))
            data = encode_image(item.read, format_name, quality=self._options.quality, strip=self._options.strip)
            after = self._out.write(output, data, overwrite=item.job.replaces)
        except BaseException:
            if not item.job.replaces:
                self._state.drop(output)
            raise
        if item.before is not None:
            self._state.done(output, item.job.source, item.before, after, item.key)

    def release(self, item: _File) -> None:
        """Let go of the pixels."""
        item.image = item.data = None

    def _count_pixels(self, pixels: int) -> None:
        self.pixels += pixels
        if self._pipeline.stopping:
            raise Stopped

    def _result(self, item: _File) -> Result:
        source, output = self._source.show(item.job.source), self._out.show(item.job.output)
        return Result(
            source,
            output,
            "failed" if item.error else "done",
            _without(reason(item.error), source, output) if item.error else "",
            item.job.size,
            item.shape[1] if item.shape else None,
            item.shape[0] if item.shape else None,
            item.seconds,
            item.notices,
            "" if item.error else find_format(Path(item.job.output)),
        )


def _without(text: str, *paths: Path | str) -> str:
    """A reason without the path in front: a result has it in a place of its own."""
    for path in paths:
        text = text.removeprefix(f"{' '.join(str(path).split())}: ")
    return text


def _threads(device: torch.device) -> tuple[int, int]:
    """Readers and writers: they must keep up with a GPU, and leave the CPU to the network where that is there.

    More writers than readers on a CPU, since most of a writer's time is waiting for the disk to have the file for good.
    """
    if device.type == "cpu":
        return 2, 4
    count = max(2, min(16, count_cores()))
    return count, count
