"""`cosmos3-lab generate | replay | plan | inspect | doctor`: PhyAI's script, the same run again, what a run needs, two looks."""

import os
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cosmos3_lab.bundle import Bundle
from cosmos3_lab.checkpoint import Cosmos3Models, load_cosmos3
from cosmos3_lab.configs import check_choice
from cosmos3_lab.costs import NANO_TEXT_TOKENS, nano_configs, parse_size
from cosmos3_lab.denoise import resolve_run
from cosmos3_lab.doctor import examine, findings_table, verdict
from cosmos3_lab.files import check_writable
from cosmos3_lab.generate import resume_run, run_request
from cosmos3_lab.inspection import inspect_checkpoint
from cosmos3_lab.interruption import Terminated, terminable
from cosmos3_lab.plan import count_text_tokens, plan_run
from cosmos3_lab.plan_table import plan_tables
from cosmos3_lab.prepare import prepare_request
from cosmos3_lab.presets import Preset, get_preset, make_solver, with_solver
from cosmos3_lab.replay import replay
from cosmos3_lab.run import INFERENCE_PARTS, PHASES, Generation, start_timer
from cosmos3_lab.settings import read_configs, resolve_folder
from cosmos3_lab.solvers import Solver, SolverName
from cosmos3_lab.speed import read_rates
from cosmos3_lab.untrusted import one_line

app = typer.Typer(
    name="cosmos3-lab",
    help="Cosmos3-Nano, every stage from a prompt to a video with sound.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
GB = 1e9


# PhyAI's three answers, and none: read the checkpoint's scheduler file, Karras sigmas, a flow schedule, the preset's.
KARRAS = {"auto": None, "true": True, "false": False, None: "preset"}
DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16}
# Text rather than a Path, which could not tell the folder ./pico from the name pico.
CHECKPOINT = {"help": "Checkpoint folder; default: pico, which is in this package.", "envvar": "COSMOS3_CHECKPOINT"}


DEVICE = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DTYPE = Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the weights.")]
PLACEMENT = Annotated[Literal["auto", "resident", "split"], typer.Option(help="Of the two towers.")]
QUANTIZE = Annotated[
    Literal["int8", "fp8"] | None, typer.Option(help="Round the layers to 8 bits: half the memory, another result.")
]
# What may be given with --resume; all else is the run's own.
WITH_RESUME = ("resume", "checkpoint", "device", "dtype", "placement", "quantize", "save_every")


