"""The schedule explorer: how steps, shift and spacing move the sigmas.

Read next: `latent_widgets.py`.
"""

from typing import TYPE_CHECKING

import numpy as np

from cosmos3_lab.figure_style import as_array
from cosmos3_lab.presets import PRESETS
from cosmos3_lab.schedule import FLOW_VARIANTS, Schedule, flow_schedule, karras_schedule, log_snr
from cosmos3_lab.schedule_figures import plot_schedules
from cosmos3_lab.widget_parts import dropdown, has_front_end, ipywidgets, lab_box, line, on_change, round_up, row, say, slider

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.figure import Figure

    from cosmos3_lab.figure_canvas import LabFigure

RULES = (*FLOW_VARIANTS, "karras")
NANO_SHIFT = PRESETS["native"].flow_shift
# Spacing and shift that each recipe asks for on Nano, whose scheduler file ("auto") says Karras.
RECIPES = {name: ("karras", None) if p.schedule == "auto" else (p.schedule, p.flow_shift) for name, p in PRESETS.items()}
OWN = "own"  # none of them
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
    box, controls = lab_box(), _Controls(start)
    picture, words = box.Picture(), line()
    curves = _Curves({} if schedule_is_shown(start, *controls.choices) else {_name(start): start})

    def redraw() -> None:
        now = controls.schedule()
        controls.tell_recipe(now)
        picture.show(*curves.show(now))
        say(words, _words(now))

    def keep() -> None:
        curves.keep(controls.schedule())
        redraw()

    def forget() -> None:
        curves.forget()
        redraw()

    controls.pin.on_click(lambda button: keep())
    controls.clear.on_click(lambda button: forget())
    on_change(redraw, controls.steps, controls.shift, controls.spacing)
    return box.LabBox([*controls.rows(), picture, words])


class _Controls:
    """What makes a schedule.

    Args:
        start: where they stand first, if they can make it.
    """

    def __init__(self, start: Schedule) -> None:
        w = ipywidgets()
        name, shift = (start.name, start.flow_shift) if start.name in RULES else ("native-flow", None)
        self.steps = slider("steps", 1, MOST_STEPS, start.num_steps)
        self.shift = w.FloatLogSlider(
            value=shift or NANO_SHIFT,
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
        self.spacing = dropdown("spacing", RULES, name, width="230px")
        self.recipe = dropdown("recipe", [OWN, *RECIPES], OWN, width="200px")
        self.pin, self.clear = w.Button(description="Keep this curve"), w.Button(description="Forget kept curves")
        self.choices = name, shift
        self.recipe.observe(lambda change: self._follow(change.new), names="value")

    def rows(self) -> list["Widget"]:
        """All of them, side by side in two rows."""
        return [row(self.steps, self.shift), row(self.spacing, self.recipe, self.pin, self.clear)]

    def schedule(self) -> Schedule:
        """What they say now."""
        return _made(self.steps.value, self.spacing.value, self.shift.value)

    def tell_recipe(self, now: Schedule) -> None:
        """Name the recipe that asks for this, and lock what has no meaning.

        Args:
            now: from `schedule`.
        """
        self.shift.disabled = now.flow_shift is None
        self.recipe.value = next((r for r, choices in RECIPES.items() if choices == (now.name, now.flow_shift)), OWN)

    def _follow(self, recipe: str) -> None:
        if recipe != OWN:
            name, shift = RECIPES[recipe]
            self.shift.value = self.shift.value if shift is None else shift
            self.spacing.value = name


class _Curves:
    """The picture: the curve of the sliders beside those that are kept.

    Args:
        kept: by name.
    """

    def __init__(self, kept: dict[str, Schedule]) -> None:
        self.kept, self.moving = kept, None

    def show(self, now: Schedule) -> tuple[bytes, str]:
        """The picture with this schedule, and what is on it in words."""
        from cosmos3_lab.widget_canvas import MovingFigure

        if self.moving is None:
            figure = plot_schedules({NOW + _name(now): now} | self.kept)
            self.limits = _set_limits(figure)
            self.moving = MovingFigure(figure, [*(ax.lines[0] for ax in figure.axes), *figure.legends])
        _show_first(self.moving.figure, now)
        limits = _set_limits(self.moving.figure)
        if limits != self.limits:
            self.limits = limits
            self.moving.draw_background()
        return self.moving.png(), self.moving.figure.alt_text

    def keep(self, schedule: Schedule) -> None:
        """Keep a curve; the oldest makes room."""
        self.kept.pop(_name(schedule), None)
        for oldest in list(self.kept)[: len(self.kept) + 2 - MOST_CURVES]:
            del self.kept[oldest]
        self.kept[_name(schedule)] = schedule
        self.moving = None

    def forget(self) -> None:
        """Keep none."""
        self.kept.clear()
        self.moving = None


def schedule_is_shown(start: Schedule, name: str, shift: float | None) -> bool:
    """Whether the sliders alone make this schedule, so that it needs no curve of its own.

    Args:
        start: the schedule.
        name, shift: where the sliders stand.
    """
    return bool(np.allclose(_made(start.num_steps, name, shift).sigmas, start.sigmas, atol=1e-6))


def _made(steps: int, name: str, shift: float | None) -> Schedule:
    if name == "karras":
        return karras_schedule(steps)
    return flow_schedule(steps, flow_shift=shift or NANO_SHIFT, variant=name)


def _show_first(figure: "LabFigure", schedule: Schedule) -> None:
    """Move the first curve of each panel to this schedule."""
    level, clock, size = figure.axes
    sigmas = as_array(schedule.sigmas)
    steps = np.arange(len(sigmas))
    level.lines[0].set_data(steps, sigmas)
    clock.lines[0].set_data(steps[:-1], as_array(log_snr(schedule.sigmas[:-1])))
    size.lines[0].set_data(steps[:-1], -np.diff(sigmas))
    names = figure.legends[0].get_texts()
    names[0].set_text(NOW + _name(schedule))
    figure.alt_text = f"Sigma, log-SNR and step size over the steps of {', '.join(name.get_text() for name in names)}."


def _set_limits(figure: "LabFigure") -> tuple[float, ...]:
    """Round limits that hold all curves: they stay for most moves of a slider, which is quick, and calm to look at.

    Returns:
        The last step, the ends of log-SNR, and the largest step size on the axes.
    """
    level, clock, size = figure.axes
    steps = max(curve.get_xdata()[-1] for curve in level.lines)
    values = np.concatenate([curve.get_ydata() for curve in clock.lines])
    values = values[np.isfinite(values)]  # infinite where sigma is 1
    most = 10 * -(-steps // 10) if steps > 10 else 10
    low, high = 2 * np.floor(values.min(initial=0) / 2), 2 * np.ceil(values.max(initial=0) / 2 + 0.1)
    largest = round_up(max(float(curve.get_ydata().max()) for curve in size.lines))
    for ax in figure.axes:
        ax.set_xlim(-0.03 * most, 1.03 * most)
    clock.set_ylim(low - 0.5, high)
    size.set_ylim(0, 1.03 * largest)
    return float(most), float(low), float(high), largest


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
