"""Every byte of a checkpoint's weights looked at: is each number one, and is each file the one that was published?

The Hugging Face hub's tools leave the SHA-256 of what they downloaded beside it, so that damage on the way or on the disk shows.
It does not show who wrote the file. 32 GB take as long as the disk needs to read them twice.

Read next: `inspection.py`.
"""

import re
from collections.abc import Iterable, Iterator
from hashlib import file_digest
from pathlib import Path

import torch

from cosmos3_lab.untrusted import CheckpointError, reading
from cosmos3_lab.weights import TensorInfo

SHA256 = re.compile(r"[0-9a-f]{64}")


def scan(folder: Path, tensors: Iterable[TensorInfo]) -> Iterator[str]:
    """What is wrong with the weights, one line each.

    Args:
        folder: of the checkpoint.
        tensors: whose files are read, from `find_tensors`.
    """
    by_file: dict[Path, list[TensorInfo]] = {}
    for info in tensors:
        by_file.setdefault(info.file, []).append(info)
    for file, infos in by_file.items():
        try:
            yield from _scan_file(folder, file, infos)
        except CheckpointError as error:
            yield str(error)


def _scan_file(folder: Path, file: Path, infos: list[TensorInfo]) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    known = known_sha256(folder, file)
    with reading(file):
        if known is not None:
            with open(file, "rb") as content:
                found = file_digest(content, "sha256").hexdigest()
            if found != known:
                yield f"{file} has SHA-256 {found}, the hub's file has {known}; it is damaged or was changed, download it again"
        try:
            with safe_open(str(file), framework="pt") as opened:
                broken = [info.name for info in infos if not _is_finite(opened.get_tensor(info.name))]
        except SafetensorError as error:
            raise CheckpointError(f"{file}: {error}") from error
    if broken:
        more = f" and {len(broken) - 1} more tensors" if len(broken) > 1 else ""
        yield f"{file}: tensor {broken[0]}{more} with NaN or infinity; the file is damaged, copy it again"


def _is_finite(tensor: torch.Tensor) -> bool:
    return tensor.numel() == 0 or bool(torch.stack(torch.aminmax(tensor)).float().isfinite().all())


def known_sha256(folder: Path, file: Path) -> str | None:
    """The SHA-256 that the hub's tools noted for a file, None where they did not.

    Args:
        folder: of the checkpoint.
        file: in it.
    """
    blob = file.resolve()  # in the hub's cache a file is a link to a blob that is named after its hash
    if blob.parent.name == "blobs" and SHA256.fullmatch(blob.name):
        return blob.name
    note = folder / ".cache" / "huggingface" / "download" / f"{file.relative_to(folder)}.metadata"  # hf download --local-dir
    lines = note.read_text(encoding="utf-8", errors="replace").splitlines() if note.is_file() else []
    return lines[1] if len(lines) > 1 and SHA256.fullmatch(lines[1]) else None
