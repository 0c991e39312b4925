"""A cheap look at video latents: each latent pixel becomes one colour by a linear map, without the decoder.

    colour = weight @ latent + bias        [3] = [3, C] @ [C] + [3], clipped to [0, 1]

The first latent frame has weights of its own: it stands for one frame and every later one for four, and the VAE writes them in
different ways (one map for both explains half as much of pico's first frames). They are fitted by least squares: decode some
latents, average the frames down to the latent grid, and ask which weights come closest. Clean latents of real runs teach the
map best; where only a decoder is at hand, smooth random ones do (white noise decodes to nothing that resembles a video). Make
the file of a checkpoint with `python -m cosmos3_lab.preview CHECKPOINT`.

Read next: `latent_figures.py`.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional as F

from cosmos3_lab.checkpoint import Cosmos3Models, load_cosmos3
from cosmos3_lab.denoise import denoise, prepare_denoise
from cosmos3_lab.files import replacing
from cosmos3_lab.prepare import prepare_request
from cosmos3_lab.untrusted import CheckpointError, has_file, read_json
from cosmos3_lab.video_vae import VideoVAE, iter_decode_video

FILE = Path("assets") / "latent_preview.json"
SMOOTH_CLIPS = 8
SMOOTH_SHAPE = (3, 8, 8)  # latent frames, rows, columns: quick to decode, and enough points for the fit
BLOBS = 3  # rows, columns and moments of a smooth latent that are drawn; the rest is between them


@dataclass(frozen=True, eq=False)
class LatentPreview:
    """The linear map from a latent pixel to a colour.

    Attributes:
        weight: `[2, 3, C]`, for the first latent frame and for later ones: red, green and blue from normalised channels.
        bias: `[2, 3]`, the colours of a latent that is zero everywhere.
        r2: share of the colours' variance that the map explains, on the latents that it was fitted on.
    """

    weight: Float32[Tensor, "2 3 c"]
    bias: Float32[Tensor, "2 3"]
    r2: float

    def pixels(self, video: Float[Tensor, "1 c t h w"]) -> Float32[np.ndarray, "t h w 3"]:
        """One colour for each latent pixel, in [0, 1].

        Args:
            video: normalised latents, best of all a clean x0.

        Raises:
            ValueError: the latents have another number of channels than the map.
        """
        if video.shape[1] != self.weight.shape[-1]:
            raise ValueError(f"got latents with {video.shape[1]} channels, expected the preview's {self.weight.shape[-1]}")
        video = video.detach().float().cpu()
        parts = [
            einsum(weight, frames, "rgb c, one c t h w -> t h w rgb") + bias
            for weight, bias, frames in zip(self.weight, self.bias, (video[:, :, :1], video[:, :, 1:]), strict=True)
        ]
        return torch.cat(parts).clamp(0, 1).numpy()

    def __repr__(self) -> str:
        return f"LatentPreview({self.weight.shape[-1]} channels to RGB, R^2 {self.r2:.3f})"


def latent_preview(models: Cosmos3Models) -> LatentPreview:
    """The checkpoint's own map where `assets/latent_preview.json` is there, else one fitted on smooth random latents.

    Args:
        models: from `load_cosmos3`, not closed.

    Raises:
        CheckpointError: the file does not fit the checkpoint's latents.
    """
    path = models.folder / FILE
    if has_file(path):
        return read_preview(path, channels=models.media.channels)
    models.place("decode")
    return fit_latent_preview(models.vae, smooth_latents(models.media.channels))


def fit_latent_preview(vae: VideoVAE, latents: Sequence[Float[Tensor, "1 c t h w"]]) -> LatentPreview:
    """Least squares between latents and what they decode to, averaged down to the latent grid.

    Args:
        vae: needs no encoder. With one, `encode_video(vae, pixels)` of a film gives latents to fit on.
        latents: normalised, of clips with many colours: x0 of runs, or `smooth_latents`.

    Raises:
        ValueError: there are no latents.
    """
    if not latents:
        raise ValueError("got no latents to fit the preview on, expected at least one clip, for example smooth_latents(channels)")
    points = [rearrange(video, "1 c t h w -> t h w c").cpu() for video in latents]
    colours = [latent_grid_colours(vae, video) for video in latents]
    first = _fit([p[:1] for p in points], [c[:1] for c in colours])
    still = all(len(p) == 1 for p in points)
    later = first if still else _fit([p[1:] for p in points], [c[1:] for c in colours])
    weight, bias = (torch.stack(pair).float() for pair in zip(first, later, strict=True))
    predicted = [torch.from_numpy(LatentPreview(weight, bias, 0.0).pixels(video)) for video in latents]
    return LatentPreview(weight, bias, _r2(predicted, colours))


def _fit(points: Sequence[Tensor], colours: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Weight `[3, C]` and bias `[3]` that bring points `[t, h, w, C]` closest to colours `[t, h, w, 3]`."""
    x = torch.cat([p.flatten(0, 2) for p in points]).double()
    y = torch.cat([c.flatten(0, 2) for c in colours]).double()
    with_one = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    solution = torch.linalg.lstsq(with_one, y, driver="gelsd").solution  # gelsd copes with channels that never vary
    return solution[:-1].T, solution[-1]


