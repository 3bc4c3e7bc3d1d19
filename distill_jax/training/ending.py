"""When a run ends, and which of its states it returns."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

from distill_jax import _checks


class Decision(NamedTuple):
    """What the evaluations so far say.

    Attributes:
      stop: Whether training is to end.
      best: The step of the best state, of ties the latest; None if no figure is finite.
    """

    stop: bool
    best: int | None


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Ends training once a figure that ``evaluate`` returns has stopped improving.

    ``fit`` looks at it after every evaluation. What it decides depends on these figures alone, and
    checkpoints hold them: a run that was interrupted ends at the same step as one that was not. If
    the same call is made again after it ended, it takes no further step; with more patience, it
    goes on.

    Attributes:
      metric: The name of a number that ``evaluate`` returns, ``"accuracy"`` for example.
      better: Whether a "higher" or a "lower" one is better.
      patience: Evaluations in a row without an improvement after which training ends; None never
        ends it, for ``restore_best`` alone.
      min_delta: How much better than the best one a figure must be to count as an improvement.
      restore_best: Whether ``fit`` returns the state whose figure was best (of ties the latest), in
        place of the last one. It is copied on the device; with checkpoints it is read from them,
        and they must keep it: ``Checkpoints(folder, best=metric, better=...)``.

    Example:
      >>> stop = EarlyStopping("nll", better="lower", patience=2)
      >>> stop.decide([(10, 0.9), (20, 0.5), (30, 0.6)])
      Decision(stop=False, best=20)
      >>> stop.decide([(10, 0.9), (20, 0.5), (30, 0.6), (40, 0.5)])
      Decision(stop=True, best=40)
    """

    metric: str
    _: dataclasses.KW_ONLY
    better: Literal["higher", "lower"]
    patience: int | None
    min_delta: float = 0.0
    restore_best: bool = False

    made_by: ClassVar[str] = 'training.EarlyStopping("accuracy", better="higher", patience=5)'

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str):
            raise TypeError(f"metric must be the name of a metric, got {self.metric!r}")
        _checks.choice(("higher", "lower"), better=self.better)
        if self.patience is not None:
            object.__setattr__(self, "patience", _checks.count("patience", self.patience))
        if not isinstance(self.min_delta, numbers.Real):
            raise TypeError(f"min_delta must be a number, got {self.min_delta!r}")
        _checks.at_least(0.0, min_delta=self.min_delta)
        if not isinstance(self.restore_best, bool):
            raise TypeError(f"restore_best must be True or False, got {self.restore_best!r}")
        if self.patience is None and not self.restore_best:
            raise ValueError(
                "patience must be a number of evaluations, got None, which never ends training: "
                "that is for restore_best=True"
            )

    def decide(self, figures: Sequence[tuple[int, float]]) -> Decision:
        """What to do after some evaluations: a pure function of their ``(step, figure)``.

        A figure that is NaN is no improvement, and one that is not finite never the best.
        """
        sign = 1.0 if self.better == "higher" else -1.0
        reference = top = -math.inf
        waited, best = 0, None
        for step, figure in figures:
            value = sign * figure
            if value > reference + self.min_delta:
                reference, waited = value, 0
            else:
                waited += 1
            if math.isfinite(value) and value >= top:
                top, best = value, step
        return Decision(self.patience is not None and waited >= self.patience, best)
