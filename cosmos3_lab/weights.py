"""Tensors on disk: find them, check them before reading a byte of data, and bring only the needed ones to the device.

A checkpoint component is a folder with `diffusion_pytorch_model.safetensors`, or with shards and an index
(`diffusion_pytorch_model.safetensors.index.json`); shards are cut by size and may split a layer. Only safetensors files are
read, so nothing can be executed.

Read next: `checkpoint.py`.
"""

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
from cosmos3_lab.untrusted import CheckpointError, has_file, has_folder, parse_object, read_json, reading

INDEX = "diffusion_pytorch_model.safetensors.index.json"
SINGLE = "diffusion_pytorch_model.safetensors"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER = 10_000_000  # bytes; a hundred times those of Nano's largest shard
ALWAYS_SCANNED = 2**32  # bytes; a component of fewer is looked through for NaN though that reads it from the disk
MAX_AXES = 8  # of a tensor; none here has more than five


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
        CheckpointError: a file is missing, truncated, or not a safetensors file; a tensor appears twice; float16 stands beside
            bfloat16.
    """
    if not has_folder(folder):
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
    halves = {info.dtype: info for info in found.values() if info.dtype.itemsize == 2}
    if len(halves) > 1:
        one, other = halves.values()
        raise CheckpointError(
            f"{one.file}: tensor {one.name} is {one.dtype} and {other.name} is {other.dtype}; one was mislabelled"
        )
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
    with reading(path), open(path, "rb") as file:
        size, start = path.stat().st_size, file.read(8)
        if start.startswith(b"version "):
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` or download the file itself")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise CheckpointError(f"{path} is not a complete safetensors file ({size} bytes); copy it again")
        header = parse_object(file.read(length), f"{path} is not a safetensors file: its header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} has a __metadata__ that is not an object of texts; copy the file again")
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
        CheckpointError: a file cannot be read, or holds NaN or infinity. That is looked for where the numbers are copied or
            converted anyway, and in small components; what else stays mapped to its file is left to the first step.
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
            copied = zip(names, stored, strict=True)
            _check_finite({needed[n][0]: state[n] for n, was in copied if state[n] is not was or size < ALWAYS_SCANNED})
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def _check_finite(weights: Mapping[TensorInfo, Tensor]) -> None:
    """Largest and smallest number of each, which are NaN where one number is; one pass, at the speed of the memory."""
    if not weights:
        return
    ends = torch.stack([torch.stack(torch.aminmax(value)).float() for value in weights.values()])
    for info, finite in zip(weights, ends.isfinite().all(1).tolist(), strict=True):
        if not finite:
            raise CheckpointError(f"{info.file}: tensor {info.name} holds NaN or infinity; the file is damaged, copy it again")


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
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{info.file}: {error}") from error


def _files(folder: Path) -> tuple[list[Path], dict[str, Path] | None]:
    """The component's files, and where its index says each tensor is (None without an index)."""
    index = folder / INDEX
    if has_file(index):
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map, so it is not a safetensors index; copy it again")
        for name, file in weight_map.items():
            if not _is_plain_name(file):
                raise CheckpointError(
                    f"{index} says that {name} is in {file!r}, which is not the name of a safetensors file and may lie outside "
                    "its folder; do not use this checkpoint"
                )
        listed = {name: folder / file for name, file in weight_map.items()}
        for file in sorted(set(listed.values())):
            if not has_file(file):
                raise CheckpointError(f"{file} is missing, but {index.name} lists it; copy the whole folder")
        return sorted(set(listed.values())), listed
    if has_file(folder / SINGLE):
        return [folder / SINGLE], None
    with reading(folder):
        files = [file for file in sorted(folder.glob("*.safetensors")) if has_file(file)]
    if not files:
        raise CheckpointError(f"{folder} has no *.safetensors file; other formats are not read, because they can run code")
    return files, None


def _is_plain_name(file: object) -> bool:
    """Of a file beside the index: no way into another folder in it, on no system."""
    if not isinstance(file, str) or not file.endswith(".safetensors"):
        return False
    return file.isprintable() and len(file.encode()) < 256 and not set(file) & set("/\\:") and not file.startswith("~")


def _entry(path: Path, name: str, value: object) -> tuple[TensorInfo, int, int]:
    try:
        begin, stop = value["data_offsets"]
        shape, dtype = tuple(value["shape"]), value["dtype"]
        if len(shape) > MAX_AXES or not all(type(n) is int and n >= 0 for n in (begin, stop, *shape)):
            raise ValueError("a shape or an offset is not a whole number, or there are too many")
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
            folder = next((info.file.parent for info in tensors.values()), component)
            raise CheckpointError(
                f"{folder}: {component} {verb} tensor {names[0]}{more}; the weights do not belong to {component}/config.json"
            )


def _check_shapes(component: str, shape: tuple[int, ...], found: list[TensorInfo]) -> None:
    """One tensor of the parameter's shape, or the pair (g `[n, 1, ...]`, v of the parameter's shape)."""
    expected = [shape] if len(found) == 1 else [(shape[0], *[1] * (len(shape) - 1)), shape]
    for info, want in zip(found, expected, strict=True):
        if info.shape != want:
            raise CheckpointError(
                f"{info.file}: tensor {info.name} has shape {list(info.shape)}, but {component}/config.json asks for {list(want)}"
            )
