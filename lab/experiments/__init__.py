"""The runs that the notebooks sweep over, one module a notebook; a run is a function from numbers to arrays."""

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
