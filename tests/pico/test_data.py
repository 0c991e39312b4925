"""What training eats: scenes that depend on nothing but their number, token ids as `generate` makes them, the pool of clips."""

import json
from itertools import islice

import numpy as np
import pytest
import torch

from cosmos3_lab import Latents, prepare_request
from cosmos3_lab.pico import data, score
from cosmos3_lab.pico.data import (
    CAPTION_SHARES,
    CAPTIONS,
    FIRST_TEST_SEED,
    UNCONDITIONAL_SHARES,
    Pool,
    SceneBatches,
    TokenizedScenes,
    TokenTable,
    scene_stream,
    unconditional_ids,
)
from cosmos3_lab.pico.scenes import is_held_out, sample_scene
from cosmos3_lab.pico.score import KINDS, unseen_prompts
from cosmos3_lab.pico.train_avae import SOUND_SHARES

LENGTHS = (33, 17, 1)


def first_batches(dataset, count, workers=0):
    return list(islice(scene_stream(dataset, workers), count))


def as_lists(tables):
    """By length of clip, `[clip][caption][token]`."""
    return {
        n: [
            [ids[:end].tolist() for ids, end in zip(rows, ends, strict=True)] for rows, ends in zip(t.ids, t.lengths, strict=True)
        ]
        for n, t in tables.items()
    }


# ---------------------------------------------------------------------------------------------------------------- scenes


@pytest.mark.parametrize("options", [{}, {"sounds": SOUND_SHARES}])
def test_a_batch_depends_on_its_number_alone(options):
    alone = first_batches(SceneBatches(5, 3, **options), 6)
    assert first_batches(SceneBatches(5, 3, **options), 6, workers=2) == alone
    assert first_batches(SceneBatches(5, 3, first=2, **options), 4) == alone[2:]
    assert first_batches(SceneBatches(5, 3, first=3, **options), 3, workers=2) == alone[3:]
    assert len({repr(batch) for batch in alone}) == 6
    assert [len(batch) for batch in alone] == [3] * 6


def test_captions_depend_on_the_number_of_their_batch_alone(pico):
    dataset = TokenizedScenes(5, 2, pico.processor_dir, LENGTHS, 96)
    alone = [(scenes, as_lists(tables)) for scenes, tables in first_batches(dataset, 3)]
    assert [(scenes, as_lists(tables)) for scenes, tables in first_batches(dataset, 3, workers=2)] == alone
    assert alone[0][1] != alone[1][1]


