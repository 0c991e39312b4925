"""How an answer is checked: property by property, until one fails, and never with a traceback for a learner's mistake.

Read next: `quickstart.py`, the exercises of notebook 00.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from importlib import import_module
from typing import Any

MODULES = {
    "00": "quickstart",
    "01": "tokens",
    "02": "latents",
    "03": "schedules",
    "04": "towers",
    "05": "guidance",
    "06": "solver",
    "07": "decoding",
    "08": "video",
    "09": "sound",
    "10": "exploring",
    "11": "lens",
    "12": "training",
    "13": "solver_lab",
}
GREEN, ORANGE = "#009E73", "#D55E00"  # Okabe and Ito's, on light and on dark


class PropertyError(Exception):
    """A property that an answer should have and has not; the message says which, and what was found."""


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        name: number of the notebook, a dot, number of the exercise.
        hint: how to begin, in a sentence or two.
        test: takes the answer; raises `PropertyError` through `expect`.
    """

    name: str
    hint: str
    test: Callable[[Any], None]


@dataclass(frozen=True)
class Verdict:
    """What `check` found.

    Attributes:
        name: of the exercise.
        passed: whether every property holds.
        message: what is right, what fails, or that nothing was given yet.
    """

    name: str
    passed: bool
    message: str

    def __repr__(self) -> str:
        return f"{self.name} {'passed' if self.passed else 'not yet'}: {self.message}"

    def _repr_html_(self) -> str:
        mark, colour = ("&#10003; passed", GREEN) if self.passed else ("not yet", ORANGE)
        label = f'<b style="color: {colour}">{escape(self.name)} {mark}</b>'
        return f'<div style="border-left: 4px solid {colour}; padding-left: 0.8em">{label}<br>{_as_html(self.message)}</div>'


@dataclass(frozen=True)
class Hint:
    """How to begin."""

    name: str
    message: str

    def __repr__(self) -> str:
        return f"{self.name} hint: {self.message}"

    def _repr_html_(self) -> str:
        return f'<div style="padding-left: 0.8em"><b>{escape(self.name)} hint</b><br>{_as_html(self.message)}</div>'


def _as_html(text: str) -> str:
    """Escaped, and what stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


EXERCISES: dict[str, Exercise] = {}  # filled once, by the decorator, as the modules are imported


def exercise(name: str, *, hint: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a test as an exercise.

    Args:
        name: such as "03.1".
        hint: how to begin.
    """

    def register(test: Callable[[Any], None]) -> Callable[[Any], None]:
        EXERCISES[name] = Exercise(name, hint, test)
        return test

    return register


def expect(holds: bool, message: str) -> None:
    """Go on if a property holds.

    Args:
        holds: whether it does.
        message: what fails, with what was found and what was expected.

    Raises:
        PropertyError: it does not.
    """
    if not holds:
        raise PropertyError(message)


def call(function: Any, *arguments: Any) -> Any:  # noqa: ANN401  (an answer is anything)
    """What a learner's function returns.

    Args:
        function: the answer.
        arguments: to call it with.

    Raises:
        PropertyError: it is no function, or returns nothing yet.
    """
    expect(callable(function), f"got {type(function).__name__}, expected a function.")
    result = function(*arguments)
    expect(result is not None and result is not ..., "the function returns nothing yet, expected a `return` with a value.")
    return result


def check(name: str, answer: Any, *, strict: bool = False) -> Verdict:  # noqa: ANN401  (an answer is anything)
    """Check an answer.

    Args:
        name: of the exercise, such as "03.1".
        answer: a value or a function, as the exercise asks; None if there is none yet.
        strict: raise if it is wrong, for the solutions.

    Raises:
        ValueError: there is no such exercise.
        AssertionError: the answer is wrong and `strict` is set.
    """
    found = find(name)
    if answer is None or answer is ...:
        verdict = Verdict(name, False, f"nothing was given yet; hint({name!r}) helps to begin.")
    else:
        verdict = _judge(found, answer)
    if strict and not verdict.passed:
        raise AssertionError(repr(verdict))
    return verdict


def _judge(found: Exercise, answer: Any) -> Verdict:  # noqa: ANN401
    try:
        found.test(answer)
    except PropertyError as failed:
        return Verdict(found.name, False, str(failed))
    except Exception as error:  # (whatever a learner's code raises is what the learner wants to know)
        return Verdict(found.name, False, f"the answer could not be used: {type(error).__name__}: {error}")
    return Verdict(found.name, True, found.test.__doc__ or "")


def hint(name: str) -> Hint:
    """How to begin with an exercise.

    Args:
        name: such as "03.1".

    Raises:
        ValueError: there is no such exercise.
    """
    return Hint(name, find(name).hint)


def find(name: str) -> Exercise:
    """The exercise of this name; its notebook's module is imported where needed.

    Args:
        name: such as "03.1".

    Raises:
        ValueError: there is no such exercise.
    """
    number = name.split(".")[0]
    if number in MODULES:
        import_module(f"cosmos3_lab.exercises.{MODULES[number]}")
    if name not in EXERCISES:
        known = [n for n in sorted(EXERCISES) if n.startswith(f"{number}.")]
        raise ValueError(f"got exercise {name!r}, expected one of {known or [f'{n}.1' for n in MODULES]}")
    return EXERCISES[name]
