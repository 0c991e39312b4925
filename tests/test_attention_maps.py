"""Attention rows are exact, pooled or not; words hold every token; nothing of the size tokens² is ever made."""

import itertools

import pytest
import torch

from cosmos3_lab import Cosmos3Config, denoise, load_cosmos3, make_processor, prepare_denoise, prepare_request, token_table
from cosmos3_lab.attention_maps import attention_rows, layer_attention, record_attention
from cosmos3_lab.layers import attention
from cosmos3_lab.meter import Meter, peak_bytes
from cosmos3_lab.positions import TokenLayout
from cosmos3_lab.probe import patch, record
from cosmos3_lab.prompt_words import PromptWord, prompt_words, word_of_token
from cosmos3_lab.towers import Cosmos3Transformer, LayerKV, Rope
from cosmos3_lab.transformer import embed_gen_tokens, run_gen_layers
from cosmos3_lab.word_effects import attention_shares, rank_correlation, word_effects

SIZE = {"num_frames": 17, "height": 96, "width": 96, "fps": 16.0}
PROMPT = "a red circle bounces on a blue background; low thuds"
STEPS = 3


@pytest.fixture(scope="module")
def pico():
    with load_cosmos3("pico", device="cpu") as models:
        yield models


@pytest.fixture(scope="module")
def words(pico):
    return prompt_words(make_processor(pico, **SIZE), PROMPT)


@pytest.fixture(scope="module")
def prepared(pico):
    return prepare_denoise(pico, prepare_request(pico, PROMPT, with_sound=True, num_inference_steps=STEPS, seed=3, **SIZE))


