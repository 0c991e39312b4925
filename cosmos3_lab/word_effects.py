"""What changes when a word is taken away, beside how much attention it gets: the first is an effect, the second is not.

Read next: `lens_figures.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos3_lab.attention_maps import LayerAttention
from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import DenoiseInputs, DenoiseState
from cosmos3_lab.latents import Latents
from cosmos3_lab.prompt_words import PromptWord, word_of_token
from cosmos3_lab.transformer import Cosmos3Condition, encode_conditions, predict_velocity


@dataclass(frozen=True, eq=False)
class WordEffects:
    """How far the velocity with the prompt moves when a word's tokens are left out. All float32, on the CPU.

    Attributes:
        words: those left out, one at a time.
        video: `[words, states]`, rms of the change over rms of the velocity, so that 0.1 is a tenth of it.
        sound: the same of the sound, or None in a silent video.
        on_picture: `[words, states, t, h, w]`, rms of the change over the channels, in the velocity's own unit.
    """

    words: tuple[PromptWord, ...]
    video: Float[Tensor, "words states"]
    sound: Float[Tensor, "words states"] | None
    on_picture: Float[Tensor, "words states t h w"]

    def __repr__(self) -> str:
        sound = "" if self.sound is None else " and sound"
        return f"WordEffects({len(self.words)} words at {self.video.shape[1]} states, video{sound})"


@torch.no_grad()
def word_effects(
    models: Cosmos3Models, inputs: DenoiseInputs, states: Sequence[DenoiseState], words: Sequence[PromptWord]
) -> WordEffects:
    """Take each word of the prompt away, encode what is left, and measure what that does to the velocity.

    Costs one pass of UND for each word, and one of GEN, which is half a step, for each word and state.

    Args:
        models: from `load_cosmos3`.
        inputs: of the run, from `prepare_denoise`.
        states: of the run, before the steps at which to measure.
        words: from `prompt_words`, all of them; those whose role is "prompt" are taken away.

    Raises:
        ValueError: no states, words of another prompt, or a prompt of one word.
    """
    request, kept = inputs.request, [word for word in words if word.role == "prompt"]
    ids, mask = request.text_ids.to(models.device), request.text_mask.to(models.device)
    word_of_token(words, inputs.cond.layout.s_text)
    if not states or len(kept) < 2:
        raise ValueError(f"got {len(states)} states and {len(kept)} words of the prompt, expected at least 1 and 2")
    without = [[t for t in range(ids.shape[1]) if not word.start <= t < word.stop] for word in kept]
    conditions = encode_conditions(
        models.transformer,
        [(ids[:, rest], mask[:, rest]) for rest in without],
        request.video_shape,
        request.fps,
        sound_len=request.sound_frames,
        sound_fps=request.sound_latent_fps,
        layers=models.und_layers(),
    )
    models.place("gen")

    def velocity(state: DenoiseState, cond: Cosmos3Condition) -> Latents:
        timestep = int(inputs.schedule.timesteps[state.step_index])
        return predict_velocity(models.transformer, state.latents, timestep, cond).to(torch.float32)

    rows: dict[str, list[list[Tensor]]] = {name: [[] for _ in kept] for name in ("video", "sound", "picture")}
    for state in states:
        whole = velocity(state, inputs.cond)
        for place, cond in enumerate(conditions):
            change = velocity(state, cond).map(torch.sub, whole)
            rows["video"][place].append(_rms(change.video) / _rms(whole.video))
            rows["picture"][place].append(change.video[0].square().mean(0).sqrt())
            if whole.sound is not None:
                rows["sound"][place].append(_rms(change.sound) / _rms(whole.sound))
    found = {name: torch.stack([torch.stack(row) for row in values]).cpu() for name, values in rows.items() if values[0]}
    return WordEffects(tuple(kept), found["video"], found.get("sound"), found["picture"])


def attention_shares(
    seen: Sequence[LayerAttention], words: Sequence[PromptWord], *, of: Literal["video", "sound"] = "video"
) -> Float[Tensor, " words"]:
    """What the tokens of the video, or of the sound, give to each word: the mean over tokens, heads, layers and steps.

    Args:
        seen: from `record_attention`, as many as you like.
        words: some of those that were recorded.
        of: whose tokens look.

    Raises:
        ValueError: nothing was recorded, or not these words.
    """
    if not seen or not all(set(words) <= set(one.words) for one in seen):
        raise ValueError(f"got {len(seen)} recordings, expected at least one, all with the words asked for")
    looks = [one.over_frames() if of == "video" else one.over_sound() for one in seen]
    shares = torch.stack([look.mean((0, 1)) for look in looks]).mean(0)
    return shares[[seen[0].words.index(word) for word in words]]


def rank_correlation(a: Sequence[float] | Float[Tensor, " n"], b: Sequence[float] | Float[Tensor, " n"]) -> float:
    """Spearman's: 1 where both have the same order, -1 where the opposite, around 0 where one says nothing about the other.

    Args:
        a, b: `[n]` numbers, at least 3, of the same things.

    Raises:
        ValueError: different or too small lengths.
    """
    ranks = [torch.as_tensor(x).double().argsort().argsort().double() for x in (a, b)]
    if len(ranks[0]) != len(ranks[1]) or len(ranks[0]) < 3:
        raise ValueError(f"got {len(ranks[0])} and {len(ranks[1])} numbers, expected as many of each, at least 3")
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
