"""Figures: what they draw is what was given, on small arrays and on a real run; their look; what they refuse."""

import inspect
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from cosmos3_lab import (
    Guidance,
    TokenRow,
    branch_off,
    denoise,
    figures,
    fill_grid,
    flow_schedule,
    generate,
    karras_schedule,
    load_cosmos3,
    log_snr,
    make_processor,
    open_trace,
    plant,
    prepare_denoise,
    token_table,
    trace_steps,
)
from cosmos3_lab.figure_style import COLOURS, as_array, describe, pick_evenly, with_shape
from cosmos3_lab.positions import TokenLayout, compute_mrope_position_ids_text
from cosmos3_lab.preview import fit_latent_preview
from cosmos3_lab.schedule_figures import CHARACTERS, ROLES, printable
from cosmos3_lab.solver_lab import ALL_SOLVERS, SolverError
from cosmos3_lab.sound_figures import FLOOR_DB, hertz_to_mel, mel_filters, mel_to_hertz, spectrogram_db
from cosmos3_lab.step_figures import principal_plane
from cosmos3_lab.towers import Cosmos3Config
from cosmos3_lab.transformer import media_position_ids

RATE, STEPS = 16000, 5


@pytest.fixture(scope="module")
def pico():
    with load_cosmos3("pico", device="cpu") as models:
        yield models


@pytest.fixture(scope="module")
def run(pico):
    """Video and sound of 9 frames, every tensor kept."""
    options = {"with_sound": True, "num_frames": 9, "num_inference_steps": STEPS, "keep": "full", "progress": False}
    return generate(pico, pico.defaults.example_prompts[0], **options)


@pytest.fixture(scope="module")
def preview(pico, run):
    return fit_latent_preview(pico.vae, [run.latents.video])


@pytest.fixture(scope="module")
def unguided(pico):
    """A silent run without guidance, numbers only."""
    options = {"num_frames": 1, "num_inference_steps": 2, "guidance_scale": 1.0, "progress": False}
    return generate(pico, "a red circle", **options)


def tone(hertz, *, amplitude=1.0, seconds=0.5, channels=1):
    wave = amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)
    return np.repeat(wave[None], channels, axis=0).astype(np.float32)


def film(count=5, height=4, width=6):
    """Frame k is all of grey 20 k."""
    levels = (20 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    return np.broadcast_to(levels, (count, height, width, 3)).copy()


def pictures(figure):
    """The images of a figure's panels, in order, without colour bars."""
    return [ax.images[0] for ax in figure.axes if ax.images and ax.get_label() != "<colorbar>"]


def arrays(figure):
    return [np.asarray(image.get_array()) for image in pictures(figure)]


def lines(ax):
    """Data of the curves with a label, by label."""
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in ax.lines if not line.get_label().startswith("_")}


def titles(figure):
    return [image.axes.get_title() for image in pictures(figure)]


# -------------------------------------------------------------------------------------------------------- schedules


def test_schedules_show_sigma_log_snr_and_step_size():
    schedules = {"flow": flow_schedule(6, flow_shift=3.0), "karras": karras_schedule(4)}
    level, clock, size = figures.plot_schedules(schedules).axes
    for curve, schedule in enumerate(schedules.values()):
        n, sigmas = schedule.num_steps, schedule.sigmas.numpy()
        assert np.array_equal(level.lines[curve].get_xydata().T, [np.arange(n + 1), sigmas.astype(float)])
        assert np.allclose(clock.lines[curve].get_ydata(), log_snr(schedule.sigmas[:n]))
        assert np.allclose(size.lines[curve].get_ydata(), sigmas[:-1] - sigmas[1:])
        assert len(size.lines[curve].get_xdata()) == n
    assert [text.get_text() for text in level.figure.legends[0].get_texts()] == ["flow", "karras"]


def test_curves_of_one_picture_differ_without_colour_too():
    axes = figures.plot_schedules({str(n): flow_schedule(n) for n in range(2, 8)}).axes[0]
    assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 6
    assert len({line.get_color() for line in axes.lines}) == 6


def test_too_many_schedules_or_none_are_refused():
    for count in (0, 7):
        with pytest.raises(ValueError, match=f"got {count} schedules, expected 1 to 6"):
            figures.plot_schedules({str(n): flow_schedule(2) for n in range(count)})


def test_noise_levels_of_a_latent_are_the_straight_path():
    clean = torch.randn(1, 2, 3, 4, 4)
    figure = figures.plot_noise_levels(clean, sigmas=(0.0, 0.25, 1.0), frame=1, channel=1, seed=3)
    start, middle, noise = arrays(figure)
    assert np.array_equal(start, clean[0, 1, 1])
    assert np.allclose(middle, 0.75 * start + 0.25 * noise, atol=1e-6)
    assert np.array_equal(noise, torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))[0, 1, 1])
    (limits,) = {image.get_clim() for image in pictures(figure)}
    assert limits == pytest.approx((-np.abs([start, middle, noise]).max(), np.abs([start, middle, noise]).max()))
    assert titles(figure) == ["\u03c3 = 0", "\u03c3 = 0.25", "\u03c3 = 1"]


def test_noise_levels_of_a_frame_mix_in_the_range_of_the_vae():
    frame = np.full((4, 6, 3), 204, np.uint8)  # 0.6 between -1 and 1
    start, middle = arrays(figures.plot_noise_levels(frame, sigmas=(0.0, 0.5)))
    noise = torch.randn((4, 6, 3), generator=torch.Generator().manual_seed(0)).numpy()
    assert np.allclose(start, 0.8)
    assert np.allclose(middle, ((0.5 * 0.6 + 0.5 * noise + 1) / 2).clip(0, 1), atol=1e-6)


