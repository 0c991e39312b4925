"""Records that show themselves: the one line in a record's class, so that a notebook shows more than its `repr`.

The tables and pictures are made by `reprs.py`, which imports every record and matplotlib; it is looked up by name when a
record is shown for the first time, so that nothing below depends on it.

Read next: `reprs.py`.
"""

from importlib import import_module
from typing import Any


class Shown:
    """Base of the records that a notebook shows as a table, statistics and a small picture. Printed, they are their `repr`."""

    __slots__ = ()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:  # noqa: ANN401  (IPython's call)
        return import_module("cosmos3_lab.reprs").mimebundle(self)
