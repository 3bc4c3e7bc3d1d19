"""A student from a folder of checkpoints, without the run that wrote them."""

from __future__ import annotations

import json
import os
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from distill_jax import _checks
from distill_jax import teachers as teachers_
from distill_jax._arguments import checked
from distill_jax._fingerprints import shapes
from distill_jax.training.checkpoints import _contents, _orbax
from distill_jax.training.checkpoints.saving import CONFIGURATION, CheckpointError, check_folder
from distill_jax.training.step import TrainState
from distill_jax.training.step._checking import unlike
from distill_jax.types import Model, Params, State


class Loaded(NamedTuple):
    """A student as a checkpoint holds it.

    Attributes:
      params: Its parameters.
      state: Its state.
      average: The moving average, ``(params, state)``, or None.
      step: Optimizer steps taken.
      metrics: What ``evaluate`` returned for this state; empty if it was saved without.
    """

    params: Params
    state: State
    average: tuple[Params, State] | None
    step: int
    metrics: dict[str, float]


@checked
def load(
    folder: str | os.PathLike[str], model: Model, inputs: Any, *, step: str | int = "last"
) -> Loaded:
    """A student from a folder that ``fit`` saved checkpoints into.

    Only the model is needed, not the objective, the optimizer or the data of the run. Only the
    student's arrays are read. The folder may be that of a run that is going on: nothing in it is
    changed.

    Args:
      folder: The folder of ``training.Checkpoints``.
      model: The student, or one with the same parameters.
      inputs: An example or more, ``[batch, ...]``; only shape and dtype matter.
      step: "last", for the latest checkpoint; "best", by the metric that ``Checkpoints`` had as
        ``best`` (of ties the latest); or the number of a step.

    Returns:
      Parameters and state, for example to ``evaluate`` or to make a ``teachers.teacher`` of, and
      the moving average if the run kept one. With an optimizer that evaluates other parameters than
      it trains (``lookahead``, ``schedule_free``), those that it trains, with a warning.

    Raises:
      ValueError: if it is no folder of checkpoints, they are of another model, naming each
        difference, or there is no such step.
      CheckpointError: if a file of it is damaged or missing.

    Example::

        found = training.load("runs/student", model, data["inputs"], step="best")
        evaluation.evaluate(model, found.params, found.state, test)
    """
    check_folder(folder)
    path = pathlib.Path(folder).absolute()
    if not isinstance(model, Model):
        raise TypeError(f"model must be a Model, got {type(model).__name__}")
    if not path.is_dir():
        raise ValueError(f"folder must be a folder of checkpoints, got {path}, which is none")
    _checks.arrays(inputs=inputs)
    if not all(map(np.ndim, jax.tree.leaves(inputs))):
        raise ValueError("inputs must be arrays [batch, ...], got a scalar")
    row = jax.tree.map(lambda x: x[:1], inputs)
    own = jax.eval_shape(model.init, jax.random.key(0), row)
    with _orbax.quiet(), _orbax.plain_path(path) as plain, _orbax.reader(plain) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise ValueError(
                f"folder must be a folder of checkpoints, as training.Checkpoints writes them; "
                f"{path} holds none"
            )
        at = _step(step, steps, path, manager)
        about = _about(manager, at, path)
        saved = {name: x for name, x in about["arrays"].items() if name.startswith(_OURS)}
        averaged = any(name.startswith("average/") for name in saved)
        average = jax.eval_shape(teachers_.start_average, own) if averaged else None
        params, state = own
        wanted = TrainState(None, params, state, {}, {}, {}, average, None)  # and nothing else
        different = unlike(saved, shapes(wanted)) or _other_outputs(path, model)
        if different:
            raise ValueError(
                f"the checkpoint of step {at} in {path} is of another model: {different}"
            )
        try:
            read = _orbax.read_arrays(manager, at, _contents.wanted_arrays(wanted), partial=True)
            found = _contents.restored(wanted, read, about)
        except Exception as error:
            raise _damaged(at, path, error) from error
    if any(map(_EVALUATED.match, about["arrays"])):
        warnings.warn(
            f"the optimizer of the run in {path} evaluates other parameters than it trains, and "
            "these are those that it trains: for the others, make the call of fit again, which "
            "resumes from here, and take state.eval_params",
            stacklevel=3,
        )
    return Loaded(found.params, found.state, found.average, at, dict(about["metrics"]))


_OURS = ("params/", "state/", "average/")

_EVALUATED = re.compile(r"opt_state/(student/)?slow/|opt_state/.*weight_sum$")
"""What optimizers hold that evaluate other parameters than they train."""


def _other_outputs(path: pathlib.Path, model: Model) -> str:
    """How the outputs of the student of the run differ in kind or order; empty if they do not."""
    try:
        student = json.loads((path / CONFIGURATION).read_text())["student"]
        outputs, classes = student["outputs"], student["classes"]
    except (OSError, ValueError, LookupError, TypeError):  # it was deleted, or damaged
        return ""
    if outputs != model.outputs:
        return f"its outputs are {outputs!r}, the model's are {model.outputs!r}"
    if None not in (classes, model.classes) and classes != list(model.classes or ()):
        return f"its classes are {classes}, the model's are {list(model.classes or ())}"
    return ""


def _step(step: str | int, steps: list[int], path: pathlib.Path, manager: Any) -> int:
    if step == "last":
        return steps[-1]
    if step == "best":
        return _best(steps, path, manager)
    if isinstance(step, bool | str) or step not in steps:
        raise ValueError(
            f'step must be "last", "best" or one of the steps in {path}, {steps}, got {step!r}'
        )
    return int(step)


def _best(steps: list[int], path: pathlib.Path, manager: Any) -> int:
    abouts = {step: _about(manager, step, path) for step in steps}
    if abouts[steps[-1]].get("best") is None:
        raise ValueError(
            f'step must not be "best" where no metric says which one that is, and {path} was saved '
            f"without: pass Checkpoints(folder, best=...) to fit, or one of the steps {steps}"
        )
    name, better = abouts[steps[-1]]["best"]
    sign = 1.0 if better == "higher" else -1.0
    figures = {s: sign * about["metrics"].get(name, np.nan) for s, about in abouts.items()}
    finite = [s for s, figure in figures.items() if np.isfinite(figure)]
    if not finite:
        raise ValueError(
            f'step must not be "best" where no checkpoint has a finite {name!r}, got the steps '
            f"{steps} in {path}"
        )
    return max(finite, key=lambda s: (figures[s], s))


def _about(manager: Any, step: int, path: pathlib.Path) -> Mapping[str, Any]:
    try:
        return _contents.checked(_orbax.read_about(manager, step), step, None)
    except _contents.OfAnotherRun as error:
        raise ValueError(
            f"the checkpoint of step {step} in {path} cannot be read: {error}"
        ) from None
    except Exception as error:
        raise _damaged(step, path, error) from error


def _damaged(step: int, path: pathlib.Path, error: Exception) -> CheckpointError:
    why = _orbax.first_line(error)
    return CheckpointError(
        f"the checkpoint of step {step} in {path} is damaged, or not one of distill_jax ({why})"
    )
