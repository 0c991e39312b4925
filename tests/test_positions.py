"""Positions of text, video and sound, and their angles."""

import numpy as np
import pytest
import torch

from cosmos3_lab import (
    TokenLayout,
    compute_mrope_position_ids_sound,
    compute_mrope_position_ids_text,
    compute_mrope_position_ids_vision,
    mrope_cos_sin,
)
from cosmos3_lab.positions import mrope_axes
from cosmos3_lab.towers import Cosmos3Config
from cosmos3_lab.transformer import media_position_ids

M = 137 + 15000  # 137 text tokens, then the margin
NANO_AXES = {"head_dim": 128, "rope_theta": 5e6, "mrope_section": (24, 20, 20)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def letters(axes):
    return "".join("THW"[axis] for axis in axes)


def test_axes_of_nano():
    axes = mrope_axes(128, (24, 20, 20))
    assert letters(axes) == "THW" * 20 + "TTTT"
    assert [axes.count(a) for a in range(3)] == [24, 20, 20]


def test_axes_of_the_tiny_model():
    assert letters(mrope_axes(16, (4, 2, 2))) == "THWTHWTT"


def test_text_stands_on_the_diagonal():
    ids = compute_mrope_position_ids_text(7)
    assert torch.equal(ids, torch.arange(7.0).expand(3, 7))
    assert ids.dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------ media


def test_default_clip_stands_at_integers():
    ids = compute_mrope_position_ids_vision((48, 23, 40), M, fps=24.0)
    assert ids.shape == (3, 44160)
    time, row, column = ids.view(3, 48, 23, 40)
    assert torch.equal(time[:, 0, 0] - M, torch.arange(48.0))
    assert torch.equal(time, time[:, :1, :1].expand_as(time))
    assert torch.equal(row, torch.arange(23.0)[None, :, None].expand_as(row))
    assert torch.equal(column, torch.arange(40.0)[None, None].expand_as(column))


def test_slower_clips_move_faster_per_frame():
    time = compute_mrope_position_ids_vision((4, 1, 1), M, fps=16.0)[0]
    assert (time - M).tolist() == [0.0, 1.5, 3.0, 4.5]


@pytest.mark.parametrize("fps", [16.0, 24.0, None])
def test_one_frame_stands_at_the_start(fps):
    assert compute_mrope_position_ids_vision((1, 2, 2), M, fps=fps)[0].tolist() == [M] * 4


def test_without_modulation_frames_are_one_unit_apart():
    assert (compute_mrope_position_ids_vision((5, 1, 1), M, fps=None)[0] - M).tolist() == [0, 1, 2, 3, 4]
    assert (compute_mrope_position_ids_sound(5, M, sound_fps=None)[0] - M).tolist() == [0, 1, 2, 3, 4]


def test_sound_of_the_default_clip_spans_188_units():
    ids = compute_mrope_position_ids_sound(197, M)
    exact = np.arange(197) / 25 * 24
    assert exact[-1] == pytest.approx(188.16)
    rounding = np.abs(ids[0].double().numpy() - M - exact).max()
    assert 0.0004 < rounding <= 0.0005  # float32 at 15000: half of 2**-10
    assert not ids[1:].any()


def float32_time(rate, base):
    """The references' order: divide by the rate, multiply by the base rate, add M, each rounded to float32."""
    return torch.from_numpy(np.arange(197, dtype=np.float32) / np.float32(rate) * np.float32(base) + np.float32(M))


@pytest.mark.parametrize("fps", [10.0, 16.0, 23.976, 24.0, 29.97, 30.0])
def test_video_time_is_float32_in_the_references_order(fps):
    assert torch.equal(compute_mrope_position_ids_vision((197, 1, 1), M, fps=fps)[0], float32_time(fps / 4, 6))


def test_sound_time_is_float32_in_the_references_order():
    assert torch.equal(compute_mrope_position_ids_sound(197, M)[0], float32_time(25, 24))


def test_the_order_of_float32_matters():
    index, rate = torch.arange(197), 29.97 / 4
    ours = compute_mrope_position_ids_vision((197, 1, 1), M, fps=29.97)[0]
    assert (ours != (index.double() / rate * 6 + M).float()).sum() == 2
    assert (ours != index.float() * 6 / rate + M).sum() == 3


def test_media_start_behind_the_text_and_the_margin():
    layout = TokenLayout(s_text=137, video_shape=(3, 3, 5), patch=2, n_sound=4)
    ids = media_position_ids(Cosmos3Config(), layout, 24.0, 25.0)
    assert ids.shape == (3, layout.s_gen)
    assert torch.equal(ids[:, : layout.n_video], compute_mrope_position_ids_vision((3, 2, 3), M, fps=24.0))
    assert torch.equal(ids[:, layout.n_video :], compute_mrope_position_ids_sound(4, M))
    longer = TokenLayout(s_text=140, video_shape=(3, 3, 5), patch=2, n_sound=4)
    assert media_position_ids(Cosmos3Config(), longer, 24.0, 25.0)[0, 0] == M + 3


def test_media_obey_the_configs_margin_and_modulation():
    config = Cosmos3Config(unified_3d_mrope_temporal_modality_margin=100, enable_fps_modulation=False)
    ids = media_position_ids(config, TokenLayout(s_text=10, video_shape=(3, 2, 2), patch=2, n_sound=2), 16.0, 25.0)
    assert ids[0].tolist() == [110, 111, 112, 110, 111]


def test_layout_counts_nanos_tokens():
    layout = TokenLayout(s_text=137, video_shape=(48, 45, 80), patch=2, n_sound=197)
    assert (layout.video_grid, layout.n_video, layout.s_gen) == ((48, 23, 40), 44160, 44357)


# ----------------------------------------------------------------------------------------------------------- angles


@pytest.mark.parametrize(("head_dim", "section", "theta"), [(128, (24, 20, 20), 5e6), (16, (4, 2, 2), 5e6), (16, (4, 2, 2), 1e4)])
def test_angles_against_float64(head_dim, section, theta):
    positions = torch.randint(0, 30, (3, 11)).float()
    half = head_dim // 2
    expected = np.empty((11, half))
    for k in range(half):
        axis = 1 if k % 3 == 1 and k < 3 * section[1] else 2 if k % 3 == 2 and k < 3 * section[2] else 0
        expected[:, k] = positions[axis].double().numpy() * theta ** (-2 * k / head_dim)
    cos, sin = mrope_cos_sin(positions, head_dim=head_dim, rope_theta=theta, mrope_section=section)
    assert cos.dtype == sin.dtype == torch.float32
    np.testing.assert_allclose(cos, np.cos(expected), atol=3e-6, rtol=0)  # float32 angles of up to 30
    np.testing.assert_allclose(sin, np.sin(expected), atol=3e-6, rtol=0)


def test_the_first_frequency_is_one():
    cos, sin = mrope_cos_sin(torch.tensor([[2.0], [0.0], [0.0]]), **NANO_AXES)
    assert cos[0, 0] == pytest.approx(np.cos(2), abs=1e-6)
    assert sin[0, 0] == pytest.approx(np.sin(2), abs=1e-6)
    assert (cos[0, 1], sin[0, 1]) == (1, 0)  # turns with the row, which is 0


def test_angles_are_computed_in_float32_and_cast_last():
    positions = compute_mrope_position_ids_vision((48, 1, 1), M, fps=24.0)
    exact, low = mrope_cos_sin(positions, **NANO_AXES), mrope_cos_sin(positions, **NANO_AXES, dtype=torch.bfloat16)
    assert low[0].dtype == low[1].dtype == torch.bfloat16
    assert torch.equal(low[0], exact[0].bfloat16())
    assert torch.equal(low[1], exact[1].bfloat16())
    assert len(low[0][:, 0].unique()) > 40  # 15137 and 15184 stay apart
