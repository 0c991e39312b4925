"""The schedule explorer: how steps, shift and spacing move the sigmas.

Read next: `latent_widgets.py`.
"""

from typing import TYPE_CHECKING

import numpy as np

from cosmos3_lab.figure_style import as_array
from cosmos3_lab.schedule import FLOW_VARIANTS, Schedule, flow_schedule, karras_schedule, log_snr
from cosmos3_lab.schedule_figures import plot_schedules
from cosmos3_lab.widget_parts import dropdown, has_front_end, ipywidgets, lab_box, line, on_change, row, say, slider

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.figure import Figure

    from cosmos3_lab.widget_canvas import MovingFigure

RULES = (*FLOW_VARIANTS, "karras")
# What each recipe asks for on Nano: presets.PRESETS, and for diffusers Nano's scheduler file.
RECIPES = {"native": ("native-flow", 10.0), "phyai": ("phyai-flow", 10.0), "diffusers": ("karras", None)}
MOST_STEPS = 100
NOW = "now: "  # before the name of the curve that follows the sliders
MOST_CURVES = 4  # as many names as stand in one row


def schedule_explorer(schedule: Schedule | None = None) -> "Widget | Figure":
    """Sigma, log-SNR and step sizes of a schedule that you change, beside those that you keep.

    Args:
        schedule: to start from and to compare with; None for Nano's.

    Raises:
        ValueError: it is no schedule, or has more steps than the slider.
    """
    if schedule is not None and not isinstance(schedule, Schedule):
        raise ValueError(f"got a {type(schedule).__name__}, expected a Schedule, try flow_schedule(35)")
    start = flow_schedule(35) if schedule is None else schedule
    if start.num_steps > MOST_STEPS:
        raise ValueError(
            f"got a schedule of {start.num_steps} steps, expected at most {MOST_STEPS}, for plot_schedules draws more"
        )
    if not has_front_end():
        return plot_schedules({start.name: start})
    return _build(start)


def _build(start: Schedule) -> "Widget":
    from cosmos3_lab.widget_canvas import MovingFigure

    w, box = ipywidgets(), lab_box()
    name, shift = (start.name, start.flow_shift) if start.name in RULES else ("native-flow", 10.0)
    steps = slider("steps", 1, MOST_STEPS, start.num_steps)
    bend = w.FloatLogSlider(
        value=shift or 10.0,
        base=10,
        min=-1,
        max=np.log10(20),
        step=0.01,
        description="flow shift",
        continuous_update=False,
        readout_format=".2f",
        layout={"width": "340px"},
        style={"description_width": "70px"},
    )
    rule = dropdown("spacing", RULES, name, width="230px")
    recipe = dropdown("recipe", [("own", None), *((r, r) for r in RECIPES)], None, width="200px")
    pin, clear = w.Button(description="Keep this curve"), w.Button(description="Forget kept curves")
    picture, words = box.Picture(), line()
    kept = {} if schedule_is_shown(start, name, shift) else {_name(start): start}
    shown: dict[str, MovingFigure] = {}

    def made() -> Schedule:
        if rule.value == "karras":
            return karras_schedule(steps.value)
        return flow_schedule(steps.value, flow_shift=bend.value, variant=rule.value)

    def redraw() -> None:
        bend.disabled = rule.value == "karras"
        now = made()
        if "figure" not in shown:
            figure = plot_schedules({NOW + _name(now): now} | kept)
            shown["figure"] = MovingFigure(figure, [*figure.axes, *figure.legends])
        _show_first(shown["figure"], now)
        picture.show(shown["figure"].png(), shown["figure"].figure.alt_text)
        say(words, _words(now))
        recipe.value = next((r for r, choices in RECIPES.items() if choices == (now.name, now.flow_shift)), None)

    def follow_recipe() -> None:
        if recipe.value is not None:
            name, shift = RECIPES[recipe.value]
            bend.value = bend.value if shift is None else shift
            rule.value = name

    def keep() -> None:
        now = made()
        kept.pop(_name(now), None)
        for oldest in list(kept)[: len(kept) + 2 - MOST_CURVES]:
            del kept[oldest]
        kept[_name(now)] = now
        start_over()

    def start_over() -> None:
        shown.clear()
        redraw()

    on_change(redraw, steps, bend, rule)
    recipe.observe(lambda change: follow_recipe(), names="value")
    pin.on_click(lambda button: keep())
    clear.on_click(lambda button: (kept.clear(), start_over()))
    return box.LabBox([row(steps, bend), row(rule, recipe, pin, clear), picture, words])


def schedule_is_shown(start: Schedule, name: str, shift: float | None) -> bool:
    """Whether the sliders alone make this schedule, so that it needs no curve of its own.

    Args:
        start: the schedule.
        name, shift: where the sliders stand.
    """
    n = start.num_steps
    made = karras_schedule(n) if name == "karras" else flow_schedule(n, flow_shift=shift or 10.0, variant=name)
    return bool(np.allclose(made.sigmas, start.sigmas, atol=1e-6))


def _show_first(shown: "MovingFigure", schedule: Schedule) -> None:
    """Move the first curve of each panel to this schedule."""
    level, clock, size = shown.figure.axes
    sigmas = as_array(schedule.sigmas)
    steps = np.arange(len(sigmas))
    level.lines[0].set_data(steps, sigmas)
    clock.lines[0].set_data(steps[:-1], as_array(log_snr(schedule.sigmas[:-1])))
    size.lines[0].set_data(steps[:-1], -np.diff(sigmas))
    for ax in (level, clock, size):
        ax.relim()
        ax.autoscale(axis="both" if ax is clock else "x")
    size.set_ylim(0, 1.06 * max(line.get_ydata().max() for line in size.lines))
    shown.figure.legends[0].get_texts()[0].set_text(NOW + _name(schedule))
    shown.figure.alt_text = f"Sigma, log-SNR and step size over the steps of {', '.join(_names(shown))}."


def _names(shown: "MovingFigure") -> list[str]:
    return [text.get_text() for text in shown.figure.legends[0].get_texts()]


def _name(schedule: Schedule) -> str:
    shift = "" if schedule.flow_shift is None else f", shift {schedule.flow_shift:.3g}"
    return f"{schedule.name}, {schedule.num_steps} steps{shift}"


def _words(schedule: Schedule) -> str:
    sigmas = as_array(schedule.sigmas)
    noisy = int((sigmas[:-1] > 0.9).sum())
    sizes = -np.diff(sigmas)
    return (
        f"\u03c3 from {sigmas[0]:.4f} to {sigmas[-2]:.4f}, then 0; {noisy} of {schedule.num_steps} steps are above \u03c3 = 0.9; "
        f"the largest step, {sizes.max():.3f}, is number {int(sizes.argmax())}"
    )
