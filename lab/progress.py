"""Progress of long computations: a bar for a person in Jupyter, lines for the notebook runner, else nothing.

The runner sets ``KADAM_PROGRESS`` to a file and shows its last line; ``off`` means silence. Nothing of it gets into
the outputs that a notebook keeps.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import TracebackType

from tqdm.auto import tqdm


class Meter:
    """Counts runs up to ``total``, of which ``found`` were there already; a context manager."""

    def __init__(self, label: str, total: int, found: int = 0) -> None:
        self.label, self.total, self.done, self.found = label, total, 0, found
        self.start = time.monotonic()
        target = os.environ.get("KADAM_PROGRESS", "")
        self.file = Path(target) if target not in ("", "off") else None
        interactive = target == "" and hasattr(sys, "ps1")
        self.bar = tqdm(total=total, desc=label, leave=False) if interactive else None

    def advance(self, runs: int) -> None:
        """Count ``runs`` more as done."""
        self.done += runs
        if self.bar is not None:
            self.bar.update(runs)
        if self.file is not None:
            self.file.write_text(self._line())

    def _line(self) -> str:
        line = f"{self.label}: {self.done} of {self.total} runs"
        fresh = self.done - self.found
        if fresh > 0 and self.done < self.total:
            left = (time.monotonic() - self.start) / fresh * (self.total - self.done)
            line += f", about {left / 60:.0f} min left" if left > 90 else f", about {left:.0f} s left"
        return line

    def __enter__(self) -> Meter:
        self.advance(self.found)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
