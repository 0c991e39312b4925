"""The last stage of a run: clean latents become frames, waveform and mp4, chunk by chunk.

Read next: `run.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.latents import Latents
from cosmos3_lab.media import Cosmos3GenerationOutput, open_mp4, to_uint8_frames
from cosmos3_lab.sizes import latent_to_pixel_shape
from cosmos3_lab.sound_avae import decode_sound
from cosmos3_lab.timing import PhaseTimer
from cosmos3_lab.video_vae import iter_decode_video


def decode_latents(
    models: Cosmos3Models,
    latents: Latents,
    *,
    fps: float,
    mp4: str | Path | None = None,
    on_chunk: Callable[[int], None] | None = None,
    timer: PhaseTimer | None = None,
    tags: Mapping[str, str] | None = None,
) -> Cosmos3GenerationOutput:
    """Clean latents to frames and waveform on the CPU, chunk by chunk.

    Args:
        models: from `load_cosmos3`; in split placement both towers leave the device first.
        latents: the result of denoising, or any x0 on the way.
        fps: frames a second.
        mp4: a file to write as well, while later frames are still being decoded; None writes none.
        on_chunk: called with the number of frames decoded so far; what it raises ends the decoding.
        timer: counts "inference" with "decode" in it, "to_cpu", and as "encode" what the mp4 takes after the last frame.
        tags: metadata of the mp4, see `open_mp4`.

    Raises:
        ValueError: the models were closed, or loaded without sound; a name that is not an mp4's.
        OSError: the mp4 cannot be written.
        FloatingPointError: pixels or samples are infinite or not numbers.
    """
    if latents.sound is not None and models.avae is None:
        raise ValueError("got latents with sound, but the models were loaded without it; load with load_sound=True")
    timer = timer or PhaseTimer(models.device)
    media, sound = models.media, {"waveform": None, "sample_rate": None}
    shape = latent_to_pixel_shape(tuple(latents.video.shape[2:]), temporal=media.temporal, spatial=media.spatial)
    with timer("inference"), timer("decode"):
        models.place("decode")
        if latents.sound is not None:
            waveform = decode_sound(models.avae, latents.sound)[0]
            _check_finite(waveform, "sound")
            sound = {"waveform": np.asarray(waveform.cpu()), "sample_rate": media.sampling_rate}
    frames, done = np.empty((*shape, 3), np.uint8), 0
    with ExitStack() as file:
        write = None if mp4 is None else file.enter_context(open_mp4(mp4, shape, fps=fps, tags=tags, **sound))
        for levels in _iter_frames(models, latents, timer):
            piece = frames[done : done + len(levels)]
            with timer("to_cpu"):
                torch.from_numpy(piece).copy_(levels)
            done += len(piece)
            if write is not None:
                write(piece)
            if on_chunk is not None:
                on_chunk(done)
        if mp4 is not None:
            with timer("encode"):
                file.close()
    return Cosmos3GenerationOutput(frames, fps, **sound)


def _iter_frames(models: Cosmos3Models, latents: Latents, timer: PhaseTimer) -> Iterator[UInt8[Tensor, "n height width 3"]]:
    """Chunks of 8-bit frames on the device; only making them is counted."""
    chunks = iter_decode_video(models.vae, latents.video)
    while True:
        with timer("inference"), timer("decode"):
            pixels = next(chunks, None)
            if pixels is None:
                return
            _check_finite(pixels, "video")
            levels = to_uint8_frames(pixels)
        yield levels


def _check_finite(values: Tensor, kind: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise FloatingPointError(f"the decoded {kind} is not finite; the weights are damaged, or the numbers outgrew the dtype")
