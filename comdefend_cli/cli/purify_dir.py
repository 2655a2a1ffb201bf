"""stub replaced below"""


def purify_dir() -> None:
    """Purify."""
