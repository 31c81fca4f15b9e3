"""The runs that the notebooks sweep over, one module a notebook; a run is a function from numbers to arrays.

A run must be a function of a module, not of a notebook: other processes import it, here or, with ``KADAM_CLUSTER``, on
other machines. One that reads a data set says so (``uses``); one of files is looked for in ``KADAM_DATA``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Run = TypeVar("Run", bound=Callable[..., dict[str, Any]])


def uses(name: str) -> Callable[[Run], Run]:
    """Mark a run as computed from the data set ``name``, whose checksum becomes part of its key."""

    def mark(run: Run) -> Run:
        run.data = name  # type: ignore[attr-defined]
        return run

    return mark
