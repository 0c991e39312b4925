"""How well pico follows captions that it never saw, in figures, beside what its VAE and AVAE allow and beside ground truth.

    python -m cosmos3_lab.pico.score [--checkpoint DIR] [--count 384] [--device auto] [--out FILE.json]

Every clip is read with rules (`judge.py`), so that a figure says something about what is seen and heard and nothing about how
the model came to it.

Read next: nothing; this is the end of the story.
"""

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import count as count_from
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from cosmos3_lab.checkpoint import Cosmos3Models, load_cosmos3
from cosmos3_lab.files import replacing
from cosmos3_lab.pico.clips import NumberedClip, generate_clips, reconstructed_clips, true_clips
from cosmos3_lab.pico.data import FIRST_TEST_SEED
from cosmos3_lab.pico.grammar import tell, template
from cosmos3_lab.pico.judge import TOLERANCE, Reading, Verdict, judge, read_clip
from cosmos3_lab.pico.scenes import Scene, sample_scene

ATTRIBUTES = ("count", "background", "colour", "shape", "size", "motion", "sound")
# What is asked for, in four kinds that differ in how hard they are.
KINDS: dict[str, dict[str, Any]] = {
    "one thing": {"things": 1},
    "two things": {"things": 2},
    "collisions": {"motion": "collide"},
    "one thing, combinations held out": {"things": 1, "held_out": True},
}
SETTINGS = ("num_inference_steps", "guidance_scale", "flow_shift", "preset")


@dataclass(frozen=True)
class Prompt:
    """A caption, and the scene that it tells."""

    scene: Scene
    caption: str


@dataclass(frozen=True)
class Figure:
    """A mean, and over how many it was taken; `value` is None over none."""

    value: float | None
    count: int


@dataclass(frozen=True)
class Scores:
    """What a number of clips have in common with what was asked for. Every figure knows over how many clips it was taken.

    Attributes:
        followed: share of clips with everything right.
        right: attribute to share of clips in which it is right (of both things, where there are two).
        motions: motion asked for to share of things that move so.
        sounds: sound asked for to share of clips that sound so.
        sync: mean F1 of events seen and onsets heard, over clips with event sounds.
        shuffled_sync: the same with the soundtrack of another of those clips, which is what chance gives.
        outline: mean IoU of the outlines, over clips in which something was seen.
        bound: of clips with two things, share in which both colours are there with their shapes.
        both_motions: of clips with two things, share in which both move as they should.
        click: of collisions with a click, share in which it is heard within 0.11 s of the contact that is seen.
    """

    followed: Figure
    right: Mapping[str, Figure]
    motions: Mapping[str, Figure]
    sounds: Mapping[str, Figure]
    sync: Figure
    shuffled_sync: Figure
    outline: Figure
    bound: Figure
    both_motions: Figure
    click: Figure

    @property
    def worst_motion(self) -> str:
        """The motion that fails most."""
        return min(self.motions, key=lambda name: self.motions[name].value)

    @property
    def worst_sound(self) -> str:
        """The sound that fails most."""
        return min(self.sounds, key=lambda name: self.sounds[name].value)


def unseen_prompts(
    count: int, *, things: int | None = None, motion: str | None = None, held_out: bool = False
) -> tuple[Prompt, ...]:
    """Captions of scenes that training never sees; the same arguments give the same prompts.

    Args:
        count: how many.
        things, motion: see `sample_scene`; with things=2, collisions are left to motion="collide".
        held_out: True for combinations that training leaves out, False for none of them.
    """

    def prompts() -> Iterable[Prompt]:
        for seed in count_from(FIRST_TEST_SEED):
            scene = sample_scene(seed, things=things, motion=motion, held_out=held_out)
            stray_collision = things == 2 and motion is None and scene.things[0].motion == "collide"
            if not stray_collision:
                yield Prompt(scene, tell(scene, seed))

    return tuple(islice(prompts(), count))


def judge_pool() -> ProcessPoolExecutor:
    """A process for each CPU core, for `read_clips`. Spawned: a fork of a process that uses CUDA would not work."""
    return ProcessPoolExecutor(os.cpu_count(), get_context("spawn"))


