"""Reading a `config.json` into a dataclass, with every value checked against the field's type."""

from collections.abc import Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_origin


def read_fields(cls: type, config: Mapping[str, Any], *, file: str) -> dict[str, Any]:
    """The values of `config` that are fields of the dataclass `cls`; null and absent keys are left to the defaults.

    Args:
        cls: a dataclass whose fields are int, float, bool, str, a tuple of those, or one of them or None.
        config: the parsed JSON object.
        file: its name, for messages.

    Raises:
        ValueError: a value has another type; names file and key.
    """
    return {
        f.name: _checked(config[f.name], f.type, f"{file} has {f.name} = {config[f.name]!r}")
        for f in fields(cls)
        if config.get(f.name) is not None
    }


def _checked(value: Any, wanted: Any, what: str) -> Any:  # noqa: ANN401  (JSON values)
    options = [option for option in get_args(wanted) if option is not NoneType]
    if get_origin(wanted) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{what}, expected a list")
        return tuple(_checked(item, options[0], what) for item in value)
    wanted = options[0] if options else wanted
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise ValueError(f"{what}, expected {wanted.__name__}")
    return value
