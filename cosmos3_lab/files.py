"""Writing a file so that nobody ever sees half of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; rename it to `path` at the end, or remove it on any error.

    Args:
        path: the final name. A file that is already there stays whole until the new one is complete.

    Raises:
        OSError: the folder is not writable, the disk is full, and so on, with `path` in the message.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")  # the suffix tells PyAV the container
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise type(error)(error.errno, f"could not write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # where not even the folder could be made
            temporary.unlink(missing_ok=True)


def check_writable(folder: str | Path) -> None:
    """Create `folder` and try to write in it, before hours of work depend on it.

    Raises:
        OSError: with the folder and the reason in the message.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"cannot write in {folder}: {error.strerror or error}") from error
