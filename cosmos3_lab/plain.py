"""Frozen records as JSON and tensors, and back: what trees and traces write to disk. Settings in a few words.

    tensors = {}
    text = json.dumps(to_plain(request, tensors))        # numbers and words; the tensors are collected beside it
    request = from_plain(json.loads(text), tensors, records=(Cosmos3T2VRequest, Preset, Latents))

Only the records that the reader names are made, and only from fields that they have: a file cannot ask for anything else.

Read next: `tree_files.py`, `trace.py`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cosmos3_lab.guidance_scale import Guidance, GuidanceInterval, scale_words
from cosmos3_lab.presets import Preset
from cosmos3_lab.schedule import Schedule
from cosmos3_lab.untrusted import CheckpointError, parse_object, read_text

MAX_JSON = 64_000_000  # bytes of a file; each step of a tree takes about one thousand


def to_plain(value: Any, tensors: dict[str, Tensor], *, at: str = "value") -> Any:  # noqa: ANN401  (a field is anything)
    """A value as JSON has it.

    Args:
        value: None, a number (of NumPy too), text, a tensor, or a tuple, list, mapping by text or frozen record of such.
        tensors: gets every tensor, under the place where it stood.
        at: place of the value.

    Raises:
        ValueError: something else is in it, such as a function.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[at] = value
        return {"tensor": at}
    if is_dataclass(value):
        inside = {f.name: to_plain(getattr(value, f.name), tensors, at=f"{at}.{f.name}") for f in fields(value)}
        return {"record": type(value).__name__, "fields": inside}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"map": {key: to_plain(v, tensors, at=f"{at}.{key}") for key, v in value.items()}}
    if isinstance(value, tuple | list):
        items = [to_plain(v, tensors, at=f"{at}.{i}") for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise ValueError(f"got a {type(value).__name__} at {at}, expected what a file can hold: numbers, text, tensors, records")


def from_plain(plain: Any, tensors: Mapping[str, Tensor], *, records: Sequence[type]) -> Any:  # noqa: ANN401
    """The value that `to_plain` took apart.

    Args:
        plain: as read from JSON.
        tensors: by place.
        records: classes that may be made.

    Raises:
        ValueError: it names a tensor that is missing, a record that is not allowed or other fields than that has.
    """
    if isinstance(plain, list):
        return [from_plain(v, tensors, records=records) for v in plain]
    if not isinstance(plain, Mapping):
        return plain
    match plain:
        case {"tensor": str(at)} if at in tensors:
            return tensors[at]
        case {"tuple": list(items)}:
            return tuple(from_plain(v, tensors, records=records) for v in items)
        case {"map": Mapping() as items}:
            return {key: from_plain(v, tensors, records=records) for key, v in items.items()}
        case {"record": str(name), "fields": Mapping() as inside}:
            found = {cls.__name__: cls for cls in records}
            if name not in found:
                raise ValueError(f"got a record {name!r}, expected one of {', '.join(found)}")
            made = {key: from_plain(v, tensors, records=records) for key, v in inside.items()}
            try:
                return found[name](**made)
            except TypeError as error:
                raise ValueError(f"got a {name} with the fields {', '.join(made)}: {error}") from error
    raise ValueError(f"got {json.dumps(plain)[:80]}, which is not what this package writes")


def in_words(value: Any) -> str:  # noqa: ANN401
    """A setting in a few words, such as "6", "UniPC 3", "karras"; prompts as they are.

    Args:
        value: of an argument of `prepare_request`, `prepare_denoise` or `fork`.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Preset | Schedule):
        return value.name
    if isinstance(value, float | list | tuple | Guidance | GuidanceInterval) or callable(value):
        return scale_words(value)
    return str(value)


def read_json(path: str | Path, *, format: str, version: int) -> dict[str, Any]:
    """A JSON object of this package's.

    Args:
        path: of the file.
        format: what its "format" should say.
        version: what its "version" should be at most.

    Raises:
        ValueError: it cannot be read, is something else, or was written by a later version.
    """
    try:
        values = parse_object(read_text(Path(path), most=MAX_JSON), f"{path}")
    except CheckpointError as error:
        raise ValueError(f"{path} is not a readable {format} file: {error}") from error
    if values.get("format") != format:
        raise ValueError(f"{path} is not a {format} file of cosmos3_lab")
    if not isinstance(values.get("version"), int) or not 1 <= values["version"] <= version:
        raise ValueError(f"{path} has version {values.get('version')!r}, expected 1 to {version}; try a later cosmos3_lab")
    return values
