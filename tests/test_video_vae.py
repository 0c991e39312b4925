"""The video VAE by itself: chunks, and how tensors lie in memory. That its numbers are right is tests/oracle's matter."""

import pytest
import torch
from torch import nn

from cosmos3_lab import decode_video, iter_decode_video, video_vae
from cosmos3_lab.vae_blocks import CausalConv3d


def a_clip(t, h=3, w=5):
    return torch.randn(1, 8, t, h, w, generator=torch.Generator().manual_seed(0))


def frames_of(chunks):
    return [chunk.shape[2] for chunk in chunks]


@pytest.mark.parametrize(
    ("t", "at_once", "frames"), [(1, 1, [1]), (1, 4, [1]), (4, 1, [1, 4, 4, 4]), (4, 2, [1, 8, 4]), (4, 9, [1, 12])]
)
def test_the_first_latent_frame_is_alone_and_the_rest_comes_in_chunks(tiny, t, at_once, frames):
    assert frames_of(iter_decode_video(tiny.vae, a_clip(t), latents_at_once=at_once)) == frames


def test_small_frames_go_several_at_a_time_and_large_ones_alone(tiny):
    assert frames_of(iter_decode_video(tiny.vae, a_clip(5))) == [1, 16]
    assert frames_of(iter_decode_video(tiny.vae, a_clip(3, 20, 31))) == [1, 4, 4]


def test_chunks_change_the_rounding_alone(tiny):
    alone, together = (torch.cat(list(iter_decode_video(tiny.vae, a_clip(5), latents_at_once=n)), dim=2) for n in (1, 4))
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


def test_large_frames_pass_the_last_block_two_by_two_and_change_by_rounding_alone(tiny, monkeypatch):
    whole, parts, finish = decode_video(tiny.vae, a_clip(4)), [], tiny.vae.decoder._finish
    monkeypatch.setattr(video_vae, "PIXELS_AT_ONCE", 1)
    monkeypatch.setattr(type(tiny.vae.decoder), "_finish", lambda _, x, memory: parts.append(x.shape[2]) or finish(x, memory))
    frames = torch.cat(list(iter_decode_video(tiny.vae, a_clip(4), latents_at_once=2)), dim=2)
    assert parts == [1, 2, 2, 2, 2, 2, 2]
    torch.testing.assert_close(frames, whole, atol=1e-5, rtol=0)


def test_no_latent_frame_at_once_is_an_error(tiny):
    with pytest.raises(ValueError, match="latents_at_once=0"):
        next(iter_decode_video(tiny.vae, a_clip(2), latents_at_once=0))


@pytest.mark.parametrize("at_once", [1, 2])
def test_channels_are_innermost_in_every_causal_convolution(tiny, monkeypatch, at_once):
    innermost, convolve = [], nn.Conv3d._conv_forward

    def forward(self, x, weight, bias):
        if isinstance(self, CausalConv3d):
            innermost.extend(tensor.is_contiguous(memory_format=torch.channels_last_3d) for tensor in (x, weight))
        return convolve(self, x, weight, bias)

    monkeypatch.setattr(nn.Conv3d, "_conv_forward", forward)
    list(iter_decode_video(tiny.vae, a_clip(5), latents_at_once=at_once))
    assert len(innermost) > 60
    assert all(innermost)
