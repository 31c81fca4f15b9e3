"""The runs that the notebooks sweep over, one module a notebook; a run is a function from plain values to arrays.

A run must be a function of a module, not of a notebook: other processes import it, here or, with ``KADAM_CLUSTER``, on
other machines. It declares a name, under which its records are kept wherever its code lies, and the data set that it
reads; one of files is looked for in ``KADAM_DATA``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., dict[str, Any]])


@dataclass(frozen=True)
class Run:
    """A declared run.

    Attributes:
        name: under which its records are kept, for ever.
        function: what computes it; its module and name may change.
        data: the data set that it reads, or None.
        short: arguments that make it short, a second or so: too few steps for rounding to grow. A value, or a function
            of the argument in a real run.
        corners: further arguments, in place of those of a short run, that reach what real runs may come to and short
            ones do not, such as a run that diverges at once. The audit computes them too.
        timed: whether it measures time, which nobody can repeat to the last bit.
    """

    name: str
    function: Callable[..., dict[str, Any]]
    data: str | None
    short: Mapping[str, Any]
    corners: tuple[Mapping[str, Any], ...]
    timed: bool

    def __reduce__(self) -> tuple[Any, ...]:
        # another process imports the declaration; what makes it short need not travel
        return _imported, _place(self.function)

    def shortened(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a real run, cut short."""
        cut = {
            name: value(arguments[name]) if callable(value) else value
            for name, value in self.short.items()
            if not callable(value) or name in arguments
        }
        return {**arguments, **cut}


def _imported(module: str, function: str) -> Run:
    return declared(getattr(importlib.import_module(module), function))


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


RUNS: dict[str, Run] = {}


def run(
    name: str, *, short: Mapping[str, Any], corners: Sequence[Mapping[str, Any]] = (), data: str | None = None,
    timed: bool = False,
) -> Callable[[Function], Function]:  # fmt: skip
    """Declare a function as the run ``name``; see ``Run``.

    Raises:
        ValueError: another function has the name.
    """

    def mark(function: Function) -> Function:
        known = RUNS.get(name)
        if known and _place(known.function) != _place(function):
            raise ValueError(f"name: {name!r} (is the run {'.'.join(_place(known.function))})")
        RUNS[name] = function.declared = Run(name, function, data, short, tuple(corners), timed)  # type: ignore[attr-defined]
        return function

    return mark


def declared(function: Callable[..., dict[str, Any]]) -> Run:
    """The declaration of a run.

    Raises:
        TypeError: the function is not declared as one.
    """
    found = getattr(function, "declared", None)
    if not isinstance(found, Run):
        raise TypeError(f"run: {function!r} (must be declared by lab.experiments.run)")
    return found


def all_runs() -> dict[str, Run]:
    """Every declared run, by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(RUNS.items()))
