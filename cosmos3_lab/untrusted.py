"""Files of a checkpoint, which may be damaged or hostile: read within limits, or refused in one line that names the file.

A folder that the user named may be made of links (the cache of the Hugging Face hub is), so links are followed; what is found
there must be a regular file. What a file says never becomes a path: an index names files of its own folder.

Read next: `weights.py`, `settings.py`, `prompt.py`, which read with these.
"""

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_TEXT = 4_000_000  # bytes of a settings file; the largest of Nano's is its index, with a tenth of a megabyte
LONGEST = 800  # characters of a message


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be loaded. The message is one line that names the file, what is wrong and what to do.

    Args:
        message: may quote the file: what would move the cursor or break the line is escaped, what is too long is cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Text from outside, safe to print: nothing but printable characters, and not too many.

    Args:
        text: anything, also with halves of surrogate pairs in it.
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 200]} ... {text[-190:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def has_file(path: Path) -> bool:
    """Whether there is a regular file, maybe by a link.

    Args:
        path: of the file.

    Raises:
        CheckpointError: something else is there: a folder, a pipe, a device, a link to nothing.
    """
    return _has(path, stat.S_ISREG, "a file")


def has_folder(path: Path) -> bool:
    """Whether there is a folder, maybe by a link.

    Args:
        path: of the folder.

    Raises:
        CheckpointError: something else is there.
    """
    return _has(path, stat.S_ISDIR, "a folder")


def _has(path: Path, is_kind: Any, kind: str) -> bool:  # noqa: ANN401  (of the stat module)
    with reading(path):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            if any(part.is_symlink() for part in (path, path.parent) if not part.exists()):
                raise CheckpointError(f"{path} is missing: the link leads nowhere; copy the whole checkpoint") from None
            return False
    if not is_kind(mode):
        raise CheckpointError(f"{path} is not {kind}; copy it again from the checkpoint")
    return True


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever the system says against reading a file becomes a `CheckpointError`.

    Args:
        path: of the file, for the message.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error


def read_text(path: Path, *, most: int = MAX_TEXT) -> str:
    """A small text file.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        CheckpointError: it is missing, too long, a Git LFS pointer, or not UTF-8.
    """
    if not has_file(path):
        raise CheckpointError(f"{path} is missing; copy the whole checkpoint")
    with reading(path), open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise CheckpointError(f"{path} has more than {most} bytes; it is not the file of a Cosmos3 checkpoint")
    if content.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file; run `git lfs pull` or download the file itself")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not JSON or other text in UTF-8 (byte {error.start}); copy it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """A settings file.

    Args:
        path: of the file.

    Raises:
        CheckpointError: see `read_text` and `parse_object`.
    """
    return parse_object(read_text(path), f"{path}")


def parse_object(text: str | bytes, what: str) -> dict[str, Any]:
    """A JSON object in which no key stands twice: whoever reads such a file takes one of the two, and not all take the same.

    Args:
        text: of the document.
        what: what it is, for messages.

    Raises:
        CheckpointError: not JSON, not an object, or a key stands twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{what} has the key {twice!r} twice; copy it again")
        return made

    try:
        value = json.loads(text, object_pairs_hook=once)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is not a JSON object; copy it again")
    return value
