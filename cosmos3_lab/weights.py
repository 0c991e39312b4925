"""Tensors on disk: find them, check them before reading a byte of data, and bring only the needed ones to the device.

A checkpoint component is a folder with `diffusion_pytorch_model.safetensors`, or with shards and an index
(`diffusion_pytorch_model.safetensors.index.json`); shards are cut by size and may split a layer. Only safetensors files are
read, so nothing can be executed.

Read next: `checkpoint.py`.
"""

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from cosmos3_lab.transfer import to_device, transfer_bar

INDEX = "diffusion_pytorch_model.safetensors.index.json"
SINGLE = "diffusion_pytorch_model.safetensors"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER = 100_000_000  # bytes; the safetensors library's own limit


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be loaded. The message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file, from the header alone."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.parameters * self.dtype.itemsize


def find_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of a component, by name; headers are read and checked, data is not touched.

    Raises:
        CheckpointError: a file is missing, truncated, or not a safetensors file; a tensor appears twice.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing; copy the whole checkpoint folder")
    files, listed = _files(folder)
    found: dict[str, TensorInfo] = {}
    for file in files:
        for info in read_header(file):
            if info.name in found:
                raise CheckpointError(
                    f"{file}: tensor {info.name} is also in {found[info.name].file.name}; remove one of the files"
                )
            found[info.name] = info
    if listed is not None:
        wrong = sorted(n for n, file in listed.items() if n not in found or found[n].file != file)
        if wrong:
            raise CheckpointError(
                f"{folder / INDEX} says that {wrong[0]} is in {listed[wrong[0]].name}, which is not so "
                f"({len(wrong)} such tensors); index and shards belong to different checkpoints, copy the folder again"
            )
        found = {name: found[name] for name in listed}
    return found


