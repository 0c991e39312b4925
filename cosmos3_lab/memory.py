"""Which weights are on the GPU, and when.

*Resident* keeps everything there. *Split* has at most one of these there at a time: a single layer of UND while prompts are
encoded, GEN while denoising, the decoders of video and sound while decoding. The others are at home in host memory, mapped to
the checkpoint's files where the dtype allows. Results are the same bit for bit.

    stage        on the device
    "stream"     one layer of UND after the other; both prompts pass through it, so all of UND crosses the bus once a run
    "gen"        GEN
    "decode"     VAE and AVAE
    "und"        all of UND, for whoever wants to run that tower in another way

Read next: `checkpoint.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cosmos3_lab.configs import check_choice
from cosmos3_lab.layers import MLP_TOKENS
from cosmos3_lab.towers import Cosmos3Config, UNDLayer
from cosmos3_lab.transfer import copy_tensors, transfer_bar
from cosmos3_lab.video_vae import VideoVAEConfig

Placement = Literal["resident", "split"]
Stage = Literal["und", "stream", "gen", "decode"]

GIB = 2**30
GAPS = 1.4  # taken for activations, over what they fill: 1.40 and 1.51 in benchmarks/results/full_size.json (resident)
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
        """Most bytes that PyTorch takes of the device at once."""
        denoise, decode = (round(room * GAPS) for room in (self.denoise, self.decode))
        if placement == "resident":
            return self.und + self.gen + self.decoders + max(denoise, decode)
        return max(self.gen + denoise, self.decoders + decode)  # encoding needs less: one layer, and shorter sequences


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

    Denoising by the tensors that a layer has at once, in its rotary embedding or in its MLP; decoding fitted to measured
    peaks of 480x832x49 and 720x1280x189.

    Args:
        config, vae: shapes.
        media_tokens: video and sound tokens.
        text_tokens: of both prompts; their K/V stay on the device.
        frame_pixels: height times width.
        dtypes: of the transformer and of the VAE.
    """
    model, decoder = (dtype.itemsize for dtype in dtypes)
    text_kv = 2 * text_tokens * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model
    token = config.hidden_size * model
    in_mlp = media_tokens * 4 * token + min(media_tokens, MLP_TOKENS) * 3 * config.intermediate_size * model
    layer = max(media_tokens * 7 * token, in_mlp)
    widest_layers = 20 * vae.decoder_base_dim * frame_pixels * decoder  # about twenty tensors at half the frame's size
    return text_kv + layer, text_kv + widest_layers


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
        self.home: dict[str, Tensor] = module.state_dict()

    def visit(self, device: torch.device, room: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """Copy the weights to `device`, unless they are there.

        Args:
            device: where to.
            room: tensors there to write into, from the visit of a module of the same shapes that has gone home; None takes new
                memory.

        Returns:
            The weights on the device.
        """
        if any(p.device != device for p in self.module.parameters()):
            homes = list(self.home.values())
            room = room or [torch.empty_like(home, device=device) for home in homes]
            with transfer_bar(type(self.module).__name__, device, sum(home.nbytes for home in homes)) as bar:
                copy_tensors(homes, room, on_bytes=bar.update)
            self.module.load_state_dict(dict(zip(self.home, room, strict=True)), assign=True)
        return list(self.module.state_dict().values())

    def go_home(self) -> None:
        """Drop the copies."""
        self.module.load_state_dict(self.home, assign=True)


def stream_layers(layers: Iterable[UNDLayer], device: torch.device) -> Iterator[UNDLayer]:
    """Each layer in turn, on the device until the next is asked for.

    All of them use one piece of memory there. Blocks that are freed and taken again in every layer would be cut up for what is
    to stay, the K and V, and could then not be given back.

    Args:
        layers: of one shape, with their weights at home.
        device: where to.
    """
    room = None
    for layer in layers:
        guest = Movable(layer)
        room = guest.visit(device, room)
        try:
            yield layer
        finally:
            guest.go_home()


def give_back(device: torch.device) -> None:
    """Hand freed memory from PyTorch back to the GPU; nothing to do elsewhere.

    Belongs between two stages, when the weights of one have left and those of the next have not come: PyTorch keeps freed
    blocks for tensors of the same sizes, the next stage asks for others, and would be given new memory beside the old.

    Args:
        device: whose.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
