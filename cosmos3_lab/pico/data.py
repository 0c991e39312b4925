"""What training eats: scenes without end, and for the transformer a pool of clips that are already encoded.

    scene_batches   lists of scenes, made by worker processes; the same seed gives the same scenes
    TokenizedScenes the same with captions as token ids
    Pool            latents and captions on the training device; batches in which all captions have one length

Read next: `train_vae.py`, `train_avae.py`, `train_transformer.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int16, Int64
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cosmos3_lab.latents import Latents
from cosmos3_lab.pico.grammar import tell
from cosmos3_lab.pico.scenes import Scene, sample_scene
from cosmos3_lab.pico.world import FPS
from cosmos3_lab.prepare import preset_processor
from cosmos3_lab.presets import get_preset
from cosmos3_lab.prompt import Cosmos3Processor
from cosmos3_lab.sizes import sound_latent_frames

FIRST_TEST_SEED = 3_000_000_000  # scenes from here on are never trained on
CAPTIONS = ("native", "native", "native", "diffusers")  # presets in whose form a scene is told, each in words of its own
CAPTION_SHARES = (0.3, 0.3, 0.3, 0.1)
UNCONDITIONAL_SHARES = (0.7, 0.2, 0.1)  # of what `unconditional_ids` returns
LONGEST = 192  # tokens of a prompt
TRIES = 64  # captions looked at for each that is used, to find some of one length


class SceneBatches(IterableDataset):
    """Batches of random scenes, without end and without the combinations that are held out.

    Args:
        seed: of all batches.
        size: scenes in a batch.
        first: number of the first batch, to go on where another run stopped.
        sounds: if given, batches are balanced: how often each sound is wanted.
    """

    def __init__(self, seed: int, size: int, *, first: int = 0, sounds: dict[str, float] | None = None) -> None:
        super().__init__()
        self.seed, self.size, self.first, self.sounds = seed, size, first, sounds

    def __iter__(self) -> Iterator[list[Scene]]:
        worker = get_worker_info()
        index, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:  # batch k depends on k alone, however many workers there are
            yield self.batch(np.random.RandomState([self.seed, self.first + index]))
            index += stride

    def batch(self, rng: np.random.RandomState) -> list[Scene]:
        """One batch."""
        scenes: list[Scene] = []
        for _ in range(self.size):
            wanted = None if self.sounds is None else str(rng.choice(list(self.sounds), p=list(self.sounds.values())))
            scene = sample_scene(rng.randint(FIRST_TEST_SEED), held_out=False)
            while wanted not in (None, scene.sound):
                scene = sample_scene(rng.randint(FIRST_TEST_SEED), held_out=False)
            scenes.append(scene)
        return scenes


class TokenizedScenes(SceneBatches):
    """Batches of scenes, each with the token ids of `CAPTIONS` for every length of clip.

    Args:
        seed, size, first: as in `SceneBatches`.
        tokenizer_dir: the checkpoint's `text_tokenizer`.
        lengths: of clips, in frames; the length is a part of the prompt.
        side: height and width in pixels, likewise.
    """

    def __init__(self, seed: int, size: int, tokenizer_dir: Path, lengths: tuple[int, ...], side: int, *, first: int = 0) -> None:
        super().__init__(seed, size, first=first)
        self.processors = {n: [make_caption_processor(tokenizer_dir, p, n, side) for p in CAPTIONS] for n in lengths}

    def batch(self, rng: np.random.RandomState) -> tuple[list[Scene], dict[int, "TokenTable"]]:
        """Scenes, and their captions by length of clip."""
        scenes, tables = super().batch(rng), {}
        for length, processors in self.processors.items():
            captions = [[p.tokenize(tell(scene, rng.randint(2**31))) for p in processors] for scene in scenes]
            tables[length] = TokenTable.of([[told.text_ids[0].tolist() for told in row] for row in captions])
        return scenes, tables


def make_caption_processor(tokenizer_dir: Path, preset: str, frames: int, side: int) -> Cosmos3Processor:
    """The processor that `generate` would use for such a clip, so that training and sampling see the same token ids.

    Args:
        tokenizer_dir: the checkpoint's `text_tokenizer`.
        preset: "native" or "diffusers".
        frames, side: of the clip.
    """
    size = {"num_frames": frames, "height": side, "width": side, "fps": FPS}
    return preset_processor(tokenizer_dir, get_preset(preset), **size)


def unconditional_ids(tokenizer_dir: Path, frames: int, side: int) -> list[Int64[Tensor, " s_text"]]:
    """What the dropped prompt is replaced with: the token ids that guidance uses for its second branch.

    Args:
        tokenizer_dir: the checkpoint's `text_tokenizer`.
        frames, side: of the clip.

    Returns:
        Of `native` with `negative_prompt=None` (the checkpoint's own), of `native` with "", of `diffusers` with its default.
    """
    native = make_caption_processor(tokenizer_dir, "native", frames, side)
    diffusers = make_caption_processor(tokenizer_dir, "diffusers", frames, side)
    tokenized = (native.tokenize_negative(), native.tokenize_negative(""), diffusers.tokenize_negative())
    return [t.text_ids[0] for t in tokenized]


def scene_stream(dataset: SceneBatches, workers: int) -> Iterator:
    """Iterate over the batches of `dataset`, made ahead in `workers` processes (0: in this one)."""
    ahead = {"prefetch_factor": 8} if workers else {}
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=_as_it_is, **ahead))


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401  (DataLoader's own collate_fn would walk through every token)
    return batch


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Token ids of some clips' captions, for one length of clip.

    Attributes:
        ids: `[clips, captions, LONGEST]`, zeros behind the end.
        lengths: `[clips, captions]`.
    """

    ids: Int16[np.ndarray, "clips captions longest"]
    lengths: Int16[np.ndarray, "clips captions"]

    @classmethod
    def of(cls, ids: Sequence[Sequence[Sequence[int]]]) -> "TokenTable":
        """From lists `[clip][caption][token]`."""
        shape = (len(ids), len(CAPTIONS))
        table = cls(np.zeros((*shape, LONGEST), np.int16), np.zeros(shape, np.int16))
        for i, captions in enumerate(ids):
            for j, tokens in enumerate(captions):
                table.lengths[i, j] = len(tokens)
                table.ids[i, j, : len(tokens)] = tokens
        return table


class Pool:
    """Encoded clips on the training device, the oldest replaced first.

    Args:
        size: clips.
        shapes: of one video latent `(C, t, h, w)` and one sound latent `(n_sound, d_sound)`.
        lengths: of clips, in frames; longest first.
        device, dtype: of the latents.
    """

    def __init__(
        self,
        size: int,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        lengths: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.size, self.filled, self.position = size, 0, 0
        self.video = torch.empty(size, *shapes[0], device=device, dtype=dtype)
        self.sound = torch.empty(size, *shapes[1], device=device, dtype=dtype)
        self.tables = {n: TokenTable.of([[] for _ in range(size)]) for n in lengths}

    def add(self, clean: Latents, captions: Mapping[int, TokenTable]) -> None:
        """Put clips in, in place of the oldest where the pool is full.

        Args:
            clean: latents `[n, C, t, h, w]` and `[n, n_sound, d_sound]`.
            captions: of `TokenizedScenes`, by length of clip.
        """
        places = (self.position + np.arange(len(clean.video))) % self.size
        where = torch.from_numpy(places).to(self.video.device)
        self.video[where], self.sound[where] = clean.video.to(self.video), clean.sound.to(self.sound)
        for length, table in self.tables.items():
            table.ids[places], table.lengths[places] = captions[length].ids, captions[length].lengths
        self.filled = min(self.size, self.filled + len(places))
        self.position = int(places[-1] + 1) % self.size

    def draw(self, rng: np.random.RandomState, count: int, length: int) -> tuple[Latents, Int64[Tensor, "b s_text"]]:
        """A batch of clips with captions of one token length; each clip is as likely as any other, its captions by their shares.

        Args:
            rng: who chooses.
            count: clips.
            length: in frames, one of the pool's.

        Returns:
            Clean latents of the first `length` frames (the VAE is causal, so that they are those of the shorter clip), and
            token ids.
        """
        table, tries = self.tables[length], TRIES * count
        clips = rng.randint(self.filled, size=tries)
        captions = rng.choice(len(CAPTIONS), size=tries, p=CAPTION_SHARES)
        lengths = table.lengths[clips, captions]
        chosen = np.resize(np.flatnonzero(lengths == lengths[0]), count)  # a rare length repeats some clips
        clips, captions = clips[chosen], captions[chosen]
        ids = torch.from_numpy(table.ids[clips, captions, : lengths[0]].astype(np.int64))
        where = _to(torch.from_numpy(clips), self.video.device)
        t = (length - 1) // 4 + 1
        n_sound = sound_latent_frames(length, FPS)  # 25 a second, as everywhere
        return Latents(self.video[where, :, :t], self.sound[where, :n_sound]), _to(ids, self.video.device)


def _to(x: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for what it is doing."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x