@pytest.mark.parametrize(("options", "count"), [({}, 3000), ({"sounds": SOUND_SHARES}, 600)])
def test_nothing_that_is_tested_is_trained_on(options, count, monkeypatch):
    seeds, sample = [], data.sample_scene
    monkeypatch.setattr(data, "sample_scene", lambda seed, **kwargs: seeds.append(seed) or sample(seed, **kwargs))
    scenes = [scene for batch in first_batches(SceneBatches(0, 100, **options), count // 100) for scene in batch]
    assert len(scenes) == count
    assert not any(is_held_out(scene) for scene in scenes)
    assert 0 <= min(seeds) < max(seeds) < FIRST_TEST_SEED
    assert len(set(seeds)) == len(seeds) >= count
    for sound, share in options.get("sounds", {}).items():  # and all of them are heard as often as asked for
        assert np.mean([scene.sound == sound for scene in scenes]) == pytest.approx(share, abs=0.04)


def test_what_is_tested_starts_where_training_ends(monkeypatch):
    seeds, sample = [], score.sample_scene
    monkeypatch.setattr(score, "sample_scene", lambda seed, **kwargs: seeds.append(seed) or sample(seed, **kwargs))
    for options in KINDS.values():
        unseen_prompts(5, **options)
    assert min(seeds) == FIRST_TEST_SEED


# ------------------------------------------------------------------------------------------------------------- token ids


def test_captions_are_tokenized_as_for_generation(pico, monkeypatch):
    told, tell = [], data.tell
    monkeypatch.setattr(data, "tell", lambda *args: told.append(tell(*args)) or told[-1])
    scenes, tables = TokenizedScenes(0, 1, pico.processor_dir, LENGTHS, 96).batch(np.random.RandomState(3))
    ids = as_lists(tables)
    assert set(CAPTIONS) == {"native", "diffusers"}
    captions = iter(told)
    for length in LENGTHS:
        assert len(ids[length]) == len(scenes) == 1
        for preset, tokens in zip(CAPTIONS, ids[length][0], strict=True):
            request = prepare_request(pico, next(captions), num_frames=length, preset=preset)
            assert request.text_ids.tolist() == [tokens]
    assert len(set(told)) > 6  # words of its own for each


@pytest.mark.parametrize("length", LENGTHS)
def test_prompt_dropout_uses_exactly_the_token_ids_that_native_produces(pico, length):
    own, empty, diffusers = unconditional_ids(pico.processor_dir, length, 96)
    for ids, options in (
        (own, {"preset": "native", "negative_prompt": None}),
        (empty, {"preset": "native", "negative_prompt": ""}),
        (diffusers, {"preset": "diffusers", "negative_prompt": None}),
    ):
        request = prepare_request(pico, "a red circle rests", num_frames=length, **options)
        assert ids.tolist() == request.neg_text_ids[0].tolist()
    assert UNCONDITIONAL_SHARES[0] > 0.5  # what pico is sampled with is what it learns most


def test_the_negative_prompt_is_short(pico):
    fields = json.loads((pico.folder / "assets" / "negative_prompt.json").read_text(encoding="utf-8"))
    tokenizer = data.make_caption_processor(pico.processor_dir, "native", 33, 96).tokenizer
    assert 10 < len(tokenizer(json.dumps(fields), add_special_tokens=False)["input_ids"]) <= 60


# ------------------------------------------------------------------------------------------------------------------ pool


def make_pool(size):
    return Pool(size, ((2, 9, 2, 3), (52, 4)), LENGTHS, torch.device("cpu"), torch.float32)


def recognisable(numbers):
    """Latents that say which clip and which frame they are of."""
    numbers = torch.tensor(numbers, dtype=torch.float32)
    video = numbers.view(-1, 1, 1, 1, 1) + torch.arange(9).view(1, 1, 9, 1, 1) / 100
    sound = numbers.view(-1, 1, 1) + torch.arange(52).view(1, 52, 1) / 100
    return Latents(video.expand(-1, 2, -1, 2, 3), sound.expand(-1, -1, 4))


def token_length(number, caption):
    return 3 + number % 3 + caption % 2


def recognisable_ids(numbers):
    """Ids that say which clip, which caption and which length of clip they are of."""
    return {
        n: TokenTable.of(
            [[[number, j, k] + [7] * (token_length(number, j) - 3) for j in range(len(CAPTIONS))] for number in numbers]
        )
        for k, n in enumerate(LENGTHS)
    }


def fill(pool, numbers):
    pool.add(recognisable(numbers), recognisable_ids(numbers))


def drawn(pool, count, length, seed=0):
    return pool.draw(np.random.RandomState(seed), count, length)


@pytest.mark.parametrize(("length", "frames", "sounds"), [(33, 9, 52), (17, 5, 27), (1, 1, 2)])
def test_a_draw_has_captions_of_its_clips(length, frames, sounds):
    pool = make_pool(30)
    fill(pool, list(range(10, 30)))
    lengths, clips = set(), set()
    for seed in range(40):
        latents, ids = drawn(pool, 6, length, seed)
        assert latents.video.shape == (6, 2, frames, 2, 3)
        assert latents.sound.shape == (6, sounds, 4)
        expected = recognisable(ids[:, 0].tolist())  # shorter clips are the beginnings of longer ones
        assert torch.equal(latents.video, expected.video[:, :, :frames])
        assert torch.equal(latents.sound, expected.sound[:, :sounds])
        for number, caption, which, *rest in ids.tolist():
            assert LENGTHS[which] == length
            assert rest == [7] * (token_length(number, caption) - 3)
        lengths.add(ids.shape[1])
        clips |= set(ids[:, 0].tolist())
    assert lengths == {3, 4, 5, 6}
    assert clips == set(range(10, 30))


def test_the_oldest_are_replaced_first():
    pool = make_pool(5)
    for added, expected in (
        ([1, 2, 3], {1, 2, 3}),
        ([4, 5, 6], {2, 3, 4, 5, 6}),
        ([7], {3, 4, 5, 6, 7}),
        ([8, 9], {*range(5, 10)}),
    ):
        fill(pool, added)
        assert pool.filled == len(expected)
        seen = [drawn(pool, 4, 33, seed) for seed in range(60)]
        assert {number for _, ids in seen for number in ids[:, 0].tolist()} == expected
        for latents, ids in seen:
            assert torch.equal(latents.video, recognisable(ids[:, 0].tolist()).video)


def test_captions_are_drawn_in_their_shares():
    pool, rng = make_pool(60), np.random.RandomState(0)
    fill(pool, list(range(60)))
    ids = torch.cat([pool.draw(rng, 1, 33)[1][:, :2] for _ in range(6000)])
    for caption, share in enumerate(CAPTION_SHARES):
        assert (ids[:, 1] == caption).double().mean() == pytest.approx(share, abs=0.025)
    counts = torch.bincount(ids[:, 0], minlength=60)  # and every clip as often as any other
    assert counts.min() > 55
    assert counts.max() < 150


def test_the_same_random_numbers_draw_the_same():
    pool = make_pool(20)
    fill(pool, list(range(20)))
    assert torch.equal(drawn(pool, 8, 17)[1], drawn(pool, 8, 17)[1])
    assert not torch.equal(drawn(pool, 8, 17)[1], drawn(pool, 8, 17, seed=1)[1])


def test_scenes_are_plain_random_scenes():
    """No detour in the dataset: a batch is what `sample_scene` makes of the seeds that the batch's number draws."""
    rng = np.random.RandomState([7, 1])
    expected = [sample_scene(rng.randint(FIRST_TEST_SEED), held_out=False) for _ in range(4)]
    assert first_batches(SceneBatches(7, 4), 2)[1] == expected
