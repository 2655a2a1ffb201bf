"""The engine of this machine: reading, networks and writing overlap (:mod:`comdefend_cli.batch.pipeline`).

    with open_local(source, out, networks, options) as engine:  # Refuses here, before anything is written.
        for result in engine.results():
            ...

What was finished stands in the journal of the output folder (:mod:`comdefend_cli.batch.journal`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Hashable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import UnidentifiedImageError

from comdefend_cli.batch.budget import BUDGET, Stopped, fit_budget
from comdefend_cli.batch.engine import Result, prepare, report_known
from comdefend_cli.batch.networks import Networks
from comdefend_cli.batch.options import Options
from comdefend_cli.batch.pipeline import Item, Pipeline
from comdefend_cli.batch.plan import Job, Plan, explain_output
from comdefend_cli.batch.storage.listing import Stamp
from comdefend_cli.batch.storage.place import Place
from comdefend_cli.errors import ImageError, explain
from comdefend_cli.imaging.formats import find_format
from comdefend_cli.imaging.raster import Raster
from comdefend_cli.imaging.reading import read_image, read_size
from comdefend_cli.imaging.writing import encode_image, fit_to_format
from comdefend_cli.inference.planning import BATCH_PIXELS
from comdefend_cli.runtime.machine import count_cores, use_one_thread

#: Bytes from which a file that does not even begin like an image is not read whole to say so.
_LARGE_FILE = 64 * 2**20
#: Bytes of a file that take as much memory as one million pixels.
_BYTES_A_MEGAPIXEL = 8e6
#: Megapixels in work for each thread that decodes or encodes, beside a GPU: a photograph of today's cameras.
_THREAD_BUDGET = 16.0


@contextmanager
def open_local(source: Place, out: Place, networks: Networks, options: Options | None = None) -> Iterator[LocalEngine]:
    """Plan the way of a folder's images into another, and hold the output folder for it.

    Arguments and errors are those of :func:`comdefend_cli.batch.engine.prepare`.
    """
    options = options or Options()
    with prepare(source, out, networks.identity, options) as (plan, journal):
        engine = LocalEngine(source, out, networks, options, plan, journal)
        wait = True
        try:
            yield engine
        except KeyboardInterrupt:  # Whoever insists does not wait for threads that are in the networks.
            wait = False
            raise
        finally:
            engine.close(wait=wait)


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

    def finish(self, output: str, source: str, before: Stamp, after: Stamp, key: str) -> None:
        """Say that one is whole."""

    def drop(self, output: str) -> None:
        """Say that one did not come to be."""


class LocalEngine:
    """A planned run, which :func:`open_local` makes; as :class:`comdefend_cli.batch.engine.Engine`.

    Args:
        memory: this run's share of what the process may use, where others run beside it.
    """

    def __init__(
        self, source: Place, out: Place, networks: Networks, options: Options, plan: Plan, state: State, *, memory: float = 1.0
    ) -> None:
        self.plan, self.pixels = plan, 0
        self.identity, self.where = networks.identity, networks.where
        self._source, self._out = source, out
        self._networks, self._options, self._state = networks, options, state
        readers, writers = _count_threads(networks.device)
        # Beside a GPU the threads that decode and encode set the pace, and each needs an image at hand.
        most = BUDGET if networks.device.type == "cpu" else max(BUDGET, _THREAD_BUDGET * (readers + writers))
        budget = fit_budget(memory, most)
        self._pipeline: Pipeline[_File] = Pipeline(self, map(_File, plan.jobs), readers=readers, writers=writers, budget=budget)

    def stop(self) -> None:
        """End soon, with whole files; what is left is for the next run. May be called from a signal handler."""
        self._pipeline.stop_asked = True

    def close(self, *, wait: bool = True) -> None:
        """Let all threads end, and wait until they have, so that none outlives the journal."""
        self._pipeline.close(wait=wait)

    def results(self) -> Iterator[Result]:
        """One result an image, first those that are kept, the rest as they come to their end; fewer after :meth:`stop`."""
        yield from report_known(self.plan, self._source, self._out)
        # Where a GPU computes, the cores decode and encode, and what is left to PyTorch on them are copies.
        threads = nullcontext() if self._networks.device.type == "cpu" else use_one_thread()
        with threads, closing(self._pipeline.results()) as items:
            for item in items:
                yield self._make_result(item)

    def weigh(self, item: _File) -> float:
        """Megapixels that take as much memory as the file."""
        item.before = self._source.stamp(item.job.source)
        return item.before.st_size / _BYTES_A_MEGAPIXEL if item.before else 0.0

    def measure(self, item: _File) -> float:
        """Megapixels by the file's header."""
        name = item.job.source
        size = item.before.st_size if item.before else 0
        if size <= _LARGE_FILE:  # Read once, for its header and its pixels.
            item.data = self._source.read(name)
        try:
            with io.BytesIO(item.data) if item.data else self._source.open(name) as file:
                megapixels = math.prod(read_size(file)) / 1e6
        except Exception as error:
            if size > _LARGE_FILE and isinstance(error, UnidentifiedImageError):
                raise ImageError("not an image, or of an unknown format") from error
            return 0.0  # Reading will say why.
        return megapixels if megapixels <= self._options.max_megapixels else 0.0  # A larger one is refused without being decoded.

    def read(self, item: _File) -> None:
        """Decode."""
        name = item.job.source
        data, item.data = self._source.read(name) if item.data is None else item.data, None
        image = read_image(data, name=str(self._source.show(name)), max_megapixels=self._options.max_megapixels)
        del data
        item.shape, item.notices = image.pixels.shape, tuple(image.notices)
        item.image = fit_to_format(image, find_format(Path(item.job.output)), strip=self._options.strip)
        item.notices = (*explain_output(name, item.job.output, self._options.ending), *item.image.notices)

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
        key = self.identity.make_key(sha256, self._options)
        for item, array in zip(items, arrays, strict=True):
            item.image = replace(item.read, pixels=array)
            item.key = key

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
            self._state.finish(output, item.job.source, item.before, after, item.key)

    def release(self, item: _File) -> None:
        """Let go of the pixels."""
        item.image = item.data = None

    def _count_pixels(self, pixels: int) -> None:
        self.pixels += pixels
        if self._pipeline.stopping:
            raise Stopped

    def _make_result(self, item: _File) -> Result:
        source, output = self._source.show(item.job.source), self._out.show(item.job.output)
        return Result(
            source,
            output,
            "failed" if item.error else "done",
            _cut_path(explain(item.error), source, output) if item.error else "",
            item.job.size,
            item.shape[1] if item.shape else None,
            item.shape[0] if item.shape else None,
            item.seconds,
            item.notices,
            "" if item.error else find_format(Path(item.job.output)),
        )


def _cut_path(text: str, *paths: Path | str) -> str:
    """A reason without the path in front: a result has it in a place of its own."""
    for path in paths:
        text = text.removeprefix(f"{' '.join(str(path).split())}: ")
    return text


def _count_threads(device: torch.device) -> tuple[int, int]:
    """Readers and writers: they must keep up with a GPU, and leave the CPU to the network where that is there.

    More writers than readers on a CPU, since most of a writer's time is waiting for the disk to have the file for good.
    """
    if device.type == "cpu":
        return 2, 4
    count = max(2, min(16, count_cores()))
    return count, count
