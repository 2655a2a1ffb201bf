"""What can go wrong through something a user did, as one exception with two exit codes.

Every message is one line: what was wrong, and what to do about it. The command line
catches :class:`ComdefendError` in one place, prints the message and exits with `exit_code`.
"""

#: Characters of an exception's message that stand in one of ours, which name paths and remedies besides.
_GIST = 400


class ComdefendError(Exception):
    """The work could not be done: a bad file, a full disk, a collapsed training run."""

    exit_code = 1


class UsageError(ComdefendError):
    """The request itself cannot be served: wrong option, absent device, output already there."""

    exit_code = 2


class ImageError(ComdefendError):
    """An image that cannot be read or written."""


class WeightsError(ComdefendError):
    """A weight file that is missing, damaged or of the wrong architecture."""


class DatasetError(ComdefendError):
    """Training images that are missing, damaged or could not be downloaded."""


class TrainingError(ComdefendError):
    """A training run that collapsed or cannot be continued."""


def explain(error: BaseException) -> str:
    """The gist of an exception on one line, its begin where it is long; an `OSError` without its errno and path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    # Of a hostile file, a message of Python's may hold all that is in it, megabytes too.
    text = " ".join(str(error)[: 10 * _GIST].split())
    return (text if len(text) <= _GIST else f"{text[:_GIST]}…") or type(error).__name__