def test_noise_levels_in_colours_are_the_previews(run, preview):
    first, last = arrays(figures.plot_noise_levels(run.latents.video, sigmas=(0.0, 1.0), frame=2, preview=preview))
    assert np.array_equal(first, preview.pixels(run.latents.video)[2])
    assert not np.allclose(first, last)


def test_stage_times_are_bars_in_the_order_of_the_run(run):
    axes = figures.plot_stage_times(run.timings)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["model_load", "preprocess", "inference", "condition", "denoise", "decode", "to_cpu", "encode"]
    assert [bar.get_width() for bar in axes.patches] == [run.timings[name] for name in names]
    parts = {name for name, bar in zip(names, axes.patches, strict=True) if bar.get_height() < 0.6}
    assert parts == {"condition", "denoise", "decode"}
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first phase on top


def test_stage_times_say_how_long():
    axes = figures.plot_stage_times({"inference": 12.0, "upload": 0.004, "encode": 0.0})
    assert [label.get_text() for label in axes.get_yticklabels()] == ["inference", "encode", "upload"]
    assert [text.get_text() for text in axes.texts] == ["12.00 s", "0.00 s", "4 ms"]
    assert axes.get_xlim()[1] > 12


@pytest.mark.parametrize("timings", [{}, {"inference": -1.0}])
def test_impossible_timings_are_refused(timings):
    with pytest.raises(ValueError, match="expected at least one phase"):
        figures.plot_stage_times(timings)


# ----------------------------------------------------------------------------------------------------------- tokens


def chips(axes):
    """(string, id, face colour) of every chip."""
    texts = [text.get_text() for text in axes.texts]
    faces = [matplotlib.colors.to_hex(patch.get_facecolor()) for patch in axes.patches]
    return list(zip(texts[::2], texts[1::2], faces, strict=True))