@app.command()
def generate(
    words: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to show and, with --sound, to hear.")] = None,
    prompt: Annotated[str | None, typer.Option(help="PROMPT as a flag, as in PhyAI's script.")] = None,
    checkpoint: Annotated[str | None, typer.Option(**CHECKPOINT)] = None,
    sound: Annotated[bool, typer.Option("--sound", help="Generate sound as well (T2AV).")] = False,
    negative_prompt: Annotated[
        str | None, typer.Option(help='What to steer away from; default: the preset\'s, "" for none.')
    ] = None,
    num_frames: Annotated[int | None, typer.Option(help="Rounded down to 4k + 1; Nano: 189.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16; Nano: 720.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16; Nano: 1280.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second; Nano: 24.")] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps; Nano: 35.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is none; Nano: 6.")] = None,
    flow_shift: Annotated[float | None, typer.Option(help="Of the flow schedules; Nano: 10.")] = None,
    use_karras_sigmas: Annotated[
        Literal["auto", "true", "false"] | None,
        typer.Option(help="auto reads the checkpoint's scheduler file; default: the preset's schedule."),
    ] = None,
    solver: Annotated[str | None, typer.Option(help="unipc, euler or heun; default: the preset's, unipc.")] = None,
    solver_order: Annotated[int | None, typer.Option(help="Of unipc: 1, 2 or 3; default: the preset's, 2.")] = None,
    no_corrector: Annotated[bool, typer.Option("--no-corrector", help="unipc without its corrector.")] = False,
    preset: Annotated[str | None, typer.Option(help="native, phyai or diffusers; Nano: native.")] = None,
    seed: Annotated[int, typer.Option(help="Of the initial noise.")] = 42,
    device: DEVICE = "auto",
    dtype: DTYPE = "auto",
    placement: PLACEMENT = "auto",
    quantize: QUANTIZE = None,
    out: Annotated[Path, typer.Option(help="Where the run gets a folder of its own, run_001 and so on.")] = Path("outputs"),
    private: Annotated[bool, typer.Option("--private", help="Keep prompt and machine out of manifest and mp4.")] = False,
    save_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between saves of the state; default: as often as costs 1 % of the run.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with the run in this folder, with its settings.")
    ] = None,
) -> None:
    """Generate a video, or with --sound a video with sound.

    What is not given comes from the checkpoint's cosmos3_lab.json, and from Nano's defaults where it has none.
    """
    given = dict(locals())
    with _one_line_errors():
        if resume is not None:
            _check_only_resumed(given)
            with _load_for(resume, checkpoint, device, dtype, placement, quantize) as models:
                _report(resume_run(models, resume, save_every=save_every))
            return
        # Everything that can be wrong with the arguments is found before gigabytes are read.
        configs = read_configs(resolve_folder(checkpoint), with_sound=sound)
        prompt = _one_prompt(words, prompt, configs.defaults.example_prompts)
        recipe, begin = get_preset(configs.defaults.preset if preset is None else preset), time.perf_counter()
        asked = {
            "negative_prompt": negative_prompt,
            "with_sound": sound,
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "fps": fps,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "seed": seed,
        }
        request = prepare_request(configs, prompt, preset=recipe, **asked)
        choices = {
            "flow_shift": flow_shift,
            "use_karras_sigmas": KARRAS[use_karras_sigmas],
            "solver": _one_solver(recipe, solver, solver_order, no_corrector),
        }
        request, schedule, recipe = resolve_run(configs, request, preset=recipe, **choices)
        check_writable(out)
        preprocess = time.perf_counter() - begin
        console.print(f"prompt: {escape(prompt)}", highlight=False, soft_wrap=True)
        options = {"device": device, "dtype": DTYPES[dtype], "placement": placement, "quantize": quantize}
        with load_cosmos3(configs.folder, load_sound=sound, **options) as models:
            console.print(escape(repr(models)), highlight=False, soft_wrap=True)
            timer = start_timer(models)
            timer.seconds["preprocess"] = preprocess
            asked |= {"prompt": prompt, "preset": preset, **choices}
            result = run_request(
                models,
                request,
                preset=recipe,
                schedule=schedule,
                out=out,
                name="video_with_sound.mp4" if sound else "video.mp4",
                save_every=save_every,
                private=private,
                requested=asked,
                timer=timer,
            )
            _report(result)


@app.command("replay")
def replay_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as outputs/run_001.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Checkpoint folder; default: the run's.", envvar=CHECKPOINT["envvar"])
    ] = None,
    device: DEVICE = "auto",
    dtype: DTYPE = "auto",
    placement: PLACEMENT = "auto",
    quantize: QUANTIZE = None,
) -> None:
    """Repeat a run and say whether its latents come out the same; exit code 1 if they are different. Writes nothing."""
    with _one_line_errors(), _load_for(run, checkpoint, device, dtype, placement, quantize) as models:
        repeated = replay(run, models)
    console.print(escape(one_line(f"{run}: {repeated!r}")), highlight=False, soft_wrap=True)
    if repeated.verdict == "different":
        raise typer.Exit(1)