def softmax_rows(q, k):
    """`[heads, s_q, s_k]`, written out, in float64."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return (torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5).softmax(-1)


# ----------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("keys_at_once", [1, 3, 7, 100])
@pytest.mark.parametrize("groups", [None, [1] * 4 + [5, 5, 5] + [1, 1], [21], [2, 7, 7, 1, 4], [1, 20]])
def test_rows_are_the_softmax_summed_over_groups(keys_at_once, groups):
    torch.manual_seed(0)
    q, k = torch.randn(6, 4, 8) * 3, torch.randn(21, 2, 8) * 3  # 4 heads read 2: heads 0 and 1 the first
    rows = attention_rows(q, k, groups=groups, keys_at_once=keys_at_once)
    want = torch.stack([part.sum(-1) for part in softmax_rows(q, k).split(groups or [1] * 21, dim=-1)], dim=-1)
    assert (rows - want).abs().max() < 3e-6
    assert torch.allclose(rows.sum(-1), torch.ones(4, 6), atol=1e-6)


@pytest.mark.cuda
def test_rows_on_a_gpu_are_as_exact():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(300, 8, 128, generator=generator), torch.randn(700, 2, 128, generator=generator)
    q, k = q.bfloat16(), k.bfloat16()
    rows = attention_rows(q.cuda(), k.cuda(), groups=[1] * 100 + [200] * 3, keys_at_once=150).cpu()
    want = softmax_rows(q, k)
    assert (rows[..., :100] - want[..., :100]).abs().max() < 1e-4
    assert (rows[..., 100:] - want[..., 100:].unflatten(-1, (3, 200)).sum(-1)).abs().max() < 1e-4


def test_large_scores_do_not_overflow():
    q, k = torch.full((2, 1, 4), 20.0), torch.full((9, 1, 4), 20.0)  # scores of 800, whose exponential is infinite
    k[3] *= -1
    rows = attention_rows(q, k, groups=[3, 1, 5], keys_at_once=2)
    assert torch.allclose(rows, torch.tensor([3 / 8, 0.0, 5 / 8]).expand(1, 2, 3), atol=1e-4)


def test_rows_times_values_are_what_the_layer_computes():
    torch.manual_seed(0)
    q, k, v = torch.randn(5, 6, 8), torch.randn(9, 3, 8), torch.randn(9, 3, 8)
    mixed = torch.einsum("hqk,khd->qhd", attention_rows(q, k), v.repeat_interleave(2, dim=1))
    assert torch.allclose(mixed.flatten(1), attention(q, k, v, causal=False), atol=1e-6)


@pytest.mark.parametrize("groups", [[1, 2], [3, 0, 2], [6], []])
def test_groups_that_do_not_add_up_are_refused(groups):
    with pytest.raises(ValueError, match="expected positive numbers with the sum 5"):
        attention_rows(torch.ones(2, 1, 4), torch.ones(5, 1, 4), groups=groups)


# ----------------------------------------------------------------------------------------------------------------- layer


def explicit(transformer, state, cond, number, timestep=700):
    """`(x, rows)` of a layer: what it gets, and its whole softmax from what its modules give."""
    x = run_gen_layers(transformer, embed_gen_tokens(transformer, state.latents, timestep), cond, stop=number)
    seen, layer, text = {}, transformer.gen.layers[number], cond.cached_kv[number]
    norms = {"q": layer.self_attn.norm_added_q, "k": layer.self_attn.norm_added_k}
    taken = [norm.register_forward_hook(lambda m, args, out, name=name: seen.update({name: out})) for name, norm in norms.items()]
    layer(x, text, cond.freqs_gen)
    for hook in taken:
        hook.remove()

    def turned(y):  # written out: the pair (y[i], y[i + d / 2]) turns by its angle
        half = y.shape[-1] // 2
        turn = torch.complex(cond.freqs_gen.cos, cond.freqs_gen.sin)[:, None]
        z = torch.complex(y[..., :half], y[..., half:]) * turn
        return torch.cat([z.real, z.imag], dim=-1)

    return x, softmax_rows(turned(seen["q"]), torch.cat([text.k, turned(seen["k"])]))


@pytest.mark.parametrize(("number", "heads"), [(0, None), (4, None), (4, [5, 2])])
def test_a_layer_is_exact_against_the_explicit_softmax(pico, prepared, words, number, heads):
    inputs, state = prepared
    cond, layout = inputs.cond, inputs.cond.layout
    x, rows = explicit(pico.transformer, state, cond, number)
    rows = rows if heads is None else rows[heads]
    how = {"heads": heads, "queries_at_once": 37, "keys_at_once": 50}
    layer, text = pico.transformer.gen.layers[number], cond.cached_kv[number]
    seen = layer_attention(layer, x, text, cond.freqs_gen, layout, words, per_head=True, **how)
    mean = layer_attention(layer, x, text, cond.freqs_gen, layout, words)
    t, s, v = layout.video_grid[0], layout.s_text, layout.n_video
    by_word = torch.stack([rows[..., word.start : word.stop].sum(-1) for word in words], dim=-1)
    assert (seen.to_words - by_word).abs().max() < 1e-5
    if heads is None:
        assert (mean.to_words - by_word.mean(0)).abs().max() < 1e-5
    video, sound = rows[:, :, s : s + v].unflatten(-1, (t, -1)).sum(-1), rows[:, :, s + v :]
    assert (seen.sound_to_video() - video[:, v:]).abs().max() < 1e-5
    assert (seen.video_to_sound() - sound[:, :v].unflatten(1, (t, -1)).mean(2)).abs().max() < 1e-5
    given = torch.cat([seen.over_frames(), seen.over_sound()], dim=1).sum(-1) + seen.moments.sum(-1)
    assert torch.allclose(given, torch.ones_like(given), atol=1e-5)
    assert torch.equal(seen.on_picture(4).flatten(1), seen.to_words[:, :v, 4])


def test_heads_that_share_keys_look_at_the_same_keys():
    """Query head j reads key head j // 2: equal queries give equal rows within a pair, and others elsewhere."""
    torch.manual_seed(0)
    q, k = torch.randn(3, 1, 8).expand(-1, 4, -1), torch.randn(5, 2, 8)
    rows = attention_rows(q, k)
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[2], rows[3])
    assert not torch.allclose(rows[1], rows[2], atol=1e-3)


# ------------------------------------------------------------------------------------------------------------------- run