def test_tokens_are_chips_with_ids_and_the_colour_of_their_role(pico):
    processor = make_processor(pico, num_frames=9, height=96, width=96, fps=16.0)
    rows = token_table(processor, "a red circle bounces")
    axes = figures.plot_tokens(rows)
    assert chips(axes) == [(printable(row.string), str(row.id), ROLES[row.role][0].lower()) for row in rows]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["template", "prompt", "metadata", "boundary"]
    boxes = [patch.get_window_extent() for patch in axes.patches]
    assert all(not a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert max(patch.get_x() + patch.get_width() for patch in axes.patches) <= CHARACTERS


def test_roles_differ_without_colour_too():
    assert len({str(dashes) for _, _, dashes in ROLES.values()}) == len(ROLES)


def test_chips_hold_their_text():
    rows = [
        TokenRow(i, 151644 + i, text, "prompt") for i, text in enumerate(["i", "WWWW", "a long token", "<|vision_start|>"] * 20)
    ]
    axes = figures.plot_tokens(rows)
    axes.figure.draw_without_rendering()
    for patch, text, number in zip(axes.patches, axes.texts[::2], axes.texts[1::2], strict=True):
        box = patch.get_window_extent()
        for inside in (text.get_window_extent(), number.get_window_extent()):
            assert box.x0 <= inside.x0
            assert inside.x1 <= box.x1
            assert box.y0 <= inside.y0
            assert inside.y1 <= box.y1


def test_any_text_can_be_drawn():
    odd = ["$x_1$", "\\frac{", " ", "\n", "\t", "\U0001f388", "\u65e5", "", "\x07", "w" * 90]
    axes = figures.plot_tokens([TokenRow(i, i, text, "prompt") for i, text in enumerate(odd)])
    axes.figure.draw_without_rendering()  # warnings are errors here: a missing glyph would be one
    shown = [text for text, _, _ in chips(axes)]
    assert shown == ["$x_1$", "\\frac{", "\u00b7", "\u21b5", "\u21e5", "\u25a1", "\u25a1", "", "\u25a1", "w" * 39 + "\u2026"]


def test_tokens_beyond_the_limit_are_counted():
    axes = figures.plot_tokens([TokenRow(i, i, "x", "prompt") for i in range(9)], limit=4)
    assert len(axes.patches) == 4
    assert axes.get_title(loc="right") == "5 more tokens not shown"
    with pytest.raises(ValueError, match="got no tokens"):
        figures.plot_tokens([])


# ---------------------------------------------------------------------------------------------------------- latents


def test_channels_share_one_scale_around_zero(run):
    video = run.latents.video
    figure = figures.plot_latent_channels(video, frame=1, channels=[3, 0], columns=1)
    assert np.array_equal(arrays(figure), video[0, [3, 0], 1])
    assert {image.get_clim() for image in pictures(figure)} == {(-(top := float(video[0, [3, 0], 1].abs().max())), top)}
    assert titles(figure) == ["channel 3", "channel 0"]
    assert [ax.get_ylabel() for ax in figure.axes if ax.get_label() == "<colorbar>"] == ["latent value"]
    assert len(arrays(figures.plot_latent_channels(video))) == video.shape[1]


def test_a_channel_runs_through_all_latent_frames(run):
    figure = figures.plot_latent_frames(run.latents.video, channel=2)
    assert np.array_equal(arrays(figure), run.latents.video[0, 2])
    assert len({image.get_clim() for image in pictures(figure)}) == 1
    assert titles(figure) == ["frame 0", "frame 1", "frame 2"]


def test_an_empty_latent_has_a_scale():
    assert pictures(figures.plot_latent_frames(torch.zeros(1, 1, 1, 2, 2)))[0].get_clim() == (-1, 1)


def test_histograms_are_densities_beside_the_normal_one():
    values = torch.randn(2, 5000) * 2 + 1
    axes = figures.plot_latent_histogram({"wide": values, "noise": np.zeros(3)}, bins=50)
    wide, noise = (patch.get_data() for patch in axes.patches)
    assert (wide.values * np.diff(wide.edges)).sum() == pytest.approx(1)
    assert (wide.values * (wide.edges[1:] + wide.edges[:-1]) / 2 * np.diff(wide.edges)).sum() == pytest.approx(1, abs=0.1)
    assert np.array_equal(wide.edges, noise.edges)
    assert wide.edges[-1] == -wide.edges[0] >= values.abs().max()
    x, y = lines(axes)["standard normal"]
    assert y.max() == pytest.approx(0.3989, abs=1e-3)
    assert np.trapezoid(y, x) == pytest.approx(1, abs=1e-3)
    labels = [t.get_text() for t in axes.get_legend().get_texts()]
    assert labels[0] == f"wide: mean {values.mean():.2f}, std {values.numpy().std():.2f}"


@pytest.mark.parametrize("latents", [{}, {"empty": torch.zeros(0)}])
def test_histograms_of_nothing_are_refused(latents):
    with pytest.raises(ValueError, match="expected"):
        figures.plot_latent_histogram(latents)


def test_a_filmstrip_shows_frames_and_their_times():
    frames = film(9)
    figure = figures.filmstrip(frames, fps=4.0, count=3)
    assert np.array_equal(arrays(figure), frames[[0, 4, 8]])
    assert titles(figure) == ["0.00 s", "1.00 s", "2.00 s"]
    bright = figures.filmstrip(torch.full((1, 2, 2, 3), 1.5), fps=4.0)
    assert arrays(bright)[0].max() == 1


def test_x0_takes_shape_row_by_row(run, preview):
    figure = figures.filmstrip_of_x0(run.records, preview, rows=3, count=2)
    expected = [preview.pixels(run.records[step].x0.video)[frame] for step in (0, 2, 4) for frame in (0, 2)]
    assert np.array_equal(arrays(figure), expected)
    labels = [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]
    assert labels == [f"step {i}\n$\\sigma$ = {run.records[i].sigma:.3f}" for i in (0, 2, 4)]
    assert titles(figure) == ["frame 0", "frame 2", "", "", "", ""]


def test_records_without_x0_are_refused(unguided, preview):
    for records in ((), unguided.records):
        with pytest.raises(ValueError, match="got no records that hold x0, expected .* keep='x0'"):
            figures.filmstrip_of_x0(records, preview)


# -------------------------------------------------------------------------------------------------------- guidance


def test_guidance_shows_distance_and_cosine_of_both_modalities(run):
    figure = figures.plot_guidance([record.keep("summary") for record in run.records])
    distance, cosine = (lines(ax) for ax in figure.axes)
    assert list(distance) == list(cosine) == ["video", "sound"]
    for modality in ("video", "sound"):
        pairs = [(getattr(r.velocity.cond, modality), getattr(r.velocity.uncond, modality)) for r in run.records]
        assert np.array_equal(distance[modality][0], range(STEPS))
        assert np.allclose(distance[modality][1], [(c - u).square().mean().sqrt() for c, u in pairs], rtol=1e-5)
        alike = [torch.cosine_similarity(c.flatten(), u.flatten(), dim=0) for c, u in pairs]
        assert np.allclose(cosine[modality][1], alike, atol=1e-5)


def test_guidance_is_drawn_at_the_steps_that_had_it(run):
    skipped = replace(run.records[0], rms={k: v for k, v in run.records[0].rms.items() if "guidance" not in k})
    for ax in figures.plot_guidance([skipped, *run.records[1:]]).axes:
        assert list(lines(ax)["video"][0]) == list(range(1, STEPS))


def test_sigma_stands_above_its_step(run):
    figure = figures.plot_guidance(run.records)
    (above,) = figure.axes[0].child_axes
    assert list(above.get_xticks()) == [record.index for record in run.records]
    assert [label.get_text() for label in above.get_xticklabels()] == [f"{record.sigma:.3g}" for record in run.records]


def test_guidance_over_space_is_the_rms_over_channels(run):
    velocity = run.records[2].velocity
    figure = figures.guidance_map(run.records[2], frames=[2, 0])
    apart = (velocity.cond.video - velocity.uncond.video).square().mean(dim=1).sqrt()[0]
    assert np.allclose(arrays(figure), apart[[2, 0]], atol=1e-6)
    (limits,) = {image.get_clim() for image in pictures(figure)}
    assert limits == pytest.approx((0, float(apart[[2, 0]].max())))
    assert titles(figure) == ["frame 2", "frame 0"]
    assert f"step 2, $\\sigma$ = {run.records[2].sigma:.3f}" in figure.get_suptitle()


def test_guidance_of_an_unguided_run_is_refused(run, unguided):
    with pytest.raises(ValueError, match=r"records without 'guidance', expected .* guided run"):
        figures.plot_guidance(unguided.records)
    with pytest.raises(ValueError, match="got a record without two velocities"):
        figures.guidance_map(run.records[0].keep("x0"))


# ----------------------------------------------------------------------------------------------------------- solver


def test_unipc_shows_moves_and_orders(run):
    records = [record.keep("summary") for record in run.records]
    moves, orders = figures.plot_unipc(records).axes
    for modality in ("video", "sound"):
        predictor, corrector = (lines(moves)[f"{modality}, {name}"][1] for name in ("predictor", "corrector"))
        assert list(predictor) == [record.rms[f"{modality}.predictor_move"] for record in records]
        assert np.isnan(corrector[0])  # nothing to correct
        assert list(corrector[1:]) == [record.rms[f"{modality}.corrector_move"] for record in records[1:]]
    assert list(lines(orders)["predictor"][1]) == [1, 2, 2, 2, 1]
    assert list(lines(orders)["corrector"][1]) == [0, 1, 2, 2, 2]
    assert list(orders.get_yticks()) == [0, 1, 2]
    assert moves.get_yscale() == "log"


def test_a_silent_run_has_one_modality(unguided):
    assert list(lines(figures.plot_unipc(unguided.records).axes[0])) == ["video, predictor", "video, corrector"]
    with pytest.raises(ValueError, match="got 0 records"):
        figures.plot_unipc([])


def test_the_plane_keeps_distances_of_points_that_lie_in_one():
    flat = np.random.RandomState(0).randn(6, 2) * [3, 1]
    basis, _ = np.linalg.qr(np.random.RandomState(1).randn(40, 2))
    points, shares = principal_plane(list((flat @ basis.T + 5).reshape(6, 2, 20)))
    assert sum(shares) == pytest.approx(1)
    assert shares[0] > shares[1]

    def distances(p):
        return np.linalg.norm(p[:, None] - p[None], axis=-1)

    assert np.allclose(distances(points), distances(flat))
    assert np.all(points[0] <= 0)


@pytest.mark.parametrize("modality", ["video", "sound"])
def test_the_trajectory_goes_from_the_noise_to_the_result(run, modality):
    axes = figures.plot_trajectory(run.records, modality=modality)
    dots, aims = (np.asarray(c.get_offsets()) for c in axes.collections)
    assert np.array_equal(axes.collections[0].get_array(), [record.sigma for record in run.records])
    # distances in the plane are those in the space, as far as it shows them
    x0 = np.stack([as_array(getattr(record.x0, modality)).ravel() for record in run.records])
    v = np.stack([as_array(getattr(record.velocity.guided, modality)).ravel() for record in run.records])
    samples = x0 + np.array([[record.sigma] for record in run.records]) * v
    assert np.allclose(samples[0] - x0[0], run.records[0].sigma * v[0], atol=1e-5)
    points, shares = principal_plane([*samples, *x0])
    assert np.allclose(np.concatenate([dots, aims]), points, atol=1e-4)
    assert np.linalg.norm(dots[-1] - aims[-1]) < np.linalg.norm(dots[0] - aims[-1])
    assert f"component 1 ({shares[0]:.0%} of the variance)" == axes.get_xlabel()


def test_a_trajectory_needs_tensors(run, unguided):
    for records, modality in ((unguided.records, "video"), (run.records[:1], "video"), ((), "sound")):
        with pytest.raises(ValueError, match="expected at least 2, all of a run with keep='full'"):
            figures.plot_trajectory(records, modality=modality)


# ------------------------------------------------------------------------------------------------------------ sound


def test_a_full_scale_sine_is_zero_decibels_at_its_frequency():
    levels, hop = spectrogram_db(tone(1000), RATE)
    middle = levels[:, levels.shape[1] // 2]
    assert np.linspace(0, RATE / 2, len(middle))[middle.argmax()] == 1000
    assert middle.max() == pytest.approx(0, abs=0.05)
    assert spectrogram_db(tone(1000, amplitude=0.1), RATE)[0].max() == pytest.approx(-20, abs=0.3)
    assert (levels.shape[1] - 1) * hop == pytest.approx(0.5, abs=hop)


@pytest.mark.parametrize("scale", ["linear", "mel"])
def test_a_click_is_seen_when_it_happens(scale):
    click = np.zeros((2, 8000), np.float32)
    click[:, 5000] = 1
    levels, hop = spectrogram_db(click, RATE, scale=scale)
    assert levels.mean(axis=0).argmax() * hop == pytest.approx(5000 / RATE, abs=hop)
    assert np.isfinite(spectrogram_db(np.zeros((1, 100)), RATE, scale=scale)[0]).all()


def test_mel_bands_peak_at_their_frequency_and_leave_no_gap():
    for rate, window in ((16000, 1024), (48000, 2048)):
        filters = mel_filters(rate, window)
        hertz = np.fft.rfftfreq(window, 1 / rate)
        inner = (hertz > mel_to_hertz(hertz_to_mel(rate / 2) / 65)) & (hertz < mel_to_hertz(hertz_to_mel(rate / 2) * 64 / 65))
        assert np.allclose(filters.sum(axis=0)[inner], 1)  # neighbouring triangles add up to one
        assert (filters.sum(axis=1) > 0).all()
    assert hertz_to_mel(1000.0) == pytest.approx(1000, abs=0.1)
    assert mel_to_hertz(hertz_to_mel(440.0)) == pytest.approx(440)
    band = spectrogram_db(tone(440), RATE, scale="mel")[0][:, 10].argmax()
    assert mel_to_hertz(hertz_to_mel(RATE / 2) * (band + 1) / 65) == pytest.approx(440, abs=35)


def test_spectrograms_have_hertz_seconds_and_decibels():
    wave = tone(1000, channels=2)
    axes = figures.plot_spectrogram(wave, RATE)
    levels, hop = spectrogram_db(wave, RATE)
    assert np.array_equal(axes.images[0].get_array(), levels)
    half = 8 / (levels.shape[0] - 1) / 2  # of a bin: each level lies around its moment and its frequency
    assert axes.images[0].get_extent() == pytest.approx((-hop / 2, (levels.shape[1] - 0.5) * hop, -half, 8 + half))
    assert axes.images[0].get_clim() == (FLOOR_DB, 0)
    assert axes.get_xlim() == (0, 0.5)
    assert axes.get_ylim() == (0, 8)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time (s)", "frequency (kHz)")
    assert "dB" in axes.figure.axes[1].get_ylabel()


def test_mel_ticks_stand_at_their_frequency():
    axes = figures.plot_spectrogram(tone(1000), RATE, scale="mel")
    assert dict(zip([t.get_text() for t in axes.get_yticklabels()], axes.get_yticks(), strict=True)) == pytest.approx(
        {"100": hertz_to_mel(100.0), "300": hertz_to_mel(300.0), "1k": hertz_to_mel(1000.0), "3k": hertz_to_mel(3000.0)}
    )
    assert axes.get_ylim() == pytest.approx((hertz_to_mel(8000.0) / 130, hertz_to_mel(8000.0) * 129 / 130))


@pytest.mark.parametrize("scale", ["linear", "mel"])
def test_a_tone_lies_at_its_frequency_on_the_axis(scale):
    axes = figures.plot_spectrogram(tone(1000), RATE, scale=scale)
    (image,) = axes.images
    levels, (_, _, low, high) = image.get_array(), image.get_extent()
    loudest = np.asarray(levels).mean(axis=1).argmax()
    band = (high - low) / len(levels)
    wanted = 1.0 if scale == "linear" else hertz_to_mel(1000.0)
    assert low + (loudest + 0.5) * band == pytest.approx(wanted, abs=0.501 * band)


def test_a_waveform_has_a_lane_for_each_channel(run):
    wave, rate = run.output.waveform, run.output.sample_rate
    axes = figures.plot_waveform(wave, rate)
    left, right = (line for line in axes.lines if len(line.get_xdata()) == wave.shape[1])
    places = {label.get_text(): place for label, place in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)}
    assert np.allclose(left.get_ydata() - places["left"], wave[0], atol=1e-6)
    assert np.allclose(right.get_ydata() - places["right"], wave[1], atol=1e-6)
    assert places["left"] - places["right"] > 2  # full scale fits
    assert np.allclose(left.get_xdata(), np.arange(wave.shape[1]) / rate)
    assert axes.get_xlim() == (0, wave.shape[1] / rate)


def test_sound_latents_stand_at_their_time(run):
    sound = run.latents.sound
    axes = figures.plot_sound_latents(sound, latent_fps=10.0)
    assert np.array_equal(axes.images[0].get_array(), sound[0].T)
    assert axes.images[0].get_clim() == (-float(sound.abs().max()), float(sound.abs().max()))
    assert axes.get_xlim() == (0, sound.shape[1] / 10)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # channel 0 on top


def timeline(run, **options):
    out = run.output
    return figures.plot_timeline(out.frames, out.fps, out.waveform, out.sample_rate, **options)


def test_the_timeline_has_one_time_axis(run):
    figure = timeline(run, sound_latents=run.latents.sound, events=[0.25, 0.4], count=4)
    strip, latents, wave, spectrum = figure.axes
    seconds = len(run.output.frames) / run.output.fps
    figure.draw_without_rendering()
    assert {ax.get_xlim() for ax in figure.axes} == {(0, seconds)}
    assert len({(ax.get_position().x0, ax.get_position().x1) for ax in figure.axes}) == 1
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "", "time (s)"]
    for ax in figure.axes:
        drawn = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
        assert drawn == [0.25, 0.4]
    assert np.array_equal(latents.images[0].get_array(), run.latents.sound[0].T)
    assert latents.images[0].get_extent()[:2] == [0, run.latents.sound.shape[1] / 25]
    assert len(wave.lines[1].get_xdata()) == run.output.waveform.shape[1]
    assert np.array_equal(spectrum.images[0].get_array(), spectrogram_db(run.output.waveform, RATE)[0])
    for place, image in enumerate(strip.images):
        begin, end = image.get_extent()[:2]
        assert (begin, end) == (pytest.approx(place * seconds / 4), pytest.approx((place + 1) * seconds / 4))
        on_screen = int((begin + end) / 2 * run.output.fps)
        assert np.array_equal(image.get_array(), run.output.frames[on_screen])


