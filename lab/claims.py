"""Claims: predicted before the experiment, judged by a rule that nobody can bend afterwards.

A page predicts every claim, with the interval of values that it accepts, and later judges it by the measured
value and its confidence interval. The verdict follows from the numbers:

=============  ==========================================================================
kind           verdict
=============  ==========================================================================
theorem        ``holds`` if the measured value (its whole interval) is accepted, else ``VIOLATED``
parity         likewise; two implementations of one thing must agree
control        a setting in which the claim must fail: ``fails, as it must`` if the measured value
               is not accepted, else ``CONTROL BROKEN``
replication    the words in ``held`` if the whole interval is accepted, ``not reproduced`` if none of it
               is, ``inconclusive`` if a part is, ``too few seeds`` below ``min_seeds``
=============  ==========================================================================

Theorems, parities and controls must come out; a replication may fail, and its failure is a result.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lab.files import write_json

KINDS = ("theorem", "parity", "control", "replication")
HELD = ("reproduced", "reproduced at small scale", "refined")
BROKEN = ("VIOLATED", "CONTROL BROKEN")


class ClaimError(ValueError):
    """A claim is used against the rules: judged before it was predicted, predicted twice, never judged."""


@dataclass(frozen=True)
class Claim:
    """One claim. ``predicted`` and ``accept`` are fixed before the experiment; ``None`` bounds are open.

    ``decimals`` is how many of the measured value a page prints where another machine must print the same.
    """

    name: str
    statement: str
    source: str
    kind: str
    predicted: float | None
    accept: tuple[float | None, float | None]
    held: str
    min_seeds: int
    decimals: int
    measured: float | None = None
    interval: tuple[float, float] | None = None
    seeds: int | None = None
    verdict: str | None = None

    @property
    def must_hold(self) -> bool:
        return self.kind != "replication"

    @property
    def broken(self) -> bool:
        return self.verdict in BROKEN

    def judged(self, measured: float, interval: tuple[float, float] | None, seeds: int | None) -> Claim:
        """The claim with its numbers and the verdict that follows from them."""
        if self.kind == "replication" and interval is None:
            raise ClaimError(f"{self.name}: a replication is judged by its interval, and none was given")
        low, high = interval or (measured, measured)
        if not math.isfinite(measured):
            raise ClaimError(f"{self.name}: measured {measured!r} (must be finite)")
        if not low <= measured <= high:
            raise ClaimError(f"{self.name}: measured {measured!r} lies outside its interval {interval!r}")
        return replace(self, measured=float(measured), interval=interval and (float(low), float(high)), seeds=seeds,
                       verdict=self._verdict(low, high, seeds))  # fmt: skip

    def _verdict(self, low: float, high: float, seeds: int | None) -> str:
        least = -math.inf if self.accept[0] is None else self.accept[0]
        most = math.inf if self.accept[1] is None else self.accept[1]
        inside = least <= low and high <= most
        outside = high < least or low > most
        if self.kind == "control":
            return "fails, as it must" if outside else "CONTROL BROKEN"
        if self.kind in ("theorem", "parity"):
            return "holds" if inside else "VIOLATED"
        if (seeds or 0) < self.min_seeds:
            return "too few seeds"
        return self.held if inside else "not reproduced" if outside else "inconclusive"


class Page:
    """The claims of one notebook. When the runner set ``KADAM_OUTPUT``, they are written there as they are judged."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.claims: dict[str, Claim] = {}

    def predict(
        self,
        name: str,
        statement: str,
        *,
        source: str,
        accept: tuple[float | None, float | None],
        predicted: float | None = None,
        kind: str = "replication",
        held: str = "reproduced at small scale",
        min_seeds: int = 3,
        decimals: int = 3,
    ) -> None:
        """State a claim and the values that will count as its success, before the experiment.

        Raises:
            ClaimError: the name is taken, a word is not one of the allowed, or the accepted values are empty
                or do not contain the predicted one.
        """
        if name in self.claims:
            raise ClaimError(f"{name}: predicted twice")
        if any(claim.verdict is not None for claim in self.claims.values()):
            raise ClaimError(f"{name}: predicted after another claim was judged (all predictions come first)")
        if kind not in KINDS:
            raise ClaimError(f"{name}: kind {kind!r} (must be one of {', '.join(KINDS)})")
        if held not in HELD:
            raise ClaimError(f"{name}: held {held!r} (must be one of {', '.join(HELD)})")
        low, high = (-math.inf if accept[0] is None else accept[0], math.inf if accept[1] is None else accept[1])
        if not low <= high or accept == (None, None):
            raise ClaimError(f"{name}: accept {accept!r} (must be (low, high), one of which may be None)")
        if predicted is not None and not low <= predicted <= high:
            raise ClaimError(f"{name}: predicted {predicted!r} is not in accept {accept!r}")
        self.claims[name] = Claim(name, statement, source, kind, predicted, accept, held, min_seeds, decimals)

    def judge(
        self, name: str, measured: float, interval: tuple[float, float] | None = None, seeds: int | None = None
    ) -> None:
        """Judge a predicted claim, once; ``interval`` is its 95 % confidence interval.

        Raises:
            ClaimError: the claim was not predicted or is judged already, or the numbers are not finite.
        """
        if name not in self.claims:
            raise ClaimError(f"{name}: judged without a prediction (call predict before the experiment)")
        if self.claims[name].verdict is not None:
            raise ClaimError(f"{name}: judged twice")
        self.claims[name] = self.claims[name].judged(measured, interval, seeds)
        output = os.environ.get("KADAM_OUTPUT")
        if output:
            write_json(Path(output) / "claims.json", [asdict(claim) for claim in self.claims.values()])

    def verdicts(self) -> None:
        """Print the verdicts; what has no interval is rounded, so that another machine prints the same.

        Raises:
            ClaimError: a predicted claim was never judged.
        """
        for claim in self.claims.values():
            if claim.verdict is None:
                raise ClaimError(f"{claim.name}: predicted, never judged")
            shown = f"{claim.measured:.{claim.decimals}f}" if claim.interval is None else measured(claim)
            if claim.verdict == "too few seeds":
                shown = "-"
            print(
                f"{claim.name:<20} {claim.kind:<12} accepts {accepted(claim):<16} measured {shown:<32} {claim.verdict}"
            )


def accepted(claim: Claim) -> str:
    """The accepted values as a table shows them: ``≥ a``, ``≤ b``, ``p ± h`` about the prediction, or ``a … b``."""
    low, high = claim.accept
    if low is not None and high is not None and claim.predicted == (low + high) / 2:
        return f"{claim.predicted:g} ± {(high - low) / 2:.4g}"
    if low is None:
        return f"≤ {high:.10g}"
    if high is None:
        return f"≥ {low:.10g}"
    return f"{low:g} … {high:g}"


def measured(claim: Claim) -> str:
    """Measured value with its interval."""
    value = f"{claim.measured:.4g}"
    return value if claim.interval is None else f"{value} [{claim.interval[0]:.4g}, {claim.interval[1]:.4g}]"
