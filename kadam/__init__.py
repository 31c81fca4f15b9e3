"""k-Adam for PyTorch and the theory behind it (Gould & Tanaka, arXiv 2411.05746).

``kadam.KAdam`` is the optimizer; ``kadam.stability`` has the bounds on its updates; ``kadam.flow`` is its model in
continuous time, which ``kadam.integrate`` solves; ``kadam.invariance`` has the norm laws of scale-invariant weights;
``kadam.ensemble`` makes many runs at once; ``kadam.update`` is the formula itself. Of the modules, ``ensemble`` and
``stability`` come with ``import kadam``; the others are imported by name, ``from kadam import flow``.
"""

from kadam import ensemble, stability
from kadam._version import VERSION
from kadam.optimizer import KAdam
from kadam.stages import SCHEDULES, make_stages

__version__ = VERSION
__all__ = ["SCHEDULES", "KAdam", "ensemble", "make_stages", "stability"]