def test_pictures_of_the_timeline_are_not_stretched(run):
    figure = timeline(run, count=6, scale="mel")
    assert len(figure.axes) == 3
    box = figure.axes[0].get_window_extent()
    assert box.width / 6 / box.height == pytest.approx(1, rel=1e-6)  # square frames
    assert figure.axes[2].get_ylabel() == "frequency (Hz, mel)"


# ---------------------------------------------------------------------------------------------------------- refusals

BAD = {
    "plot_noise_levels": lambda: figures.plot_noise_levels(torch.zeros(2, 4, 3, 8, 8)),
    "plot_noise_levels of a frame": lambda: figures.plot_noise_levels(np.zeros((3, 8, 8), np.uint8)),
    "plot_latent_channels": lambda: figures.plot_latent_channels(torch.zeros(4, 3, 8, 8)),
    "plot_latent_frames": lambda: figures.plot_latent_frames(torch.zeros(1, 4, 0, 8, 8)),
    "filmstrip": lambda: figures.filmstrip(np.zeros((3, 5, 8, 8)), fps=4.0),
    "plot_waveform": lambda: figures.plot_waveform(np.zeros(100), RATE),
    "plot_spectrogram": lambda: figures.plot_spectrogram(np.zeros((1, 2, 100)), RATE),
    "plot_sound": lambda: figures.plot_sound(np.zeros((1, 2, 100)), RATE),
    "plot_sound_latents": lambda: figures.plot_sound_latents(torch.zeros(5, 16)),
    "plot_timeline": lambda: figures.plot_timeline(film(), 4.0, np.zeros((1, 100)), RATE, sound_latents=np.zeros((5, 16))),
    "plot_attention_frames": lambda: figures.plot_attention_frames(film(), np.zeros((3, 4)), word="red"),
    "plot_word_time": lambda: figures.plot_word_time(np.zeros((3, 4)), ["a"], seconds=1.0),
    "plot_sound_to_video": lambda: figures.plot_sound_to_video(np.zeros((1, 3, 4)), seconds=1.0),
    "plot_word_effects": lambda: figures.plot_word_effects({"video": np.zeros(3)}, {"video": np.zeros(3)}, ["a"]),
}