@app.command()
def plan(
    sizes: Annotated[list[str] | None, typer.Argument(metavar="HxWxFRAMES", help="Default: the checkpoint's.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help=f"{CHECKPOINT['help']} nano needs no folder.", envvar=CHECKPOINT["envvar"])
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(metavar="GB", help="Of a GPU, here or not; default: what is free.")] = None,
    silent: Annotated[bool, typer.Option("--silent", help="Without sound (T2V).")] = False,
    steps: Annotated[int | None, typer.Option(help="Solver steps; Nano: 35.")] = None,
    measured: Annotated[Path | None, typer.Option(help="Seconds from JSON of benchmarks/nano_h200.py.")] = None,
    phases: Annotated[bool, typer.Option("--phases", help="Show every stage, also for several sizes.")] = False,
) -> None:
    """Say what memory and time a run needs, before it starts; exit code 1 if a size does not fit. Reads no weights."""
    with _one_line_errors():
        configs = nano_configs() if checkpoint == "nano" else read_configs(resolve_folder(checkpoint))
        made = plan_run(
            configs,
            [parse_size(size) for size in sizes or ()],
            with_sound=False if silent else None,
            num_inference_steps=steps,
            text_tokens=NANO_TEXT_TOKENS if checkpoint == "nano" else count_text_tokens(configs),
            gpu_memory=gpu_memory,
            rates=None if measured is None else read_rates(measured),
        )
    for piece in plan_tables(made, phases=phases or len(made.clips) == 1):
        console.print(piece, highlight=False)
    if not made.fits:
        raise typer.Exit(1)


@app.command()
def inspect(
    folder: Annotated[str | None, typer.Argument(**CHECKPOINT)] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read all weights: NaN, and SHA-256 where the hub's tools noted it.")
    ] = False,
) -> None:
    """Say what a checkpoint folder holds, what a run needs of it, and what is missing; exit code 1 if it cannot be loaded."""
    with _one_line_errors():
        report = inspect_checkpoint(folder, deep=deep)
    console.print(f"{escape(str(report.folder))}: {', '.join(report.present) or 'no component'}", highlight=False, soft_wrap=True)
    table = Table("tensors", "count", "parameters", "GB", "dtype", "read for")
    for g in report.groups:
        read_for = ", ".join(kind for kind, used in (("T2V", g.t2v), ("T2AV", g.t2av)) if used)
        table.add_row(g.name, str(g.tensors), f"{g.parameters:,}", f"{g.nbytes / GB:.3f}", ", ".join(g.dtypes), read_for)
    if report.groups:
        console.print(table)
    kinds = (("T2V", False), ("T2AV", True))[: 1 + report.has_sound] if report.groups else ()
    for kind, with_sound in kinds:
        parameters, nbytes = report.needed(with_sound=with_sound)
        console.print(f"{kind} reads {parameters:,} parameters, {nbytes / GB:.3f} GB", highlight=False, soft_wrap=True)
    if report.defaults is not None:
        d = report.defaults
        console.print(
            f"defaults: {d.num_frames} frames {d.height}x{d.width} at {d.fps:g} fps, {d.num_inference_steps} steps, "
            f"guidance {d.guidance_scale:g}, preset {d.preset}",
            highlight=False,
            soft_wrap=True,
        )
    for note in report.notes:
        console.print(f"note: {escape(note)}", highlight=False, soft_wrap=True)
    for problem in report.problems:
        console.print(f"[red]problem:[/red] {escape(problem)}", highlight=False, soft_wrap=True)
    if report.problems:
        raise typer.Exit(1)


