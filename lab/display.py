"""What a page shows besides its figures."""

from __future__ import annotations

import inspect
from typing import Any

from IPython.display import Code, display


def show_source(*things: Any) -> None:
    """Show the library's own source of functions or classes, so that a page never retypes a formula."""
    for thing in things:
        display(Code(inspect.getsource(thing), language="python"))