@pytest.mark.parametrize("name", BAD)
def test_another_shape_is_refused_with_both_shapes_named(name):
    with pytest.raises(ValueError, match=r"got .+ of shape \[[\d, ]+\], expected \[[\w, ]+\]"):
        BAD[name]()


@pytest.mark.parametrize(
    "call",
    [
        lambda video: figures.plot_latent_channels(video, frame=3),
        lambda video: figures.plot_latent_channels(video, channels=[0, 4]),
        lambda video: figures.plot_latent_channels(video, channels=[]),
        lambda video: figures.plot_latent_frames(video, channel=-1),
        lambda video: figures.plot_noise_levels(video, channel=4),
        lambda video: figures.filmstrip(film(), fps=4.0, count=0),
    ],
)
def test_what_is_out_of_range_is_refused(call):
    with pytest.raises(ValueError, match="got .*, expected"):
        call(torch.zeros(1, 4, 3, 2, 2))


def test_frames_out_of_range_are_refused(run):
    with pytest.raises(ValueError, match=r"got frames \[3\], expected numbers from 0 to 2"):
        figures.guidance_map(run.records[0], frames=[3])


# ------------------------------------------------------------------------------------------------------------- look


def position_figures():
    layout = TokenLayout(5, (3, 4, 4), 2, 7)
    text, media = compute_mrope_position_ids_text(5), media_position_ids(Cosmos3Config(), layout, 24.0, 25.0)
    places = figures.plot_positions(text, media, layout, start=15005)
    return {"plot_positions": places, "plot_token_sequence": figures.plot_token_sequence(layout)}


