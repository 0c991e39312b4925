"""When memory runs out: let go of everything first, then say in one line what was needed and what would fit.

An exception keeps alive the frames that it passed through, and with them every tensor that they had; in a notebook it stays until
the next one. So the frames are cleared, the memory goes back to the GPU, and a new error without them is raised.

Read next: `plan.py`, whose numbers these are.
"""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import needs_negative
from cosmos3_lab.memory import GIB, Placement, give_back
from cosmos3_lab.plan import CONTEXT_ROOM, ClipPlan, plan_run
from cosmos3_lab.presets import Preset
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.settings import CheckpointConfigs
from cosmos3_lab.sizes import latent_to_pixel_shape
from cosmos3_lab.speed import H100


class OutOfMemoryError(MemoryError):
    """A run did not fit. The message has the plan's numbers and what to change; the memory is free again."""


@contextmanager
def freeing_memory(models: Cosmos3Models, request: Cosmos3T2VRequest, preset: Preset) -> Iterator[None]:
    """A block that may run out of memory, on the GPU or on the CPU.

    The function that has this block must not have tensors of the run in its own variables: its frame lives on in the new error.

    Args:
        models: that the block uses; in split placement all of them go home.
        request: that the block works on, resolved (`resolve_run`).
        preset: that it works with.

    Raises:
        OutOfMemoryError: in place of PyTorch's error.
    """
    try:
        yield
        return
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        notes = getattr(error, "__notes__", [])
        _clear(error)
    give_back(models.device)
    if models.placement == "split":
        models.place("stream")
    told = OutOfMemoryError(out_of_memory_words(models.configs, request, preset, models.placement, *_memory_of(models.device)))
    for note in notes:
        told.add_note(note)
    raise told


def _is_out_of_memory(error: BaseException) -> bool:
    """PyTorch's error for the GPU, Python's own, and what PyTorch's allocator for the CPU raises."""
    if isinstance(error, OutOfMemoryError):
        return False  # it has been through here
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _clear(error: BaseException | None) -> None:
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _memory_of(device: torch.device) -> tuple[int | None, int]:
    """Bytes that a run may have (None where nobody says), and bytes of the whole device."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device), total
    return None, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def out_of_memory_words(
    configs: CheckpointConfigs,
    request: Cosmos3T2VRequest,
    preset: Preset,
    placement: Placement,
    available: int | None,
    total: int,
) -> str:
    """What was needed, what there is, and the cheapest change that fits.

    Cheapest is what changes least: split placement, which gives the same bits; then the largest clip that fits.

    Args:
        configs: of the checkpoint.
        request: that did not fit, resolved (`resolve_run`).
        preset: that it ran with.
        placement: that it ran in.
        available: bytes that a run may have on the GPU, its weights included; None on the CPU.
        total: bytes of the device.
    """
    media, sound = configs.media, request.sound_frames is not None
    frames, height, width = latent_to_pixel_shape(request.video_shape, temporal=media.temporal, spatial=media.spatial)
    prompts = (request.text_ids, request.neg_text_ids) if needs_negative(request, preset) else (request.text_ids,)
    plan = plan_run(
        configs,
        [(height, width, frames)],
        with_sound=sound,
        num_inference_steps=request.num_inference_steps,
        text_tokens=tuple(ids.shape[1] for ids in prompts),
        gpu_memory=None if available is None else (available + CONTEXT_ROOM) / GIB,
        rates=H100,  # seconds are not told
    )
    clip, name = plan.clips[0], f"{height}x{width}x{frames}{' with sound' if sound else ''}"
    needs = ", ".join(f"{_gib(option.peak)} {option.placement}" for option in clip.options)
    if available is None:
        return (
            f"out of memory on the CPU: {name} needs about {_gib(clip.resident.peak)} by the plan, and this machine has "
            f"{_gib(total)} in all, for all programs; ask for fewer frames or a smaller size, or close other programs"
        )
    said = f"out of GPU memory: {name} needs {needs} by the plan, and there are {_gib(available)} for it"
    if total - available > GIB:
        said += f" ({_gib(total - available)} of {_gib(total)} are in use by others)"
    return f"{said}; {_cheapest(clip, placement)}"


def _cheapest(clip: ClipPlan, placement: Placement) -> str:
    if clip.chosen is None:
        fits = [f"{other.clip.name} ({_gib(other.chosen.peak)} {other.chosen.placement})" for other in clip.alternatives]
        if not fits:
            return "no smaller clip fits either: close other programs that use the GPU, or load with quantize='int8'"
        return f"the largest that fits is {fits[0]}" + (f", others are {', '.join(fits[1:])}" if fits[1:] else "")
    if placement == "resident" and clip.chosen.placement == "split":
        return "load with placement='split' (--placement split), which gives the same bits"
    return (
        f"that should fit {clip.chosen.placement}: other tensors of this process or gaps in its memory were in the way, so close "
        "what else uses the GPU, restart the kernel, or take a smaller size"
    )


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.1f} GiB" if nbytes >= GIB / 10 else f"{nbytes / 2**20:.1f} MiB"
