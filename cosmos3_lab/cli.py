"""`cosmos3-lab generate | inspect`: the page's example script, and a look into a checkpoint folder."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(
    name="cosmos3-lab",
    help="Cosmos3-Nano, every stage from a prompt to a video with sound.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
GB = 1e9


class KarrasChoice(str, Enum):
    """The page's three answers: read the checkpoint's scheduler file, Karras sigmas, a flow schedule."""

    auto = "auto"
    true = "true"
    false = "false"


class DtypeChoice(str, Enum):
    """Of the weights; auto is bfloat16 on a GPU and float32 on the CPU."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


Checkpoint = Annotated[Path | None, typer.Option(help="Checkpoint folder.", envvar="COSMOS3_CHECKPOINT")]


@app.command()
def generate(
    checkpoint: Checkpoint = None,
    prompt: Annotated[str | None, typer.Option(help="What to show; default: the checkpoint's first example.")] = None,
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
        KarrasChoice | None, typer.Option(help="auto reads the checkpoint's scheduler file; default: the preset's schedule.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="native, phyai or diffusers; Nano: native.")] = None,
    seed: Annotated[int, typer.Option(help="Of the initial noise.")] = 42,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[DtypeChoice, typer.Option(help="Of the weights.")] = DtypeChoice.auto,
    placement: Annotated[str, typer.Option(help="auto, resident or split.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the mp4.")] = Path("outputs"),
) -> None:
    """Generate a video, or with --sound a video with sound.

    What is not given comes from the checkpoint's cosmos3_lab.json, and from Nano's defaults where it has none.
    """
    import torch

    from cosmos3_lab.checkpoint import load_cosmos3
    from cosmos3_lab.files import check_writable
    from cosmos3_lab.generate import PHASES
    from cosmos3_lab.generate import generate as run

    karras = {None: "preset", "auto": None, "true": True, "false": False}
    with _one_line_errors():
        check_writable(out)
        weights = "auto" if dtype is DtypeChoice.auto else getattr(torch, dtype.value)
        with load_cosmos3(checkpoint, device=device, dtype=weights, load_sound=sound, placement=placement) as models:
            if prompt is None:
                if not models.defaults.example_prompts:
                    raise ValueError("got no --prompt, and this checkpoint names no example; describe the video")
                prompt = models.defaults.example_prompts[0]
            console.print(f"{escape(repr(models))}\nprompt: {escape(prompt)}", highlight=False, soft_wrap=True)
            result = run(
                models,
                prompt,
                negative_prompt=negative_prompt,
                with_sound=sound,
                num_frames=num_frames,
                height=height,
                width=width,
                fps=fps,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                flow_shift=flow_shift,
                use_karras_sigmas=karras[use_karras_sigmas and use_karras_sigmas.value],
                preset=preset,
                seed=seed,
                out=out,
                name="video_with_sound.mp4" if sound else "video.mp4",
            )
    m = result.manifest
    negative = (
        "not needed"
        if m["negative_text_tokens"] is None
        else f"{m['negative_prompt_source']}, {m['negative_text_tokens']} tokens"
    )
    shift = "" if m["flow_shift"] is None else f" (shift {m['flow_shift']:g})"
    console.print(
        f"{m['num_frames']} frames {m['height']}x{m['width']} at {m['fps']:g} fps, {m['num_inference_steps']} steps, "
        f"guidance {m['guidance_scale']:g}, {m['schedule']}{shift}, preset {m['preset']}, seed {m['seed']}, "
        f"{m['text_tokens']} prompt tokens; negative prompt: {negative}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("phase", "seconds", title="Timings")
    for phase in PHASES:
        table.add_row(phase, f"{result.timings[phase]:.2f}")
        if phase == "inference":
            for part in ("denoise", "decode"):
                table.add_row(f"  {part}", f"{result.timings[part]:.2f}")
    console.print(table)
    console.print(f"{escape(repr(result.output))}\nsaved {escape(str(result.path))}", highlight=False, soft_wrap=True)


@app.command()
def inspect(folder: Annotated[Path, typer.Argument(help="Checkpoint folder.")]) -> None:
    """Say what a checkpoint folder holds, what a run needs of it, and what is missing; exit code 1 if it cannot be loaded."""
    from cosmos3_lab.inspection import inspect_checkpoint

    with _one_line_errors():
        report = inspect_checkpoint(folder)
    console.print(f"{escape(str(report.folder))}: {', '.join(report.present) or 'no component'}", highlight=False, soft_wrap=True)
    table = Table("tensors", "count", "parameters", "GB", "dtype", "read for")
    for g in report.groups:
        read_for = ", ".join(kind for kind, used in (("T2V", g.t2v), ("T2AV", g.t2av)) if used)
        table.add_row(g.name, str(g.tensors), f"{g.parameters:,}", f"{g.nbytes / GB:.3f}", ", ".join(g.dtypes), read_for)
    console.print(table)
    for kind, with_sound in (("T2V", False), ("T2AV", True))[: 1 + report.has_sound]:
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


class _one_line_errors:  # noqa: N801  (reads as a statement where it is used)
    """Turn the package's own errors into one line and exit code 2; anything else is a bug and keeps its traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import torch

        if isinstance(error, ValueError | OSError | MemoryError | torch.OutOfMemoryError):
            Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None


def main() -> None:
    """Entry point of the `cosmos3-lab` command."""
    app()