def attention_figures():
    frames, words = film(9, 32, 32), ["a", "red", "ball", "bounces"]
    shares = np.random.RandomState(0).rand(9, 4)
    gets, does = ({"video": shares[i], "sound": shares[i + 1]} for i in (0, 2))
    return {
        "plot_attention_frames": figures.plot_attention_frames(frames, np.random.RandomState(0).rand(3, 4, 4), word="red"),
        "plot_word_time": figures.plot_word_time(shares, words, seconds=2.0, title="What the sound looks at"),
        "plot_sound_to_video": figures.plot_sound_to_video(shares, seconds=2.0, events=[0.5, 1.5], title="layer 4, head 2"),
        "plot_word_effects": figures.plot_word_effects(gets, does, words),
    }


def laboratory_figures():
    schedule = flow_schedule(4, flow_shift=5.0)
    guidance = Guidance((1.0, 6.0, 6.0, 1.0), sound_scale=(2.0,) * 4)
    errors = [SolverError(solver, n, n, 1 / n) for solver in ALL_SOLVERS for n in (4, 8, 16, 32)]
    scales = figures.plot_guidance_scale(guidance, schedule)
    return {"plot_guidance_scale": scales, "plot_solver_errors": figures.plot_solver_errors(errors)}


def explore_figures(pico, run, preview, folder):
    """A tree, a grid and a trace of that run's request."""
    inputs, state = prepare_denoise(pico, run.inputs.request)
    root = plant(pico, inputs, state, stop=2)
    tree = branch_off(pico, root, "a branch", step=1, prompt="a green square rises on a white background; silence", stop=2)
    list(trace_steps(denoise(pico.transformer, inputs, state, stop=2), folder / "trace", models=pico, inputs=inputs))
    rows = {"guidance_scale": [1.0, 3.0]}
    options = {"num_frames": 5, "num_inference_steps": 1, "score": lambda clip: {"frames": len(clip.frames)}, "progress": False}
    return {
        "plot_tree": figures.plot_tree(tree, preview),
        "plot_trace": figures.plot_trace(open_trace(folder / "trace")),
        "plot_grid": figures.plot_grid(
            fill_grid(pico, "a circle", folder=folder / "grid", rows=rows, **options), scores=["frames"]
        ),
    }


