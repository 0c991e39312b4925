"""Which weights are on the GPU, and when.

*Resident* keeps both towers there. *Split* keeps at most one: UND while prompts are encoded, GEN while denoising, neither
while decoding; the idle ones stay in host memory, mapped to the checkpoint's files where the dtype allows. Results are the
same bit for bit.

Read next: `checkpoint.py`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cosmos3_lab.configs import check_choice
from cosmos3_lab.towers import Cosmos3Config
from cosmos3_lab.video_vae import VideoVAEConfig

Placement = Literal["resident", "split"]

GIB = 2**30
SMALL_ROOM = GIB  # activations of a request of a few hundred tokens (192x320, a few frames)


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on the device: weights as they are loaded, and room for the activations of one request.

    Attributes:
        und, gen, decoders: weights.
        denoise, decode: activations of either phase.
    """

    und: int
    gen: int
    decoders: int
    denoise: int = SMALL_ROOM
    decode: int = SMALL_ROOM

    def peak(self, placement: Placement) -> int:
        """Most bytes that are on the device at once, and a seventh more for the allocator's gaps."""
        if placement == "resident":
            most = self.und + self.gen + max(self.denoise, self.decode)
        else:
            most = max(max(self.und, self.gen) + self.denoise, self.decode)
        return (self.decoders + most) * 8 // 7


def working_room(
    config: Cosmos3Config,
    vae: VideoVAEConfig,
    *,
    media_tokens: int,
    text_tokens: int,
    frame_pixels: int,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> tuple[int, int]:
    """Bytes of activations of one request, `(denoise, decode)`.

    The factors are fitted to the peaks of benchmarks/results/step_time.json (H200, 480x832x49 and 720x1280x189).

    Args:
        config, vae: shapes.
        media_tokens: video and sound tokens.
        text_tokens: of both prompts; their K/V stay on the device.
        frame_pixels: height times width.
        dtypes: of the transformer and of the VAE.
    """
    model, decoder = (dtype.itemsize for dtype in dtypes)
    text_kv = 2 * text_tokens * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model
    residual_attention_mlp = media_tokens * (3 * config.intermediate_size + 7 * config.hidden_size) * model
    widest_layers = 20 * vae.decoder_base_dim * frame_pixels * decoder  # about twenty tensors at half the frame's size
    return text_kv + residual_attention_mlp, text_kv + widest_layers


def choose_placement(
    placement: Literal["auto", "resident", "split"], small: MemoryNeed, default: MemoryNeed, device: torch.device
) -> Placement:
    """The placement that was asked for; under "auto" resident where the checkpoint's default request fits so, else split.

    Args:
        placement: asked for.
        small, default: what a small request and the checkpoint's default request need.
        device: where.

    Raises:
        ValueError: no such placement.
        MemoryError: not even a small request fits; names the numbers.
    """
    check_choice("placement", placement, Literal["auto", "resident", "split"])
    if device.type != "cuda":
        return "resident" if placement == "auto" else placement
    free = torch.cuda.mem_get_info(device)[0]
    if placement == "auto" and default.peak("resident") <= free:
        return "resident"
    last: Placement = "resident" if placement == "resident" else "split"
    if small.peak(last) <= free:
        return last
    wanted = ", ".join(f"{small.peak(p) / GIB:.1f} GiB {p}" for p in get_args(Placement))
    raise MemoryError(
        f"{device} has {free / GIB:.1f} GiB free, but a small request needs {wanted} (weights: UND {small.und / GIB:.1f}, GEN "
        f"{small.gen / GIB:.1f}, decoders {small.decoders / GIB:.1f}); close other programs that use the GPU, try "
        "placement='split', or use device='cpu'"
    )


class Movable:
    """A module whose weights can visit a device and come home again without a copy being kept in step.

    Args:
        module: with its weights where they live when idle.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.home: dict[str, Tensor] = {name: p.data for name, p in module.named_parameters()}

    def visit(self, device: torch.device) -> None:
        """Copy the weights to `device`."""
        for name, parameter in self.module.named_parameters():
            if parameter.device != device:
                parameter.data = self.home[name].to(device)

    def go_home(self) -> None:
        """Drop the copies."""
        for name, parameter in self.module.named_parameters():
            parameter.data = self.home[name]
