"""Values from outside: a `config.json` read into a dataclass with every value checked, and arguments checked by name."""

import math
import operator
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_origin

from cosmos3_lab.untrusted import CheckpointError


def check_choice(name: str, value: object, choices: Any) -> None:  # noqa: ANN401  (a Literal type)
    """Refuse a value that is none of a Literal's.

    Args:
        name: of the argument, for the message.
        value: given.
        choices: a `Literal[...]` type.

    Raises:
        ValueError: with the choices in the message.
    """
    if not isinstance(value, str) or value not in get_args(choices):
        raise ValueError(f"got {name}={shown(value)}, expected one of {', '.join(map(repr, get_args(choices)))}")


def whole_number(name: str, value: Any, low: int | None = 1, high: int | None = None) -> int:  # noqa: ANN401  (JSON, NumPy, ...)
    """A whole number in a range, as Python's int; NumPy's are taken too, `True` and 3.0 are not.

    Args:
        name: of the argument, for the message.
        value: given.
        low, high: the range, ends included; None for no end.

    Raises:
        ValueError: not a whole number, or out of range.
    """
    number = None if isinstance(value, bool) else _as_number(value, operator.index)
    if number is None or (low is not None and number < low) or (high is not None and number > high):
        wanted = "" if low is None else f" of at least {low}" if high is None else f" from {low} to {high}"
        raise ValueError(f"got {name} {shown(value)}, expected a whole number{wanted}")
    return number


def real_number(name: str, value: Any, wanted: str = "a finite number") -> float:  # noqa: ANN401  (JSON, NumPy, ...)
    """A finite number as Python's float; NumPy's are taken too, `True` and "24" are not.

    Args:
        name: of the argument, for the message.
        value: given.
        wanted: what was expected, for the message.

    Raises:
        ValueError: not a number, or not finite.
    """
    number = None if isinstance(value, bool | str | bytes) else _as_number(value, float)
    if number is None or not math.isfinite(number):
        raise ValueError(f"got {name} {shown(value)}, expected {wanted}")
    return number


def _as_number(value: Any, convert: Any) -> Any:  # noqa: ANN401
    if getattr(value, "dtype", None) is not None and "bool" in str(value.dtype):
        return None
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # an array or tensor of several numbers, a text, 10 ** 400
        return None


def shown(value: object) -> str:
    """A value in a message: `24.0` rather than `np.float64(24.0)`, and never pages of it."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    text = repr(value.item() if getattr(value, "ndim", None) == 0 else value)
    return text if len(text) <= 60 else f"{text[:50]}..."


LARGEST = 2**31  # no size, rate or count in a config comes near it


def read_fields(
    cls: type, config: Mapping[str, Any], *, file: str, signed: tuple[str, ...] = (), required: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The values of `config` that are fields of the dataclass `cls`; null and absent keys are left to the defaults.

    Args:
        cls: a dataclass whose fields are int, float, bool, str, a tuple of those, or one of them or None.
        config: the parsed JSON object.
        file: its name, for messages.
        signed: fields whose numbers may be zero or negative; all others must be above zero.
        required: fields that must be there: a default would load and then compute something else.

    Raises:
        CheckpointError: a value is missing, has another type or is out of range; names file and key.
    """
    missing = [name for name in required if config.get(name) is None]
    if missing:
        raise CheckpointError(f"{file} lacks {missing[0]}; copy it again from the checkpoint")
    found = {}
    for f in fields(cls):
        if config.get(f.name) is not None:
            what = f"{file} has {f.name} = {repr(config[f.name])[:100]}"
            found[f.name] = _checked(config[f.name], f.type, what)
            for number in found[f.name] if isinstance(found[f.name], tuple) else (found[f.name],):
                _check_range(number, what, signed=f.name in signed)
    return found


def _check_range(value: Any, what: str, *, signed: bool) -> None:  # noqa: ANN401  (JSON values)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not abs(value) <= LARGEST or (value <= 0 and not signed):  # also refuses NaN
        raise CheckpointError(f"{what}, expected {'a number' if signed else 'a number above 0'} and not beyond {LARGEST}")


def _checked(value: Any, wanted: Any, what: str) -> Any:  # noqa: ANN401  (JSON values)
    options = [option for option in get_args(wanted) if option is not NoneType]
    if get_origin(wanted) is tuple:
        if not isinstance(value, list):
            raise CheckpointError(f"{what}, expected a list")
        return tuple(_checked(item, options[0], what) for item in value)
    wanted = options[0] if options else wanted
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(min(max(value, -2 * LARGEST), 2 * LARGEST))  # an integer beyond float's range is refused a line later
    if type(value) is not wanted:
        raise CheckpointError(f"{what}, expected {wanted.__name__}")
    return value