def every_figure(pico, run, preview, folder):
    """Each public function once, on the run."""
    out, records, latents = run.output, run.records, run.latents
    tokens = [TokenRow(0, 5, "a", "prompt"), TokenRow(1, 6, " b", "metadata")]
    made = {
        "plot_schedules": figures.plot_schedules({"flow": flow_schedule(4)}),
        "plot_noise_levels": figures.plot_noise_levels(latents.video),
        "plot_stage_times": figures.plot_stage_times(run.timings),
        "plot_tokens": figures.plot_tokens(tokens),
        "plot_latent_channels": figures.plot_latent_channels(latents.video),
        "plot_latent_frames": figures.plot_latent_frames(latents.video),
        "plot_latent_histogram": figures.plot_latent_histogram({"x0": latents.video}),
        "filmstrip": figures.filmstrip(out.frames, fps=out.fps),
        "filmstrip_of_x0": figures.filmstrip_of_x0(records, preview),
        "plot_guidance": figures.plot_guidance(records),
        "guidance_map": figures.guidance_map(records[1]),
        "plot_unipc": figures.plot_unipc(records),
        "plot_trajectory": figures.plot_trajectory(records),
        "plot_waveform": figures.plot_waveform(out.waveform, out.sample_rate),
        "plot_spectrogram": figures.plot_spectrogram(out.waveform, out.sample_rate),
        "plot_sound": figures.plot_sound(out.waveform, out.sample_rate),
        "plot_sound_latents": figures.plot_sound_latents(latents.sound),
        "plot_timeline": timeline(run, sound_latents=latents.sound),
        "plot_curves": figures.plot_curves({"a": ([1, 2], [3, 4])}, title="A curve for the test", x="x", y="y"),
        "plot_parts": figures.plot_parts({"UND": {"layers": 3.0, "rest": 1.0}, "GEN": {"layers": 3.0, "rest": 0.5}}),
        "plot_token_change": figures.plot_token_change(np.triu(np.ones((3, 8))), token=1),
        **position_figures(),
        **attention_figures(),
        **laboratory_figures(),
        **explore_figures(pico, run, preview, folder),
    }
    return {name: value if isinstance(value, Figure) else value.figure for name, value in made.items()}


@pytest.fixture(scope="module")
def on_a_dark_page(pico, run, preview, tmp_path_factory):
    """Every figure, drawn by somebody whose own matplotlib settings are dark."""
    dark = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor"), "w"
    )
    with matplotlib.rc_context({**dark, "axes.facecolor": "k", "figure.facecolor": "k", "font.size": 17, "axes.grid": True}):
        made = every_figure(pico, run, preview, tmp_path_factory.mktemp("explore"))
        for figure in made.values():
            figure.draw_without_rendering()
    return made


def luminance(colour):
    return float(np.dot(matplotlib.colors.to_rgb(colour), [0.2126, 0.7152, 0.0722]))


def visible_texts(figure):
    """Texts with something in them, whose axes are on."""
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


def test_every_figure_is_looked_at(on_a_dark_page):
    assert sorted(on_a_dark_page) == sorted(figures.__all__)


@pytest.mark.parametrize("name", figures.__all__)
def test_text_is_dark_on_a_light_face_whatever_the_settings(on_a_dark_page, name):
    figure = on_a_dark_page[name]
    assert luminance(figure.get_facecolor()) > 0.9
    assert all(luminance(ax.get_facecolor()) > 0.9 for ax in figure.axes if ax.get_label() != "<colorbar>")
    assert {t.get_text() for t in visible_texts(figure) if luminance(t.get_color()) > 0.4} == set()
    assert visible_texts(figure)


@pytest.mark.parametrize("name", figures.__all__)
def test_nothing_is_cut_off(on_a_dark_page, name):
    figure = on_a_dark_page[name]
    drawn, page = figure.get_tightbbox(), figure.bbox_inches
    assert min(drawn.x0, drawn.y0, page.x1 - drawn.x1, page.y1 - drawn.y1) >= -0.01


SMALL = {
    "one map": lambda run, preview: figures.guidance_map(run.records[1], frames=[1]),
    "one x0": lambda run, preview: figures.filmstrip_of_x0(run.records, preview, rows=1, count=1),
    "one channel": lambda run, preview: figures.plot_latent_channels(run.latents.video, channels=[0]),
    "wide frames": lambda run, preview: figures.filmstrip(film(3, 18, 32), fps=24.0),
    "tall frames": lambda run, preview: figures.filmstrip(film(9, 32, 18), fps=24.0),
    "48 channels": lambda run, preview: figures.plot_latent_channels(torch.randn(1, 48, 2, 9, 16), frame=1),
    "one noise level": lambda run, preview: figures.plot_noise_levels(run.latents.video, sigmas=[0.5]),
    "one phase": lambda run, preview: figures.plot_stage_times({"denoise": 3723.5}).figure,
    "wide frames with heat": lambda run, preview: figures.plot_attention_frames(
        film(5, 18, 32), np.ones((2, 3, 4)), word="a word"
    ),
    "mono": lambda run, preview: figures.plot_timeline(film(3, 18, 32), 24.0, tone(440), RATE, scale="mel"),
}


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_cut_off_in_other_shapes(run, preview, name):
    figure = SMALL[name](run, preview)
    figure.draw_without_rendering()
    drawn, page = figure.get_tightbbox(), figure.bbox_inches
    assert min(drawn.x0, drawn.y0, page.x1 - drawn.x1, page.y1 - drawn.y1) >= -0.01
    assert page.width <= 10.3


