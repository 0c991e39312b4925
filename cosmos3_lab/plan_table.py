"""A plan as tables for the terminal.

Read next: `cli.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from cosmos3_lab.memory import GIB
from cosmos3_lab.meter import MIB
from cosmos3_lab.plan import ClipPlan, RunPlan


@dataclass(frozen=True)
class Unit:
    """In which bytes are told."""

    name: str
    nbytes: int

    def __call__(self, nbytes: int) -> str:
        return _short(nbytes / self.nbytes, decimals=1 if self.nbytes == GIB else 0)


def plan_tables(plan: RunPlan, *, phases: bool) -> Iterator[RenderableType]:
    """What the command line prints, piece by piece.

    Args:
        plan: from `plan_run`.
        phases: whether every stage of every size is wanted, too.
    """
    large = any(option.peak >= GIB for clip in plan.clips for option in clip.options)
    unit = Unit("GiB", GIB) if large else Unit("MiB", MIB)
    yield _headline(plan)
    yield _summary(plan, unit)
    for clip in plan.clips if phases else ():
        yield _clip_line(clip)
        yield _phase_table(clip, unit)
    for clip in plan.clips:
        if clip.chosen is None:
            yield _advice(plan, clip, unit)
            if clip.alternatives:
                yield _alternatives(clip, unit)
    yield f"[dim]Seconds: {escape(plan.rates.source)}; from token ids to frames and waveform, without loading and mp4.[/dim]"


def _headline(plan: RunPlan) -> str:
    text = " + ".join(f"{n:,}" for n in plan.text_tokens)
    kind = "video with sound" if plan.with_sound else "silent video"
    steps = f"{plan.num_inference_steps} step{'s' if plan.num_inference_steps > 1 else ''}"
    dtype = str(plan.machine.dtype).removeprefix("torch.")
    machine = escape(plan.machine.name)
    if plan.machine.free is not None:
        machine += f", of which {plan.machine.free / GIB:.1f} GiB are for the run"
    return f"[bold]{escape(plan.checkpoint)}[/bold]: {kind}, {steps}, {text} text tokens, {dtype}, on {machine}"


def _table(*left: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in left:
        table.add_column(header, no_wrap=True)
    return table


def _add_numbers(table: Table, *headers: str) -> None:
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)


def _summary(plan: RunPlan, unit: Unit) -> Table:
    """One row for each size: the peak of each placement, and the seconds of the one that fits."""
    placements = [option.placement for option in plan.clips[0].options]
    names = placements if len(placements) > 1 else ["memory"]
    table = _table("size")
    _add_numbers(table, "tokens", "TFLOP\na step", "s a\nstep", *(f"{name}\n{unit.name}" for name in names), "run\ns")
    if len(placements) > 1:
        table.add_column("placement", no_wrap=True)
    for clip in plan.clips:
        chosen = clip.chosen
        peaks = [_emphasised(unit(option.peak), option is chosen) for option in clip.options]
        work = [f"{clip.clip.layout.s_gen:,}", _short(clip.step_flops.total / 1e12), _short(clip.step_seconds)]
        placement = "[red]does not fit[/red]" if chosen is None else f"[green]{chosen.placement}[/green]"
        run = _short((chosen or clip.split).seconds)
        table.add_row(clip.clip.name, *work, *peaks, run, *([placement] if len(placements) > 1 else []))
    return table


def _emphasised(text: str, yes: bool) -> str:
    return f"[bold]{text}[/bold]" if yes else f"[dim]{text}[/dim]"


def _clip_line(clip: ClipPlan) -> str:
    layout = clip.clip.layout
    sound = f" and {layout.n_sound:,} sound" if layout.n_sound else ""
    return f"[bold]{clip.clip.name}[/bold]: {layout.n_video:,} video{sound} tokens"


def _phase_table(clip: ClipPlan, unit: Unit) -> Table:
    """Where the bytes and the seconds of one size go, stage by stage."""
    table = _table("placement", unit.name)
    _add_numbers(table, "weights", "K/V,\nlatents", "activa-\ntions", "peak with\ngaps", "TFLOP", "s")
    for option in clip.options:
        for phase in option.phases:
            first, last = phase is option.phases[0], phase is option.phases[-1]
            numbers = [unit(n) for n in (phase.weights, phase.kept, phase.working, phase.peak)]
            numbers += [_short(phase.flops.total / 1e12), _short(phase.seconds)]
            name = option.placement if first else ""
            table.add_row(name, phase.stage, *numbers, style=None if option is clip.chosen else "dim", end_section=last)
    return table


def _advice(plan: RunPlan, clip: ClipPlan, unit: Unit) -> str:
    """What to do about a size that does not fit."""
    over = f"{unit(clip.split.peak - plan.machine.free)} {unit.name}"
    said = f"[red]{clip.clip.name} does not fit[/red], by {over} even in split placement"
    if clip.alternatives:
        return f"{said}; these do:"
    largest = max(phase.weights for phase in clip.split.phases)
    return f"{said}, and nothing that is smaller does (weights alone take {unit(largest)} {unit.name})."


def _alternatives(clip: ClipPlan, unit: Unit) -> Table:
    """Sizes that fit, the one that keeps most pixels first."""
    table = _table("instead")
    _add_numbers(table, "of its\npixels", f"peak\n{unit.name}", "s a\nstep", "run\ns")
    table.add_column("placement", no_wrap=True)
    for other in clip.alternatives:
        option = other.chosen or other.split
        share = f"{other.clip.pixels / clip.clip.pixels:.0%}"
        numbers = (unit(option.peak), _short(other.step_seconds), _short(option.seconds))
        table.add_row(other.clip.name, share, *numbers, f"[green]{option.placement}[/green]")
    return table


def _short(number: float, *, decimals: int = 2) -> str:
    """As many decimals as make three digits, up to `decimals`."""
    return f"{number:,.{min(decimals, 0 if number >= 100 else 1 if number >= 10 else 2)}f}"