def latent_grid_colours(vae: VideoVAE, video: Float[Tensor, "1 c t h w"]) -> Float32[Tensor, "t h w 3"]:
    """What a preview tries to be: decoded frames, averaged over the pixels and frames of each latent pixel, on the CPU.

    Args:
        vae: the latents are brought to its device.
        video: normalised latents.
    """
    height, width = video.shape[-2:]
    chunks = iter_decode_video(vae, video.to(vae.post_quant_conv.weight.device), latents_at_once=1)
    means = [reduce(chunk, "1 rgb frames (h p) (w q) -> h w rgb", "mean", h=height, w=width) for chunk in chunks]
    return torch.stack(means).cpu()


def preview_r2(preview: LatentPreview, vae: VideoVAE, latents: Sequence[Float[Tensor, "1 c t h w"]]) -> float:
    """Share of the colours' variance in these clips that the map explains: 1 is perfect, 0 no better than one grey.

    Args:
        preview: to judge.
        vae: of the same checkpoint.
        latents: normalised, best of all not those that the map was fitted on.
    """
    predicted = [torch.from_numpy(preview.pixels(video)) for video in latents]
    return _r2(predicted, [latent_grid_colours(vae, video) for video in latents])


def _r2(predicted: Sequence[Tensor], colours: Sequence[Tensor]) -> float:
    x, y = (torch.cat([part.flatten(0, 2) for part in parts]).double() for parts in (predicted, colours))
    return float(1 - (x - y).square().sum() / (y - y.mean(0)).square().sum().clamp_min(1e-12))


def smooth_latents(channels: int, *, count: int = SMOOTH_CLIPS, seed: int = 0) -> list[Float32[Tensor, "1 c t h w"]]:
    """Random latents of slowly changing blobs: the nearest thing to real ones that needs neither a run nor an encoder.

    Args:
        channels: C.
        count: number of clips.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = [torch.randn(1, channels, BLOBS, BLOBS, BLOBS, generator=generator) for _ in range(count)]
    smooth = [F.interpolate(noise, size=SMOOTH_SHAPE, mode="trilinear") for noise in coarse]
    return [video / video.std() for video in smooth]  # as wide as normalised latents


# -------------------------------------------------------------------------------------------------------------- file


def write_preview(preview: LatentPreview, path: str | Path) -> None:
    """Write the map as JSON, whole or not at all.

    Args:
        preview: to write.
        path: of the file, for a checkpoint `assets/latent_preview.json`.
    """
    values = {"weight": preview.weight.tolist(), "bias": preview.bias.tolist(), "r2": preview.r2}
    rounded = json.loads(json.dumps(values), parse_float=lambda text: round(float(text), 6))
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


def read_preview(path: str | Path, *, channels: int) -> LatentPreview:
    """Read a map and check that it fits.

    Args:
        path: of the file.
        channels: C of the checkpoint's latents.

    Raises:
        CheckpointError: it is not a map, or one for another number of channels.
    """
    values = read_json(Path(path))
    try:
        weight, bias = (torch.tensor(values[name], dtype=torch.float32) for name in ("weight", "bias"))
        r2 = float(values["r2"])
    except (ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} holds no latent preview ({error}); delete it or make it again") from error
    shapes = tuple(weight.shape), tuple(bias.shape)
    if shapes != ((2, 3, channels), (2, 3)) or not (weight.isfinite().all() and bias.isfinite().all() and math.isfinite(r2)):
        raise CheckpointError(
            f"{path} has weight and bias of shapes {shapes}, expected finite numbers of (2, 3, {channels}) and (2, 3)"
        )
    return LatentPreview(weight, bias, r2)


# ----------------------------------------------------------------------------------------------------------- command


def example_latents(
    models: Cosmos3Models, *, runs: int, num_inference_steps: int, num_frames: int | None = None, side: int | None = None
) -> list[Float[Tensor, "1 c t h w"]]:
    """Clean latents of short silent runs on the checkpoint's example prompts, each with its own seed.

    Args:
        models: from `load_cosmos3`.
        runs: how many; the prompts take turns.
        num_inference_steps, num_frames: see `generate`.
        side: height and width in pixels, None for the checkpoint's defaults.
    """
    prompts = models.defaults.example_prompts
    options = {"num_frames": num_frames, "height": side, "width": side, "num_inference_steps": num_inference_steps}
    made = []
    for seed in range(runs):
        inputs, state = prepare_denoise(models, prepare_request(models, prompts[seed % len(prompts)], seed=seed, **options))
        for after, _ in denoise(models.transformer, inputs, state):
            latents = after.latents
        made.append(latents.video)
    return made


def main() -> None:
    """Command line: `python -m cosmos3_lab.preview [CHECKPOINT] [--runs N] [--steps N] [--side PIXELS] [--out FILE]`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="pico")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=int, default=24, help="at least 2: the last quarter judges a map that has not seen it")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--frames", type=int, help="of each run; the checkpoint's default")
    parser.add_argument("--side", type=int, help="height and width in pixels; the checkpoint's defaults")
    parser.add_argument("--out", type=Path, help=f"the checkpoint's {FILE}")
    a = parser.parse_args()
    with load_cosmos3(a.checkpoint, device=a.device, load_sound=False) as models:
        size = {"num_frames": a.frames, "side": a.side}
        latents = example_latents(models, runs=max(a.runs, 2), num_inference_steps=a.steps, **size)
        models.place("decode")
        held_out = -(-len(latents) // 4)
        unseen = preview_r2(fit_latent_preview(models.vae, latents[:-held_out]), models.vae, latents[-held_out:])
        preview = fit_latent_preview(models.vae, latents)
        path = a.out or models.folder / FILE
        write_preview(preview, path)
    print(f"{path}: R^2 {preview.r2:.3f} on the clips it was fitted on, {unseen:.3f} on clips that a fit had not seen")


if __name__ == "__main__":
    main()