@pytest.mark.parametrize("name", figures.__all__)
def test_no_words_overlap(on_a_dark_page, name):
    figure = on_a_dark_page[name]
    words = [text for ax in figure.axes for text in (ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts)]
    words += [text for ax in figure.axes for above in ax.child_axes for text in (above.xaxis.label, above.yaxis.label)]
    words += [text for legend in figure.findobj(Legend) for text in legend.get_texts()]
    words += [figure._suptitle] if figure._suptitle else []
    boxes = [(text.get_text(), text.get_window_extent()) for text in words if text.get_text() and text.get_visible()]
    assert [(a, b) for i, (a, one) in enumerate(boxes) for b, other in boxes[i + 1 :] if one.overlaps(other)] == []


@pytest.mark.parametrize("name", figures.__all__)
def test_figures_fit_a_notebook_and_say_what_they_show(on_a_dark_page, name):
    figure = on_a_dark_page[name]
    assert 3 <= figure.get_figwidth() <= 10.3
    assert len(figure.alt_text) > 30
    assert figure.alt_text.endswith(".")
    assert figure.alt_text.count("..") == 0


def test_colours_differ_for_the_colour_blind():
    """Okabe and Ito's, as published."""
    assert set(COLOURS.values()) <= {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000"}
    assert len(set(COLOURS.values())) == len(COLOURS)


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax, run: figures.plot_waveform(run.output.waveform, RATE, ax=ax),
        lambda ax, run: figures.plot_spectrogram(run.output.waveform, RATE, ax=ax),
        lambda ax, run: figures.plot_sound_latents(run.latents.sound, ax=ax),
        lambda ax, run: figures.plot_latent_histogram({"x0": run.latents.video}, ax=ax),
        lambda ax, run: figures.plot_trajectory(run.records, ax=ax),
        lambda ax, run: figures.plot_stage_times(run.timings, ax=ax),
        lambda ax, run: figures.plot_tokens([TokenRow(0, 5, "a", "prompt")], ax=ax),
        lambda ax, run: figures.plot_word_time(np.eye(3), ["a", "b", "c"], seconds=1.0, ax=ax),
        lambda ax, run: figures.plot_sound_to_video(np.eye(3), seconds=1.0, ax=ax),
    ],
)
def test_given_axes_are_drawn_on_and_returned(draw, run):
    """In a plain matplotlib figure, beside what is there already."""
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    assert draw(right, run) is right
    assert right.has_data() or right.patches
    assert not left.has_data()
    figure.draw_without_rendering()
    assert figure.alt_text


# --------------------------------------------------------------------------------------------------------- notebook


def test_a_cell_may_end_with_a_figure_or_with_axes():
    axes = figures.plot_waveform(tone(440), RATE)
    describe(axes, 'A "quoted" <word>')
    for shown in (axes, axes.figure):
        bundle = shown._repr_mimebundle_()
        assert bundle["text/plain"] == 'Waveform of 0.50 s of sound with 1 channels, peak 1.00. A "quoted" <word>.'
        alt = "Waveform of 0.50 s of sound with 1 channels, peak 1.00. A &quot;quoted&quot; &lt;word&gt;."
        assert re.match(
            rf'<img alt="{re.escape(alt)}" width="900" style="[^"]*" src="data:image/png;base64,', bundle["text/html"]
        )
        assert bundle["text/html"].count("<") == 1
        assert bundle["image/png"] in bundle["text/html"]
    assert axes.figure.png()[:4] == b"\x89PNG"
    assert int.from_bytes(axes.figure.png()[16:20], "big") == 1800  # sharp on dense screens
    assert int.from_bytes(axes.figure.png(sharpness=1.0)[16:20], "big") == 900


def test_figures_work_without_pyplot_and_ipython(tmp_path):
    code = f"""
import sys
sys.modules["IPython"] = sys.modules["ipywidgets"] = None  # importing either now fails
import numpy as np
from cosmos3_lab import figures
assert "matplotlib" not in sys.modules, "matplotlib is imported before the first figure"
frames, wave = np.zeros((5, 8, 8, 3), np.uint8), np.zeros((2, 8000), np.float32)
figures.plot_timeline(frames, 10.0, wave, 16000).savefig({str(tmp_path / "timeline.png")!r})
figures.plot_waveform(wave, 16000).figure._repr_mimebundle_()
try:
    figures.plot_spectrogram(wave, 16000, scale="bark")
except ValueError as error:
    print(error)
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1]
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "got scale='bark', expected one of 'linear', 'mel'\nFalse\n", "")
    assert (tmp_path / "timeline.png").stat().st_size > 1000


def test_settings_of_matplotlib_are_left_alone():
    before = dict(matplotlib.rcParams)
    figures.plot_schedules({"flow": flow_schedule(4)}).png()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", figures.__all__)
def test_docstrings_list_every_argument(name):
    function = getattr(figures, name)
    arguments = re.search(r"\n    Args:\n(.*?)(\n\n|\Z)", function.__doc__, re.DOTALL)[1]
    listed = {n for entry in re.findall(r"(?m)^        ([a-z0-9_, ]+):", arguments) for n in entry.split(", ")}
    assert listed == set(inspect.signature(function).parameters)
    assert "Raises:" in function.__doc__


# ------------------------------------------------------------------------------------------------------------- data


def test_arrays_come_from_any_tensor():
    assert as_array(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)).dtype == np.float32
    assert as_array(torch.ones(2, dtype=torch.uint8)).dtype == np.uint8
    assert with_shape("a frame", np.zeros((2, 4, 3)), "h w 3").shape == (2, 4, 3)


def test_picks_are_even_and_hold_both_ends():
    assert pick_evenly(30, 4) == [0, 10, 19, 29]
    assert pick_evenly(3, 8) == [0, 1, 2]
    assert pick_evenly(5, 1) == [0]