@app.command()
def doctor(
    checkpoint: Annotated[str | None, typer.Option(**CHECKPOINT)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Look at this machine and try every stage of the model against stored numbers; exit code 1 if something does not work."""
    findings = list(examine(checkpoint, device=device))
    console.print(findings_table(findings))
    result = verdict(findings)
    console.print(f"[{'red' if result.state == 'bad' else 'green'}]{escape(result.text)}[/]", highlight=False, soft_wrap=True)
    if result.state == "bad":
        raise typer.Exit(1)


def _one_prompt(words: str | None, prompt: str | None, examples: tuple[str, ...]) -> str:
    if words is not None and prompt is not None:
        raise ValueError("got a prompt and --prompt as well; give one of them")
    if words is None and prompt is None:
        such_as = " or ".join(shlex.quote(example) for example in examples[:2])
        raise ValueError("got no prompt; describe the video" + (f", for example {such_as}" if such_as else ""))
    return prompt if words is None else words


def _one_solver(preset: Preset, name: str | None, order: int | None, no_corrector: bool) -> SolverName | Solver | None:
    """As `generate` of the library takes it: a name, or all settings where some are given."""
    if name is not None:
        check_choice("solver", name, SolverName)
    if order is None and not no_corrector:
        return name
    solver = make_solver(with_solver(preset, name))
    if solver.name != "unipc":
        raise ValueError(f"got --solver-order or --no-corrector with {solver.name}, expected it with unipc alone; leave it out")
    return replace(solver, order=solver.order if order is None else order, corrector=solver.corrector and not no_corrector)


def _check_only_resumed(given: Mapping[str, Any]) -> None:
    for name, parameter in signature(generate).parameters.items():
        if name not in WITH_RESUME and given[name] != parameter.default:
            flag = "PROMPT" if name == "words" else f"--{name.replace('_', '-')}"
            raise ValueError(f"got {flag} with --resume; the run goes on with its own settings, leave it out")


def _load_for(run: Path, checkpoint: str | None, device: str, dtype: str, placement: str, quantize: str | None) -> Cosmos3Models:
    """The models of a run, as it had them where nothing else is asked for; its checkpoint goes before the environment's.

    Args:
        run: its folder.
        checkpoint, device, dtype, placement, quantize: the flags.
    """
    record = Bundle(run).read_manifest()
    settings, machine = record["effective"], record["machine"] or {}
    wanted = settings.get("dtype") if dtype == "auto" else dtype
    if not isinstance(wanted, str) or wanted not in DTYPES:
        raise ValueError(f"{run} was made in {wanted!r:.40}, expected {' or '.join(DTYPES)}")
    folder = machine.get("checkpoint_folder")
    if not isinstance(folder, str | None):
        raise ValueError(f"{run} has checkpoint_folder {folder!r:.40}, expected a path; name one with --checkpoint")
    models = load_cosmos3(
        (folder or checkpoint) if checkpoint == os.environ.get(CHECKPOINT["envvar"]) else checkpoint,
        device=device,
        dtype=DTYPES[wanted],
        load_sound=settings.get("sound_frames") is not None,
        placement=placement,
        quantize=quantize or settings.get("quantized"),
    )
    console.print(escape(repr(models)), highlight=False, soft_wrap=True)
    return models


def _report(result: Generation) -> None:
    """Settings, times, and where the clip is."""
    m = result.manifest
    negative = "not needed"
    if m["negative_text_tokens"] is not None:
        negative = escape(one_line(f"{m.get('negative_prompt_source', 'private')}, {m['negative_text_tokens']} tokens"))
    guidance = repr(result.inputs.guidance).removeprefix("Guidance(").removesuffix(")")
    solver = "" if (used := make_solver(result.inputs.preset)) == Solver() else f", {used}"
    shift = "" if m["flow_shift"] is None else f" (shift {m['flow_shift']:g})"
    console.print(
        f"{m['num_frames']} frames {m['height']}x{m['width']} at {m['fps']:g} fps, {m['num_inference_steps']} steps, "
        f"guidance {guidance}, {m['schedule']}{shift}, preset {m['preset']}{solver}, seed {m['seed']}, "
        f"{m['text_tokens']} prompt tokens; negative prompt: {negative}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("phase", "seconds", title="Timings")
    for phase in PHASES:
        table.add_row(phase, f"{result.timings[phase]:.2f}")
        for part in INFERENCE_PARTS if phase == "inference" else ():
            table.add_row(f"  {part}", f"{result.timings[part]:.2f}")
    console.print(table)
    console.print(f"{escape(repr(result.output))}\nsaved {escape(str(result.path))}", highlight=False, soft_wrap=True)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn the package's own errors into one line and exit code 2; anything else is a bug and keeps its traceback.

    What ends the program from outside gets its line and the usual exit code, 128 and the signal's number.
    """
    try:
        with terminable():
            yield
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Terminated) else signal.SIGINT
        _fail("interrupted" + _notes(error), code=128 + number)
    except torch.OutOfMemoryError as error:
        _fail(f"out of GPU memory while loading; try --placement split, and close other programs that use the GPU ({error})")
    except (ValueError, OSError, MemoryError, FloatingPointError) as error:
        _fail(str(error) + _notes(error))


def _notes(error: BaseException) -> str:
    return "".join(f"; {note}" for note in getattr(error, "__notes__", []))


def _fail(message: str, *, code: int = 2) -> None:
    Console(stderr=True).print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code) from None


def main() -> None:
    """Entry point of the `cosmos3-lab` command."""
    app()