def test_looking_leaves_results_bit_equal_and_other_recordings_alone(pico, prepared, words):
    inputs, state = prepared
    names = ["gen.layers.*.self_attn.add_q_proj"]

    def run():
        with record(pico.transformer, names, inputs=inputs) as seen:
            latents = list(denoise(pico.transformer, inputs, state))[-1][0].latents
        return latents, [a.value for a in seen.activations]

    alone, values = run()
    with record_attention(pico.transformer, inputs, words=words, layers=[2, 4], steps=[1]) as looked:
        watched, same_values = run()
    assert torch.equal(alone.video, watched.video)
    assert torch.equal(alone.sound, watched.sound)
    assert values == same_values  # the projections of the lens itself are not recorded
    assert [(a.name, a.at.step, a.at.branch) for a in looked.activations] == [(f"gen.layers.{i}", 1, "cond") for i in (2, 4)]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pico.transformer.modules())


def test_what_is_recorded_is_the_pass_of_the_branch(pico, prepared, words):
    inputs, state = prepared
    timestep = int(inputs.schedule.timesteps[0])
    with record_attention(pico.transformer, inputs, words=words, layers=[4], steps=[0], per_head=True) as seen:
        list(denoise(pico.transformer, inputs, state, stop=1))
    _, rows = explicit(pico.transformer, state, inputs.cond, 4, timestep)
    (value,) = [a.value for a in seen.activations]
    assert (value.to_words.sum(-1) - rows[..., : inputs.cond.layout.s_text].sum(-1)).abs().max() < 1e-5
    assert seen.nbytes == value.to_words.nbytes + value.moments.nbytes


def test_hooks_come_off_after_an_exception(pico, prepared, words):
    inputs, state = prepared

    def fail(x):
        raise KeyboardInterrupt

    looking = record_attention(pico.transformer, inputs, words=words)
    with pytest.raises(KeyboardInterrupt), looking, patch(pico.transformer, "gen.layers.3", fail):
        list(denoise(pico.transformer, inputs, state))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pico.transformer.modules())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"layers": [8]}, "got layers"),
        ({"heads": [8]}, "got heads"),
        ({"heads": [1, 1]}, "got heads"),
        ({"heads": []}, "got heads"),
        ({"branch": "uncond"}, "expected those of the prompt's"),
        ({"words": []}, "expected those of the prompt's"),
    ],
)
def test_what_does_not_fit_is_refused(pico, prepared, words, how, message):
    with pytest.raises(ValueError, match=message), record_attention(pico.transformer, prepared[0], **{"words": words} | how):
        pass


# ---------------------------------------------------------------------------------------------------------------- memory


def test_a_layer_at_full_nano_size_stays_within_its_memory():
    """720x1280x189 with sound: 44,357 media tokens, whose rows together would be 270 GB. Counted tensor by tensor on meta."""
    s_text = 3400
    config, layout = Cosmos3Config(num_hidden_layers=1, vocab_size=8), TokenLayout(s_text, (48, 45, 80), 2, 197)
    assert layout.s_gen == 44_357
    with torch.device("meta"):
        layer = Cosmos3Transformer(config).gen.layers[0].bfloat16()
        x = torch.empty(layout.s_gen, config.hidden_size, dtype=torch.bfloat16)
        text = LayerKV(*(torch.empty(s_text, 8, 128, dtype=torch.bfloat16) for _ in range(2)))
        rope = Rope(*(torch.empty(layout.s_gen, 64, dtype=torch.bfloat16) for _ in range(2)))
    words = tuple(PromptWord(str(i), i, i + 1, "prompt") for i in range(s_text))
    meter = Meter()
    with torch.no_grad(), meter.watching():
        seen = layer_attention(layer, x, text, rope, layout, words)
    assert peak_bytes(meter.events) < 2.5 * 2**30
    assert seen.to_words.shape == (1, 44_357, s_text)


# ----------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("prompt", [PROMPT, "Ein rotes Fahrrad, 12.5 km/h — \u732b\u304c \U0001f600!\n\nnew line", " x"])
def test_words_hold_every_token_once_and_all_the_text(pico, prompt):
    processor = make_processor(pico, **SIZE)
    found, table = prompt_words(processor, prompt), token_table(processor, prompt)
    assert word_of_token(found, len(table)).tolist() == sorted(word_of_token(found, len(table)).tolist())
    for word in found:
        rows = table[word.start : word.stop]
        assert len({row.role for row in rows}) == 1
        joined = "".join(row.string for row in rows)
        assert word.text in (joined.strip(), repr(joined)[1:-1])