def read_header(path: Path) -> list[TensorInfo]:
    """Names, dtypes and shapes of a safetensors file, checked against the file's size.

    Raises:
        CheckpointError: not a safetensors file, cut short, or with tensors that do not fill it exactly.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if start.startswith(b"version "):
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` or download the file itself")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise CheckpointError(f"{path} is not a complete safetensors file ({size} bytes); copy it again")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not a safetensors file: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    entries = sorted((_entry(path, name, value) for name, value in header.items()), key=lambda e: e[1])
    end = 0
    for info, begin, stop in entries:
        if begin != end or stop - begin != info.nbytes:
            raise CheckpointError(
                f"{path}: tensor {info.name} lies at bytes {begin} to {stop}, expected {end} to {end + info.nbytes}"
            )
        end = stop
    if end != size - 8 - length:
        raise CheckpointError(
            f"{path} has {size - 8 - length} bytes of tensors and its header asks for {end}; the file is cut short or "
            "damaged, copy it again"
        )
    return [info for info, _, _ in entries]


# From a parameter's name to the names in the file: one, or two for weight norm (`weight_g`, `weight_v`).
Sources = Callable[[str], tuple[str, ...]]


def check_weights(
    module: nn.Module, tensors: Mapping[str, TensorInfo], *, component: str, sources: Sources, skip: tuple[str, ...]
) -> None:
    """Compare a component's tensors with the module that they are for, by name and shape; reads no data.

    Args:
        module: built under `torch.device("meta")`.
        tensors: of the component, from `find_tensors`.
        component: its name, for messages.
        sources: from a parameter's name to its names in the file.
        skip: prefixes of tensors that may be in the file and are not wanted.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another shape.
    """
    needed = {name: sources(name) for name, _ in module.named_parameters()}
    _check_names(component, {s for group in needed.values() for s in group}, tensors, skip)
    for name, parameter in module.named_parameters():
        _check_shapes(component, tuple(parameter.shape), [tensors[s] for s in needed[name]])


def load_weights(
    module: nn.Module,
    tensors: Mapping[str, TensorInfo],
    *,
    sources: Sources,
    device: torch.device,
    dtype: torch.dtype,
    float32: Callable[[str], bool] = lambda name: False,
) -> None:
    """Fill a module that was built on the meta device: each needed tensor goes from the page cache to the device, once.

    On a GPU a progress bar shows after a second.

    Args:
        module: built under `torch.device("meta")`.
        tensors: of the component, checked with `check_weights`.
        sources: see `check_weights`.
        device, dtype: where the weights go and as what. On the CPU, tensors that are stored as `dtype` stay mapped to the
            file and take no memory of their own.
        float32: whether a parameter stays in float32 whatever `dtype` is.

    Raises:
        CheckpointError: a file cannot be read.
    """
    needed = {name: [tensors[source] for source in sources(name)] for name, _ in module.named_parameters()}
    read, state, size = _Reader(), {}, sum(infos[-1].nbytes for infos in needed.values())

    def file(name: str) -> str:
        return str(needed[name][0].file)

    with transfer_bar(type(module).__name__, device, size) as bar:
        for _, group in groupby(sorted(needed, key=file), key=file):
            names = list(group)
            stored = [_fold([read(info) for info in needed[name]]) for name in names]
            for name, value in zip(names, to_device(stored, device, on_bytes=bar.update), strict=True):
                state[name] = value.to(torch.float32 if float32(name) else dtype)
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def _fold(stored: list[Tensor]) -> Tensor:
    """A tensor as it is stored; a pair of weight norm multiplied, on the CPU so that its bits are the same for every device."""
    return stored[0] if len(stored) == 1 else torch._weight_norm(stored[1].float(), stored[0].float(), 0)


def fingerprint(tensors: Iterable[TensorInfo], settings: str) -> str:
    """A name for a component: its settings, its tensors' names and shapes, and 64 samples of 4 KiB of each of its files.

    Reads little, and tells trained weights apart; a change of a few numbers by hand can go unseen.

    Args:
        tensors: of the component.
        settings: whatever else decides what it computes, as text.
    """
    tensors = sorted(tensors, key=lambda info: info.name)
    digest = sha256(settings.encode())
    for info in tensors:
        digest.update(f"{info.name} {info.dtype} {info.shape} {info.file.name}".encode())
    for path in sorted({info.file for info in tensors}):
        size = path.stat().st_size
        with open(path, "rb") as file:
            for sample in range(64):
                file.seek(sample * size // 64)
                digest.update(file.read(4096))
    return digest.hexdigest()[:16]


def without(tensors: Iterable[TensorInfo], skip: tuple[str, ...]) -> list[TensorInfo]:
    """The tensors whose names start with none of the prefixes."""
    return [info for info in tensors if not info.name.startswith(skip)]


class _Reader:
    """Maps tensors to their files, keeping one open at a time; nothing is read until it is used."""

    def __init__(self) -> None:
        self.path, self.file = None, None

    def __call__(self, info: TensorInfo) -> Tensor:
        from safetensors import SafetensorError, safe_open

        try:
            if info.file != self.path:
                self.path, self.file = info.file, safe_open(str(info.file), framework="pt")
            return self.file.get_tensor(info.name)
        except SafetensorError as error:
            raise CheckpointError(f"{info.file}: {error}") from error


def _files(folder: Path) -> tuple[list[Path], dict[str, Path] | None]:
    """The component's files, and where its index says each tensor is (None without an index)."""
    index = folder / INDEX
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = {name: Path(file) for name, file in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index} is not a safetensors index ({error!r}); copy it again") from error
        for name in sorted(set(names.values())):
            if name.is_absolute() or ".." in name.parts:
                raise CheckpointError(f"{index} points outside its folder, at {name}; do not use this checkpoint")
        listed = {name: folder / file for name, file in names.items()}
        for file in sorted(set(listed.values())):
            if not file.is_file():
                raise CheckpointError(f"{file} is missing, but {index.name} lists it; copy the whole folder")
        return sorted(set(listed.values())), listed
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], None
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no *.safetensors file; other formats are not read, because they can run code")
    return files, None


def _entry(path: Path, name: str, value: object) -> tuple[TensorInfo, int, int]:
    try:
        begin, stop = value["data_offsets"]
        shape, dtype = tuple(value["shape"]), value["dtype"]
        if not all(type(n) is int and n >= 0 for n in (begin, stop, *shape)):
            raise ValueError("a shape or an offset is not a whole number")
        if not isinstance(dtype, str):
            raise TypeError("the dtype is not a name")
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: the header's entry for {name!r} is broken ({error!r}); copy the file again") from error
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name} has dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    return TensorInfo(name, path, DTYPES[dtype], shape), begin, stop


def _check_names(component: str, needed: set[str], tensors: Mapping[str, TensorInfo], skip: tuple[str, ...]) -> None:
    missing = sorted(needed - tensors.keys())
    unexpected = sorted(n for n in tensors.keys() - needed if not (skip and n.startswith(skip)))
    for names, verb in ((missing, "lacks"), (unexpected, "has unexpected")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{component} {verb} tensor {names[0]}{more}; the weights do not belong to {component}/config.json"
            )


def _check_shapes(component: str, shape: tuple[int, ...], found: list[TensorInfo]) -> None:
    """One tensor of the parameter's shape, or the pair (g `[n, 1, ...]`, v of the parameter's shape)."""
    expected = [shape] if len(found) == 1 else [(shape[0], *[1] * (len(shape) - 1)), shape]
    for info, want in zip(found, expected, strict=True):
        if info.shape != want:
            raise CheckpointError(
                f"{info.file}: tensor {info.name} has shape {list(info.shape)}, but {component}/config.json asks for {list(want)}"
            )
