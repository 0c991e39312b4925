"""What a checkpoint folder holds, from its configs and file headers alone: nothing is loaded, a damaged folder is no problem."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cosmos3_lab.captions import default_negative_prompt
from cosmos3_lab.checkpoint import (
    SKIP_AVAE_ENCODER,
    SKIP_SOUND_HEADS,
    SKIP_VAE_ENCODER,
    plan_components,
)
from cosmos3_lab.scan import scan
from cosmos3_lab.schedule import schedule_from_config
from cosmos3_lab.settings import COMPONENTS, REQUIRED, CheckpointConfigs, Defaults, checkpoint_folder, read_configs
from cosmos3_lab.untrusted import CheckpointError
from cosmos3_lab.weights import TensorInfo, check_weights, find_tensors, without


@dataclass(frozen=True)
class Group:
    """Tensors that belong together. `t2v` and `t2av` say whether a run of that kind reads them."""

    name: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]
    t2v: bool
    t2av: bool


@dataclass(frozen=True)
class CheckpointReport:
    """What `inspect_checkpoint` found.

    Attributes:
        folder: that was looked at.
        present: component folders that are there.
        groups: tensors by purpose.
        problems: what keeps it from being loaded, empty for a good checkpoint.
        notes: what is worth knowing.
        defaults: its default settings, None where they cannot be read.
        has_sound: whether T2AV can be asked for.
    """

    folder: Path
    present: tuple[str, ...]
    groups: tuple[Group, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    defaults: Defaults | None
    has_sound: bool

    def needed(self, *, with_sound: bool) -> tuple[int, int]:
        """`(parameters, bytes in the files)` that a run reads."""
        used = [g for g in self.groups if (g.t2av if with_sound else g.t2v)]
        return sum(g.parameters for g in used), sum(g.nbytes for g in used)


# Which tensors make which group, by prefix; the first that matches counts.
TRANSFORMER_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lm_head", ("lm_head.",)),
    ("UND final norm", ("norm.",)),
    ("action heads", ("action_",)),
    ("sound in and out", SKIP_SOUND_HEADS),
    ("UND embeddings", ("embed_tokens.",)),
    ("GEN in, out, time", ("proj_in.", "proj_out.", "time_embedder.", "norm_moe_gen.")),
)
GEN_LEAVES = ("_moe_gen", ".add_", ".to_add_out", ".norm_added_")


def inspect_checkpoint(folder: str | Path | None = None, *, deep: bool = False) -> CheckpointReport:
    """Look into a checkpoint folder without loading it.

    Args:
        folder: in the Cosmos3-Nano layout, complete or not; None and "pico" as in `load_cosmos3`.
        deep: whether to read all weights too, see `scan`.

    Raises:
        CheckpointError: it is not a folder at all.
    """
    folder = checkpoint_folder(folder)
    present = tuple(c for c in COMPONENTS if (folder / c).is_dir())
    problems = [f"{c}/ is missing" for c in REQUIRED if c not in present]
    if "text_tokenizer" in present and not (folder / "text_tokenizer" / "tokenizer.json").is_file():
        problems.append("text_tokenizer/tokenizer.json is missing")
    groups: list[Group] = []
    tensors: dict[str, dict[str, TensorInfo]] = {}
    for component, split in SPLITS.items():
        if component in present:
            try:
                tensors[component] = find_tensors(folder / component)
                groups += split(tensors[component])
            except CheckpointError as error:
                problems.append(str(error))
    configs, notes = None, []
    try:
        configs = read_configs(folder)
        for name, part in plan_components(configs, with_sound=configs.has_sound).items():
            if name in tensors:
                check_weights(part.module, tensors[name], component=name, sources=part.sources, skip=part.skip)
    except CheckpointError as error:
        if present[: len(REQUIRED)] == REQUIRED:  # else the missing folder has been named already
            problems.append(str(error))
    if configs is not None:
        try:
            notes = _notes(folder, configs)
        except ValueError as error:  # a broken negative prompt
            problems.append(str(error))
    if deep:
        problems += scan(folder, (info for component in tensors.values() for info in component.values()))
    defaults = None if configs is None else configs.defaults
    has_sound = configs is not None and configs.has_sound
    return CheckpointReport(folder, present, tuple(groups), tuple(problems), tuple(notes), defaults, has_sound)


def _notes(folder: Path, configs: CheckpointConfigs) -> list[str]:
    notes = []
    if not configs.has_sound:
        notes.append("no sound: T2AV needs sound_tokenizer/ and sound_gen")
    if configs.scheduler is None:
        notes.append('no scheduler file: schedule "auto" is not available')
    else:
        try:
            name = schedule_from_config(configs.scheduler, configs.defaults.num_inference_steps).name
            notes.append(f'the scheduler file asks for {name} sigmas; only schedule "auto" follows it')
        except ValueError as error:
            notes.append(f'schedule "auto" is not available: {error}')
    negative = default_negative_prompt(folder)
    same = "the same text as" if negative.is_reference else "not the text of"
    notes.append(f"default negative prompt: {negative.source} ({len(negative.text)} characters, {same} PhyAI and NVIDIA)")
    return notes


def _transformer_groups(tensors: dict[str, TensorInfo]) -> list[Group]:
    def group(name: str) -> str:
        for label, prefixes in TRANSFORMER_GROUPS:
            if name.startswith(prefixes):
                return label
        if name.startswith("layers."):
            return "GEN layers" if any(leaf in name for leaf in GEN_LEAVES) else "UND layers"
        return "unknown"

    order = ["UND layers", "UND embeddings", "GEN layers", *(n for n, _ in TRANSFORMER_GROUPS[::-1]), "unknown"]
    members = {label: [t for t in tensors.values() if group(t.name) == label] for label in dict.fromkeys(order)}
    sound_only, unused = {"sound in and out"}, {n for n, _ in TRANSFORMER_GROUPS[:3]} | {"unknown"}
    return [
        _group(label, found, t2v=label not in sound_only | unused, t2av=label not in unused)
        for label, found in members.items()
        if found
    ]


def _decoder_groups(label: str, skip: tuple[str, ...], tensors: dict[str, TensorInfo]) -> list[Group]:
    """A decoder, and an encoder that no run reads."""
    decoder = without(tensors.values(), skip)
    encoder = [t for t in tensors.values() if t not in decoder]
    groups = [_group(f"{label} decoder", decoder, t2v=label == "video", t2av=True)]
    return [*groups, _group(f"{label} encoder", encoder, t2v=False, t2av=False)] if encoder else groups


SPLITS: dict[str, Callable[[dict[str, TensorInfo]], list[Group]]] = {
    "transformer": _transformer_groups,
    "vae": partial(_decoder_groups, "video", SKIP_VAE_ENCODER),
    "sound_tokenizer": partial(_decoder_groups, "sound", SKIP_AVAE_ENCODER),
}


def _group(name: str, tensors: list[TensorInfo], *, t2v: bool, t2av: bool) -> Group:
    dtypes = tuple(sorted({str(t.dtype).removeprefix("torch.") for t in tensors}))
    return Group(name, len(tensors), sum(t.parameters for t in tensors), sum(t.nbytes for t in tensors), dtypes, t2v, t2av)
