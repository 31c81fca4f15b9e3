"""One look for all figures: colours that the colour-blind can tell apart, theory in black and dashed."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import Image, Markdown, display
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike

PALETTE = sns.color_palette("colorblind")
STABLE, UNSTABLE = PALETTE[0], PALETTE[1]
THEORY: dict[str, Any] = dict(color="black", linestyle="--", linewidth=1.2)


def style() -> None:
    """Set the figure style; call once a page."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rcParams.update(
        {"figure.dpi": 90, "savefig.dpi": 150, "figure.constrained_layout.use": True, "axes.spines.top": False,
         "axes.spines.right": False, "legend.frameon": False, "font.size": 10, "axes.labelsize": 10,
         "axes.titlesize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
         "legend.title_fontsize": 9}
    )  # fmt: skip


def band(ax: Axes, x: ArrayLike, runs: ArrayLike, **line: Any) -> None:
    """Median over the first axis of ``runs``, shape (seeds, len(x)), with a band from least to largest."""
    values = np.asarray(runs)
    (drawn,) = ax.plot(x, np.median(values, axis=0), **line)
    ax.fill_between(x, values.min(axis=0), values.max(axis=0), color=drawn.get_color(), alpha=0.25, linewidth=0)


def plain_log(axis: Axis, ticks: Sequence[float]) -> None:
    """A logarithmic axis that reads 0.2, 0.5, 1 in place of powers of ten."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def save(figure: Figure, name: str, caption: str, alt: str, page: Any = None) -> None:
    """Show a figure with its caption, and write ``name``.png to the results when the runner asks for them.

    Args:
        figure: is closed.
        name: of the file.
        caption: Markdown that can be read alone, and states the finding.
        alt: what a reader who cannot see the figure must know; one or two sentences.
        page: the ``lab.claims.Page`` whose first screen shows the figure, in place of this cell.

    Raises:
        ValueError: caption or alt is empty.
    """
    if not caption.strip() or not alt.strip():
        raise ValueError(f"{name}: caption and alt (must not be empty)")
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    plt.close(figure)
    output = os.environ.get("KADAM_OUTPUT")
    if output:
        folder = Path(output) / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(written.getvalue())
    width = round(figure.get_figwidth() * figure.get_dpi())
    image = Image(data=written.getvalue(), format="png", width=width, alt=alt)
    if page is None:
        display(image, Markdown(f"*{caption}*"))
    else:
        page.figure = image, Markdown(f"*{caption}*")
