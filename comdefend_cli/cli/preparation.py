"""What commands do before their work: find out what would fail after it, and get the data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from comdefend_cli.cli import progress
from comdefend_cli.cli.console import notice
from comdefend_cli.errors import DatasetError, UsageError
from comdefend_cli.runtime.files import refuse_existing, refuse_unwritable_folder

if TYPE_CHECKING:
    from comdefend_cli.data.labelled import Labelled
    from comdefend_cli.data.sources import Dataset


def refuse_tensor_file(path: Path, *, overwrite: bool, what: str = "a weight file", room: int = 0) -> None:
    """Refuse an output that will not be writable as a safetensors file, with `room` bytes free where it goes.

    Raises:
        UsageError: another ending, or a file that is there.
        ComdefendError: a folder that is not there, not writable or full.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: {what} ends in .safetensors")
    refuse_existing(path, overwrite=overwrite)
    refuse_unwritable_folder(path, room=room)


def fetch_dataset(data: str, folder: Path, *, download: bool, quiet: bool, crop: int | None = None, shrink: int = 1) -> Dataset:
    """A data set by name or folder, with a bar while it downloads and a notice of files that are left out.

    Args:
        data, folder, download: as of :func:`comdefend_cli.data.datasets.load_dataset`, which also says what is raised.
        quiet: show and say nothing.
        crop, shrink: likewise; None for the default side.
    """
    from comdefend_cli.data.datasets import load_dataset
    from comdefend_cli.data.sources import CROP
    from comdefend_cli.imaging.reading import prepare_pillow

    prepare_pillow()  # Of a folder of images, each has the limit that it has in `purify`.
    _refuse_absent_data(data)
    side = crop or CROP
    with progress.show_reading(Path(data).name, quiet=quiet) as show:
        dataset = load_dataset(data, folder, download=download, progress=show, crop=side, shrink=shrink)
    if dataset.skipped:
        said = "1 file in {} is no image" if dataset.skipped == 1 else f"{dataset.skipped} files in {{}} are no images"
        notice(f"{said.format(data)} of {side}x{side} pixels or more", quiet=quiet)
    return dataset


def fetch_labelled(data: str, folder: Path, *, limit: int | None, seed: int, size: int | None, download: bool, quiet: bool) -> Labelled:
    """Images with labels, with the same bar and notice; the rest as of :func:`comdefend_cli.data.labelled.load_labelled`."""
    from comdefend_cli.data.labelled import load_labelled
    from comdefend_cli.imaging.reading import prepare_pillow

    prepare_pillow()
    _refuse_absent_data(data)
    with progress.show_reading(Path(data).name, quiet=quiet) as show:
        labelled = load_labelled(data, folder, limit=limit, seed=seed, size=size, download=download, progress=show)
    if labelled.skipped:
        notice(f"{labelled.skipped} {'file' if labelled.skipped == 1 else 'files'} in {data} could not be read as images", quiet=quiet)
    return labelled


def _refuse_absent_data(data: str) -> None:
    """Raise :class:`UsageError` where --data is neither a data set's name nor a folder."""
    from comdefend_cli.data.datasets import DATASETS
    from comdefend_cli.data.folder import find_folder

    if data not in DATASETS:
        try:
            find_folder(data, f"{', '.join(DATASETS)}, or a folder of images")
        except DatasetError as error:
            raise UsageError(str(error)) from error