def read_clips(clips: Iterable[NumberedClip], pool: Executor) -> list[Reading]:
    """What each clip shows, in the order of the numbers; clips are read while later ones are still made.

    Args:
        clips: at the frame rate and sample rate of pico's world.
        pool: such as `judge_pool()`.
    """
    waiting = {number: pool.submit(read_clip, pixels, waveform) for number, pixels, waveform in clips}
    return [waiting[number].result() for number in sorted(waiting)]


def aggregate(scenes: Sequence[Scene], readings: Sequence[Reading]) -> Scores:
    """Figures over many clips.

    Args:
        scenes: asked for.
        readings: of the clips, one for each scene.
    """
    verdicts = [judge(scene, reading) for scene, reading in zip(scenes, readings, strict=True)]
    pairs = [v for scene, v in zip(scenes, verdicts, strict=True) if len(scene.things) == 2]
    motions = [
        (thing.motion, v.right[name])
        for scene, v in zip(scenes, verdicts, strict=True)
        for thing, name in zip(scene.things, [n for n in v.right if n.startswith("motion")], strict=True)
    ]
    return Scores(
        followed=_mean(v.followed for v in verdicts),
        right={attribute: _mean(_is_right(v, attribute) for v in verdicts) for attribute in ATTRIBUTES},
        motions=_by_class(motions),
        sounds=_by_class((scene.sound, v.right["sound"]) for scene, v in zip(scenes, verdicts, strict=True)),
        sync=_mean(v.sync for v in verdicts),
        shuffled_sync=_mean(_shuffled_syncs(scenes, readings, verdicts)),
        outline=_mean(v.outline for v in verdicts),
        bound=_mean(_is_right(v, "colour") and _is_right(v, "shape") for v in pairs),
        both_motions=_mean(_is_right(v, "motion") for v in pairs),
        click=_mean(_clicks_on_contact(scene, reading) for scene, reading in zip(scenes, readings, strict=True)),
    )


def _mean(values: Iterable[float | bool | None]) -> Figure:
    """Over the values that are not None."""
    found = [float(v) for v in values if v is not None]
    return Figure(sum(found) / len(found) if found else None, len(found))


def _by_class(answers: Iterable[tuple[str, bool]]) -> dict[str, Figure]:
    found: defaultdict[str, list[bool]] = defaultdict(list)
    for name, right in answers:
        found[name].append(right)
    return {name: _mean(found[name]) for name in sorted(found)}


def _is_right(verdict: Verdict, attribute: str) -> bool | None:
    """Of every thing to which the attribute applies; None where it applies to none."""
    answers = [right for name, right in verdict.right.items() if name.split()[0] == attribute]
    return all(answers) if answers else None


def _shuffled_syncs(scenes: Sequence[Scene], readings: Sequence[Reading], verdicts: Sequence[Verdict]) -> list[float | None]:
    with_events = [i for i, v in enumerate(verdicts) if v.sync is not None]
    others = with_events[1:] + with_events[:1]
    return [
        judge(scenes[i], replace(readings[i], onsets=readings[other].onsets)).sync
        for i, other in zip(with_events, others, strict=True)
        if i != other
    ]


def _clicks_on_contact(scene: Scene, reading: Reading) -> bool | None:
    """None for scenes without a click."""
    if scene.sound != "click":
        return None
    contacts = [event for thing in reading.things if thing.motion == "collide" for event in thing.events]
    together = any(abs(contact - onset) <= TOLERANCE for contact in contacts for onset in reading.onsets)
    return reading.sound == "click" and together


# ------------------------------------------------------------------------------------------------------------ command


def read_sources(models: Cosmos3Models, prompts: Sequence[Prompt], pool: Executor) -> dict[str, list[Reading]]:
    """Readings of generated clips, and of the two ceilings: reconstructions and ground truth of the same scenes.

    Args:
        models: with sound and with encoders.
        prompts: to score.
        pool: see `read_clips`.

    Raises:
        ValueError: the models lack sound or encoders.
    """
    scenes = [prompt.scene for prompt in prompts]
    sources = {
        "generated": generate_clips(models, [prompt.caption for prompt in prompts], seeds=range(len(prompts))),
        "reconstruction": reconstructed_clips(models, scenes),
        "ground truth": true_clips(scenes, device=models.device),
    }
    return {name: read_clips(clips, pool) for name, clips in sources.items()}


