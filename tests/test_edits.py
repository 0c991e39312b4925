"""Edits of latents: regions, what is pasted where, runs that keep a part, and forks that leave their parents alone."""

import pytest
import torch

from cosmos3_lab import Latents, denoise, fork, load_cosmos3, prepare_denoise, prepare_request
from cosmos3_lab.edits import Region, denoise_keeping, paste, renoise, restart_at, select_sound, select_video

STEPS = 4


def some(seed=0, n_sound=6):
    generator = torch.Generator().manual_seed(seed)
    sound = None if n_sound is None else torch.randn(1, n_sound, 5, generator=generator)
    return Latents(torch.randn(1, 3, 4, 6, 8, generator=generator), sound)


@pytest.fixture(scope="module")
def pico():
    with load_cosmos3("pico", device="cpu") as models:
        yield models


@pytest.fixture(scope="module")
def run(pico):
    """Inputs, and the state before every step and after the last."""
    options = {"with_sound": True, "num_frames": 5, "num_inference_steps": STEPS}
    request = prepare_request(pico, "a red circle bounces on a blue background; low thuds", **options)
    inputs, state = prepare_denoise(pico, request)
    return inputs, [state, *(after for after, _ in denoise(pico.transformer, inputs, state))]


def test_a_box_is_what_was_asked_for():
    region = select_video(some(), frames=(1, 3), columns=(4, 8))
    expected = torch.zeros(4, 6, 8, dtype=torch.bool)
    expected[1:3, :, 4:] = True
    assert torch.equal(region.video, expected)
    assert not region.sound.any()
    assert select_video(some(n_sound=None)).sound is None


def test_regions_join_cut_and_turn_round():
    latents = some()
    video, sound = select_video(latents, rows=(0, 3)), select_sound(latents, steps=(2, 4))
    both = video | sound
    assert torch.equal(both.video, video.video)
    assert torch.equal(both.sound, sound.sound)
    assert int((~both).video.sum()) == both.video.numel() - int(both.video.sum())
    assert int((~both).sound.sum()) == 4
    assert not (video & sound).video.any()


@pytest.mark.parametrize("choice", [{"frames": (2, 2)}, {"rows": (0, 7)}, {"columns": (-1, 3)}])
def test_regions_beyond_the_latents_are_refused(choice):
    with pytest.raises(ValueError, match=f"got {next(iter(choice))} .*, expected .* within 0 and"):
        select_video(some(), **choice)


def test_sound_of_a_silent_video_is_refused():
    with pytest.raises(ValueError, match="with_sound=True"):
        select_sound(some(n_sound=None))


def test_paste_takes_the_region_and_nothing_else():
    latents, source = some(0), some(1)
    before = latents.map(torch.clone)
    region = select_video(latents, frames=(1, 2), rows=(2, 5)) | select_sound(latents, steps=(0, 2))
    pasted = paste(latents, source, region)
    assert torch.equal(pasted.video[:, :, region.video], source.video[:, :, region.video])
    assert torch.equal(pasted.video[:, :, ~region.video], latents.video[:, :, ~region.video])
    assert torch.equal(pasted.sound[:, :2], source.sound[:, :2])
    assert torch.equal(pasted.sound[:, 2:], latents.sound[:, 2:])
    assert torch.equal(latents.video, before.video)
    assert torch.equal(latents.sound, before.sound)


@pytest.mark.parametrize("source", [some(1, n_sound=7), some(1, n_sound=None)])
def test_paste_refuses_other_shapes(source):
    with pytest.raises(ValueError, match="expected the same shapes"):
        paste(some(), source, select_video(some()))


def test_renoised_latents_are_as_noisy_as_a_run():
    clean = some()
    assert torch.equal(renoise(clean, 0.0, seed=1).video, clean.video)
    zeros = Latents(torch.zeros(1, 16, 9, 12, 12), torch.zeros(1, 52, 16))
    noisy = renoise(zeros, 0.6, seed=1)
    assert noisy.video.std() == pytest.approx(0.6, rel=0.02)
    assert noisy.sound.std() == pytest.approx(0.6, rel=0.05)
    assert torch.equal(noisy.video, renoise(zeros, 0.6, seed=1).video)
    assert not torch.equal(noisy.video, renoise(zeros, 0.6, seed=2).video)
    with pytest.raises(ValueError, match="from 0 to 1"):
        renoise(zeros, 1.5, seed=1)


