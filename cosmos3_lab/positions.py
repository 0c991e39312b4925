"""Where every token stands: a time, a row and a column, turned into rotation angles.

Text token i stands at `(i, i, i)`. All media start at `M = s_text + margin` on the time axis (margin 15000): video token
(f, i, j) at `(M + 6 * seconds, i, j)`, sound token k at `(M + 24 * seconds, 0, 0)` when the base rate is 24 fps. The two
rates differ by the VAE's factor of 4 in all references; the model was trained so. Because M depends on the length of the
text, the two branches of guidance see their media at different places.

Each attention head splits its `d_head / 2` rotation frequencies among the three axes, interleaved T H W T H W ... with a
tail of T only ("interleaved mRoPE", Qwen3-VL). Angles are computed in float32: bfloat16 cannot tell 15000 from 15030.

Read next: `layers.py` (`apply_rotary`), `transformer.py`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class TokenLayout:
    """How many tokens of each kind there are, and in which order the GEN tower holds them: video, then sound.

    Attributes:
        s_text: text tokens, boundary tokens included.
        video_shape: latent grid `(t, h, w)`.
        patch: side of a patch in latent pixels.
        n_sound: sound tokens, 0 without sound.
    """

    s_text: int
    video_shape: tuple[int, int, int]
    patch: int
    n_sound: int

    @property
    def video_grid(self) -> tuple[int, int, int]:
        """Tokens along frames, rows and columns; odd latent sizes are rounded up."""
        t, h, w = self.video_shape
        return t, -(-h // self.patch), -(-w // self.patch)

    @property
    def n_video(self) -> int:
        """Number of video tokens."""
        t, rows, columns = self.video_grid
        return t * rows * columns

    @property
    def s_gen(self) -> int:
        """Length of the GEN tower's sequence."""
        return self.n_video + self.n_sound


def compute_mrope_position_ids_text(s_text: int) -> Float[Tensor, "3 s_text"]:
    """Positions of the text: token i at `(i, i, i)`, float32."""
    return torch.arange(s_text, dtype=torch.float32).expand(3, -1)


def compute_mrope_position_ids_vision(
    video_grid: tuple[int, int, int],
    start: int,
    *,
    fps: float | None,
    base_fps: float = 24.0,
    temporal: int = 4,
) -> Float[Tensor, "3 n_video"]:
    """Positions of the video tokens, ordered frame, row, column.

    Args:
        video_grid: tokens along frames, rows and columns.
        start: M, the text length plus the margin.
        fps: frames a second of the clip; None puts latent frames one unit apart (`enable_fps_modulation` false).
        base_fps: frames a second at which latent frames are `base_fps / temporal / (fps / temporal)` = 1 unit apart.
        temporal: video frames per latent frame.
    """
    t, rows, columns = video_grid
    time = _time_axis(t, start, rate=None if fps is None else fps / temporal, base_rate=base_fps / temporal)
    row, column = torch.arange(rows, dtype=torch.float32), torch.arange(columns, dtype=torch.float32)
    return torch.stack(torch.meshgrid(time, row, column, indexing="ij")).flatten(1)


def compute_mrope_position_ids_sound(
    n_sound: int, start: int, *, sound_fps: float | None = 25.0, base_fps: float = 24.0
) -> Float[Tensor, "3 n_sound"]:
    """Positions of the sound tokens: time only, from the same start as the video.

    Args:
        n_sound: number of sound tokens.
        start: M, the text length plus the margin.
        sound_fps: sound latents a second; None puts them one unit apart.
        base_fps: units of the time axis per second of sound.
    """
    time = _time_axis(n_sound, start, rate=sound_fps, base_rate=base_fps)
    return torch.stack([time, torch.zeros_like(time), torch.zeros_like(time)])


def mrope_cos_sin(
    position_ids: Float[Tensor, "3 s"],
    *,
    head_dim: int,
    rope_theta: float,
    mrope_section: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "s half"], Float[Tensor, "s half"]]:
    """Cosine and sine of every token's rotation angles (one per pair of the head's halves).

    Args:
        position_ids: float32 positions on the axes time, row, column.
        head_dim: width of a head.
        rope_theta: base of the frequencies `rope_theta ** (-2k / head_dim)` (5e6 on Nano).
        mrope_section: frequencies given to time, rows, columns ([24, 20, 20] on Nano).
        dtype: of the result; the angles are computed in float32 whatever it is.

    Returns:
        `(cos, sin)`, each `[s, head_dim / 2]`.
    """
    slots = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device)
    inv_freq = 1.0 / rope_theta ** (slots / head_dim)
    angles = position_ids[mrope_axes(head_dim, mrope_section), :].T * inv_freq
    return angles.cos().to(dtype), angles.sin().to(dtype)


def mrope_axes(head_dim: int, mrope_section: tuple[int, int, int]) -> list[int]:
    """Which axis (0 time, 1 row, 2 column) each of the `head_dim / 2` frequencies turns with: `T H W T H W ... T T`."""
    _, rows, columns = mrope_section
    axis = [0] * (head_dim // 2)
    axis[1 : 3 * rows : 3] = [1] * len(axis[1 : 3 * rows : 3])
    axis[2 : 3 * columns : 3] = [2] * len(axis[2 : 3 * columns : 3])
    return axis


def _time_axis(count: int, start: int, *, rate: float | None, base_rate: float) -> Float[Tensor, " count"]:
    """`index / rate * base_rate + start` in float32 and in this order: near 15000 the rounding is part of the result."""
    index = torch.arange(count, dtype=torch.float32)
    if rate is None or count == 1:  # a single frame has no rate
        return index + start
    return index / rate * base_rate + start