def score_groups(
    prompts: Sequence[Prompt], names: Sequence[str], sources: Mapping[str, Sequence[Reading]]
) -> dict[str, dict[str, Scores]]:
    """`{name: {source: scores}}` of prompts that are in groups.

    Args:
        prompts: all of them.
        names: of each prompt's group.
        sources: readings for each prompt, by source.
    """
    groups = {name: [i for i, other in enumerate(names) if other == name] for name in sorted(set(names), key=names.index)}
    return {
        name: {
            source: aggregate([prompts[i].scene for i in members], [readings[i] for i in members])
            for source, readings in sources.items()
        }
        for name, members in groups.items()
    }


def table_rows(scores: Mapping[str, Scores]) -> list[tuple[str, ...]]:
    """`(figure, over how many, value for each source)` for every figure that applies, as text.

    Args:
        scores: by source.
    """
    columns = [_column(s) for s in scores.values()]
    labels = [label for label, (figure, _) in columns[0].items() if figure.count]
    return [(label, str(columns[0][label][0].count), *(_cell(*column[label]) for column in columns)) for label in labels]


def _column(s: Scores) -> dict[str, tuple[Figure, str]]:
    """Figures by label, each with a word that goes beside it."""
    return {
        "everything right": (s.followed, ""),
        **{attribute: (figure, "") for attribute, figure in s.right.items()},
        "worst motion": (s.motions[s.worst_motion], s.worst_motion),
        "worst sound": (s.sounds[s.worst_sound], s.worst_sound),
        "in sync": (s.sync, ""),
        "in sync with another clip's sound": (s.shuffled_sync, ""),
        "outline": (s.outline, ""),
        "both colours with their shapes": (s.bound, ""),
        "both motions": (s.both_motions, ""),
        "click at the contact": (s.click, ""),
    }


def _cell(figure: Figure, word: str) -> str:
    return "-" if figure.value is None else f"{figure.value:.3f} {word}".rstrip()


def measure(models: Cosmos3Models, count: int) -> dict[str, Any]:
    """All figures of a checkpoint: `{"kinds": {kind: {source: scores}}, "templates": {template: {source: scores}}}` and more.

    Args:
        models: with sound and with encoders.
        count: prompts of each kind.
    """
    kinds = [kind for kind in KINDS for _ in range(count)]
    prompts = [prompt for options in KINDS.values() for prompt in unseen_prompts(count, **options)]
    with judge_pool() as pool:
        sources = read_sources(models, prompts, pool)
    settings = {name: getattr(models.defaults, name) for name in SETTINGS}
    return {
        "checkpoint": models.defaults.name,
        "fingerprint": models.fingerprint,
        "count": count,
        "settings": settings,
        "kinds": score_groups(prompts, kinds, sources),
        "templates": score_groups(prompts, [template(prompt.caption) for prompt in prompts], sources),
    }


def as_json(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What `measure` returned, as plain values.

    Args:
        measured: the figures.
    """
    groups = ("kinds", "templates")
    plain = {g: {n: {s: asdict(x) for s, x in v.items()} for n, v in measured[g].items()} for g in groups}
    return {**measured, **plain}


def main() -> None:
    """Command line: `python -m cosmos3_lab.pico.score [--checkpoint DIR] [--count N] [--device auto] [--out FILE.json]`."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="pico")
    parser.add_argument("--count", type=int, default=384, help="prompts of each kind")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="JSON with every figure")
    a = parser.parse_args()
    with load_cosmos3(a.checkpoint, device=a.device, dtype=torch.float32, load_encoder=True) as models:  # as on a laptop
        measured = measure(models, a.count)
    sources = next(iter(measured["kinds"].values()))
    table = Table("", "n", *sources, title=f"{measured['checkpoint']}: {a.count} prompts of each kind")
    for kind, scores in measured["kinds"].items():
        table.add_section()
        table.add_row(f"[bold]{kind}")
        for row in table_rows(scores):
            table.add_row(*row)
    table.add_section()
    table.add_row("[bold]everything right, by word order")
    for name, scores in sorted(measured["templates"].items()):
        table.add_row(name, *table_rows(scores)[0][1:])
    Console().print(table)
    if a.out is not None:
        with replacing(a.out) as path:
            path.write_text(json.dumps(as_json(measured), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
