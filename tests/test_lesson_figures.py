"""Figures of the towers and of measured curves."""

import numpy as np
import pytest
import torch

from cosmos3_lab import figures
from cosmos3_lab.positions import TokenLayout, compute_mrope_position_ids_text
from cosmos3_lab.towers import Cosmos3Config
from cosmos3_lab.transformer import media_position_ids


@pytest.mark.parametrize("n_sound", [0, 7])
def test_the_sequence_is_as_long_as_the_layout(n_sound):
    layout = TokenLayout(5, (3, 4, 4), 2, n_sound)
    ax = figures.plot_token_sequence(layout)
    assert ax.get_xlim() == (0, 5 + layout.s_gen)
    assert len(ax.collections) == (3 if n_sound else 2)
    media = media_position_ids(Cosmos3Config(), layout, 24.0, 25.0)
    figure = figures.plot_positions(compute_mrope_position_ids_text(5), media, layout, start=15005)
    figure.png()
    assert "15005" in figure.alt_text


def test_parts_add_up():
    ax = figures.plot_parts({"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 4}})
    assert max(bar.get_x() + bar.get_width() for bar in ax.patches) == 7
    with pytest.raises(ValueError, match="same parts"):
        figures.plot_parts({"a": {"x": 1}, "b": {"y": 1}})


def test_what_does_not_change_is_blank():
    change = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="zero everywhere"):
        figures.plot_token_change(change, token=2)
    change[0, 2] = 1.0
    shown = figures.plot_token_change(change, token=2).images[0].get_array()
    assert np.ma.count(np.ma.masked_invalid(shown)) == 1


def test_curves_are_told_apart():
    ax = figures.plot_curves({"a": ([1, 2], [0.1, 0.2]), "b": (range(60), range(60))}, title="T", log=True)
    assert [line.get_marker() for line in ax.lines] == ["o", ""]
    assert ax.get_xscale() == "log"
    with pytest.raises(ValueError, match="0 curves"):
        figures.plot_curves({})