def test_words_are_what_a_reader_calls_words(words):
    assert [word.text for word in words if word.role == "prompt"] == [*PROMPT.replace(";", " ;").split()]
    texts = [word.text for word in words]
    assert "16" in texts  # of two tokens
    assert texts.count("<|im_start|>") == 2
    assert "assistant" in texts
    assert words[-1].role == "boundary"


def test_words_of_another_prompt_are_refused(words):
    with pytest.raises(ValueError, match="make them with prompt_words"):
        word_of_token(words, 7)
    with pytest.raises(ValueError, match="make them with prompt_words"):
        word_of_token(words[1:], words[-1].stop)


# --------------------------------------------------------------------------------------------------------------- effects


def test_the_effect_of_a_word_is_the_change_of_the_velocity_without_it(pico, prepared, words):
    inputs, state = prepared
    effects = word_effects(pico, inputs, [state], words)
    assert [word.text for word in effects.words] == [word.text for word in words if word.role == "prompt"]
    kept = [i for i in range(inputs.cond.layout.s_text) if not effects.words[1].start <= i < effects.words[1].stop]
    ids = inputs.request.text_ids[:, kept]
    from cosmos3_lab import encode_condition, predict_velocity

    r, t = inputs.request, int(inputs.schedule.timesteps[0])
    clip = {"sound_len": r.sound_frames, "sound_fps": r.sound_latent_fps}
    other = encode_condition(pico.transformer, ids, torch.ones_like(ids), r.video_shape, r.fps, **clip)
    a, b = (predict_velocity(pico.transformer, state.latents, t, cond) for cond in (inputs.cond, other))
    for name in ("video", "sound"):
        want = (getattr(a, name) - getattr(b, name)).norm() / getattr(a, name).norm()
        assert torch.allclose(getattr(effects, name)[1, 0], want, rtol=1e-4)
    assert torch.allclose(effects.on_picture[1, 0], (a.video - b.video)[0].square().mean(0).sqrt(), atol=1e-5)
    assert effects.video[1, 0] > 3 * effects.video[0, 0]  # "red" does more than "a"


def test_shares_are_means_over_what_was_seen(pico, prepared, words):
    inputs, state = prepared
    with record_attention(pico.transformer, inputs, words=words, layers=[1, 6]) as seen:
        list(denoise(pico.transformer, inputs, state, stop=2))
    values = [a.value for a in seen.activations]
    shares = attention_shares(values, words[3:6])
    want = torch.stack([v.to_words[0, : v.layout.n_video, 3:6] for v in values]).mean((0, 1))
    assert torch.allclose(shares, want)
    assert attention_shares(values, words, of="sound").sum() < 1
    with pytest.raises(ValueError, match="got 0 recordings"):
        attention_shares([], words)


def test_ranks_see_order_and_nothing_else():
    a = [0.1, 5.0, 2.0, 3.0]
    assert rank_correlation(a, [x**3 for x in a]) == pytest.approx(1)
    assert rank_correlation(a, [-x for x in a]) == pytest.approx(-1)
    every = [rank_correlation(a, list(order)) for order in itertools.permutations(a)]
    assert sum(every) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="at least 3"):
        rank_correlation([1.0, 2.0], [1.0, 2.0])


def test_a_silent_video_has_no_sound_to_look_at(pico, words):
    inputs, state = prepare_denoise(pico, prepare_request(pico, PROMPT, num_inference_steps=2, **SIZE))
    with record_attention(pico.transformer, inputs, words=words, layers=[4], steps=[0]) as seen:
        list(denoise(pico.transformer, inputs, state, stop=1))
    value = seen.activations[0].value
    assert value.over_sound().shape[1] == value.sound_to_video().shape[1] == 0
    assert word_effects(pico, inputs, [state], words).sound is None
