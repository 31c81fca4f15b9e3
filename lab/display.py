"""What a page shows besides its figures: tables, and the library's own source."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from IPython.display import Code, display


class Table:
    """A table for readers: HTML in a notebook, aligned text elsewhere; with a ``note`` below it, or ""."""

    def __init__(self, header: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "") -> None:
        self.frame = pd.DataFrame([[str(cell) for cell in row] for row in rows], columns=list(header))
        self.note = note

    def _repr_html_(self) -> str:
        shown = self.frame.to_html(index=False, border=0, justify="left")
        return shown + (f"\n<p><small>{_emphasised(self.note)}</small></p>" if self.note else "")

    def __repr__(self) -> str:
        left = {name: f"{{:<{max([len(name), *self.frame[name].str.len()])}}}".format for name in self.frame}
        text = self.frame.to_string(index=False, justify="left", formatters=left, max_colwidth=None)
        return text + (f"\n{self.note}" if self.note else "")


def _emphasised(text: str) -> str:
    parts = text.split("*")
    return "".join(f"<em>{part}</em>" if i % 2 else part for i, part in enumerate(parts))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "") -> None:
    """Show a table of a few columns; cells are shown as they print, so give numbers their format."""
    display(Table(header, rows, note))


def show_source(*things: Any) -> None:
    """Show the library's own source of functions or classes, so that a page never retypes a formula."""
    for thing in things:
        display(Code(inspect.getsource(thing), language="python"))
