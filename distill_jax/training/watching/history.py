"""The metrics of a run, read from the device one call late.

Steps are counted as logs count them: by the number of optimizer steps taken, 1 after the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax.objectives import Objective
from distill_jax.training.watching import logs as logs_
from distill_jax.training.watching._figures import Figures, as_scalars


class NonFiniteLoss(FloatingPointError):
    """A loss became NaN or infinite, or parameters did in a step whose losses are finite.

    A term of weight 0 may be either without being an error.

    Attributes:
      step: The step in which it did, an integer. The first step is 1, as in logs.
      terms: Names of the terms that are not finite and have a weight other than 0; none if it was
        parameters.
      history: Metrics up to that step, ``[steps]`` each.
    """

    def __init__(self, message: str, step: int, terms: list[str], history: dict[str, np.ndarray]):
        super().__init__(message)
        self.step, self.terms, self.history = step, terms, history


class History:
    """Metrics per step. Those of the latest call stay on the device until the next has started."""

    def __init__(
        self, start: int, logs: Sequence[logs_.Log] = (), objective: Objective | None = None
    ):
        self.start = start
        self.logs = logs
        self.objective = objective
        self.calls: list[dict[str, np.ndarray]] = []
        self.steps = 0
        self.pending: Any = None
        self.evaluations: list[tuple[int, Figures]] = []

    @property
    def latest(self) -> dict[str, float]:
        return {n: float(x[-1]) for n, x in self.calls[-1].items()} if self.calls else {}

    def add(self, metrics: Any) -> None:
        self.settle()
        self.pending = metrics

    def settle(self) -> dict[str, np.ndarray]:
        """Reads the pending metrics; raises NonFiniteLoss if the loss is not finite."""
        if self.pending is not None:
            metrics = {name: np.asarray(x) for name, x in self.pending.items()}
            self.pending = None
            first = self.start + self.steps
            self.calls.append(metrics)
            self.steps += len(metrics["loss"])
            logs_.tell(self.logs, first + 1, metrics)
            bad = ~np.isfinite(metrics["loss"])  # a term of weight 0 may be NaN or infinite
            if bad.any():
                i = int(bad.argmax())
                self._refuse(first + i + 1, {name: float(x[i]) for name, x in metrics.items()})
        return self.calls[-1] if self.calls else {}

    def check(self, step: int, params: Any) -> None:
        """Raises NonFiniteLoss for parameters that are not finite after ``step`` steps.

        No loss says so if it was the last step: it was computed before the update. Waits for the
        device.
        """
        if not _is_finite(params):
            raise NonFiniteLoss(
                f"training stopped after step {step}: the losses are finite, but parameters are "
                "not: a gradient was not finite, or an update too large. Look for square roots and "
                "logarithms at 0 in your losses, or try a smaller learning rate or gradient "
                "clipping",
                step, [], self.arrays(),
            )  # fmt: skip

    def _refuse(self, step: int, values: dict[str, float]) -> None:
        ignored = self._terms_of_weight_0(step - 1)
        terms = [n for n, x in values.items() if n not in ("loss", *ignored) and not np.isfinite(x)]
        rest = ", ".join(f"{n} {x:.4g}" for n, x in values.items() if n not in (*terms, "loss"))
        if terms:
            what = " and ".join(f"term {n!r} is {values[n]:g}" for n in terms)
        else:
            what = f"every term is finite but the loss is {values['loss']:g}: look at the weights"
        raise NonFiniteLoss(
            f"training stopped at step {step}: {what}" + (f" ({rest})" if rest else "")
            + ". Try a smaller learning rate or gradient clipping, and look for invalid rows",
            step, terms, self.arrays(),
        )  # fmt: skip

    def _terms_of_weight_0(self, taken: int) -> list[str]:
        """Names of the terms whose weight is 0 after ``taken`` steps."""
        terms = () if self.objective is None else self.objective.terms
        return [t.name for t in terms if t.weight_at(jnp.asarray(taken, jnp.int32)) == 0]

    def evaluated(self, step: int, values: Figures) -> None:
        taken = {"evaluated_at", *(self.calls[0] if self.calls else ())} & values.keys()
        if taken:
            raise ValueError(f"evaluate must not use the names of metrics, got {sorted(taken)}")
        if self.evaluations and self.evaluations[0][1].keys() != values.keys():
            raise ValueError(
                f"evaluate must return the same names each time: {sorted(values)} after "
                f"{sorted(self.evaluations[0][1])}"
            )
        shapes = [{n: np.shape(x) for n, x in v.items()} for _, v in self.evaluations[:1]]
        changed = [n for n, x in values.items() if shapes and np.shape(x) != shapes[0][n]]
        if changed:
            raise ValueError(
                f"evaluate must return arrays of the same shapes each time: {changed[0]!r} has the "
                f"shape {np.shape(values[changed[0]])} after {shapes[0][changed[0]]}"
            )
        self.evaluations.append((step, dict(values)))
        for log in self.logs:
            log(step, as_scalars(values))

    def arrays(self) -> dict[str, np.ndarray]:
        out = {}
        if self.calls:
            out = {n: np.concatenate([c[n] for c in self.calls]) for n in self.calls[0]}
        if self.evaluations:
            out["evaluated_at"] = np.array([step for step, _ in self.evaluations])
            for name in self.evaluations[0][1]:
                out[name] = np.array([values[name] for _, values in self.evaluations])
        return out


@jax.jit
def _is_finite(tree: Any) -> Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(x).all() for x in floats]).all()