def test_a_clip_that_is_noisy_again_is_a_state_of_its_step(run):
    inputs, states = run
    state = restart_at(inputs, states[-1].latents, 2, seed=3)
    assert (state.step_index, state.video.last_sample, state.sound.x0_history) == (2, None, ())
    assert torch.equal(state.latents.video, renoise(states[-1].latents, float(inputs.schedule.sigmas[2]), seed=3).video)
    with pytest.raises(ValueError, match=f"expected 0 to {STEPS - 1}"):
        restart_at(inputs, states[-1].latents, STEPS, seed=3)


def last(steps):
    for state, _ in steps:
        found = state
    return found


def test_what_is_kept_ends_as_it_was_and_the_rest_is_new(pico, run):
    inputs, states = run
    known = states[-1].latents
    other = restart_at(inputs, known.map(torch.zeros_like), 0, seed=9)
    region = select_video(known)
    made = last(denoise_keeping(pico.transformer, inputs, other, known, region)).latents
    assert torch.equal(made.video, known.video)
    assert not torch.allclose(made.sound, known.sound, atol=0.1)


def test_with_nothing_to_keep_it_is_denoise(pico, run):
    inputs, states = run
    nothing = ~select_video(states[0].latents) & select_video(states[0].latents)
    made = last(denoise_keeping(pico.transformer, inputs, states[0], states[-1].latents, nothing))
    assert torch.equal(made.latents.video, states[-1].latents.video)
    assert torch.equal(made.sound.last_sample, states[-1].sound.last_sample)


def test_keeping_a_part_of_the_own_result_changes_little(pico, run):
    """The straight path to the result is not quite the run's own path, but it leads there."""
    inputs, states = run
    known = states[-1].latents
    made = last(denoise_keeping(pico.transformer, inputs, states[0], known, select_video(known))).latents
    other = last(
        denoise_keeping(
            pico.transformer, inputs, restart_at(inputs, known.map(torch.zeros_like), 0, seed=9), known, select_video(known)
        )
    ).latents
    near, far = ((x.sound - known.sound).norm() for x in (made, other))
    assert near < 0.5 * far


@pytest.mark.parametrize("step", [1, 3])
def test_forks_with_edits_leave_their_parent_alone(pico, run, step):
    inputs, states = run
    parent = states[step]
    tensors = [parent.video.sample, parent.video.last_sample, *parent.video.x0_history, parent.sound.sample]
    before = [tensor.clone() for tensor in tensors]
    region = select_video(parent.latents, columns=(0, 3))
    edited = paste(parent.latents, renoise(states[-1].latents, 0.5, seed=1), region)
    last(denoise(pico.transformer, *fork(pico, inputs, parent, latents=edited)))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))
    assert torch.equal(last(denoise(pico.transformer, inputs, parent)).latents.video, states[-1].latents.video)


def test_a_restarted_solver_keeps_an_edit_and_one_that_remembers_puts_the_old_sample_back(pico, run):
    inputs, states = run
    parent = states[2]
    edit = parent.latents.map(torch.zeros_like)
    edit.video[..., 3:] = 0.5
    edited = parent.latents.map(torch.add, edit)

    def survives(restart):
        forked = fork(pico, inputs, parent, latents=edited, restart=restart)
        _, record = next(denoise(pico.transformer, *forked))
        _, plain = next(denoise(pico.transformer, inputs, parent))
        corrected = edited.video if record.corrector_move is None else edited.video + record.corrector_move.video
        base = parent.latents.video if restart else parent.latents.video + plain.corrector_move.video
        return float(((corrected - base) * edit.video).sum() / edit.video.square().sum())

    assert survives(True) == pytest.approx(1, abs=1e-6)
    assert abs(survives(False)) < 0.3


def test_a_region_is_shown_in_words():
    assert repr(Region(torch.ones(1, 2, 3, dtype=torch.bool))) == "Region(6 of 6 video latents)"
