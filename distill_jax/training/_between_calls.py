"""What ``fit`` does between two calls of its program: it shows, evaluates, saves and stops."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from distill_jax.training.checkpoints.saving import CheckpointError, Saver
from distill_jax.training.devices._preemption import Stopping
from distill_jax.training.step import TrainState
from distill_jax.training.watching._progress import Progress
from distill_jax.training.watching.history import History, NonFiniteLoss


@dataclasses.dataclass
class BetweenCalls:
    """What happens between two calls: history, progress, callbacks, evaluations, checkpoints.

    Attributes:
      first: Steps that the state given to ``fit`` had taken.
      steps: Steps to take, counted from there, as all others here.
      save_evaluated: Whether every evaluated state is saved.
      stop: Whether to stop at a step, which counts from the first run's start.
      done: Steps taken.
      last: The state after them and the position in the data, once this run has taken any.
      evaluated, checked: The last step whose state was evaluated, and looked at.
    """

    first: int
    steps: int
    history: History
    bar: Progress
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None
    evaluate_every: int | None
    callbacks: Sequence[Callable[[TrainState, Mapping[str, np.ndarray]], None]]
    saver: Saver | None
    save_evaluated: bool
    stop: Stopping
    done: int = 0
    evaluated: int = -1
    last: tuple[TrainState, Any] | None = None
    checked: int = -1

    @property
    def step(self) -> int:
        """Optimizer steps taken, those of the state given to ``fit`` included."""
        return self.first + self.done

    def begin(self, done: int, state: TrainState) -> None:
        """Before the first call; a run that is finished already is only evaluated."""
        self.done = done
        self.bar.update(done, {})
        if done == self.steps:
            self._evaluated(state)

    def after_call(self, count: int, state: TrainState, metrics: Any, position: Any) -> None:
        """After a call of ``count`` steps has been started; reads the metrics of the call before.

        Raises:
          NonFiniteLoss, CheckpointError: as ``fit``.
          SystemExit, KeyboardInterrupt: once the state is saved, if the process was asked to end.
        """
        before, self.done, self.last = self.done, self.done + count, (state, position)
        self.history.add(metrics)
        self.bar.update(self.done, self.history.latest)
        for callback in self.callbacks:
            callback(state, self.history.settle())  # to its end: it may be writing a file
        every, last = self.evaluate_every, self.done == self.steps
        due = every is not None and self.done // every > before // every
        values = self._evaluated(state) if due or last else None
        if self.saver is None:
            return
        stopped = self.stop(self.step)
        best = self.save_evaluated and values is not None
        if self.saver.due(self.step) or best or stopped or last:
            self._save(state, position, values)
        if stopped:
            self.saver.wait()
            raise self.stop.error()

    def end(self, state: TrainState, position: Any) -> None:
        """After the last call; if the data ended early, evaluates and saves the last state."""
        self._check(state)
        self.bar.update(self.done, self.history.latest)
        if self.done < self.steps:
            values = None if self.evaluated == self.done else self._evaluated(state)
            self._save(state, position, values)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Inside it, an error of data, callbacks or ``evaluate`` waits for a save of what is done.

        So does Ctrl-C. Several processes cannot save if only one of them fails.
        """
        try:
            yield
        except BaseException as error:
            failed = isinstance(error, NonFiniteLoss | CheckpointError)
            if self.last and self.saver and not failed and jax.process_count() == 1:
                self._save_after(error, *self.last)
            raise

    def _save_after(self, error: BaseException, state: TrainState, position: Any) -> None:
        if any(x.is_deleted() for x in jax.tree.leaves(state)):  # half way into the next one
            return
        try:
            self._save(state, position, None)
            assert self.saver is not None
            self.saver.wait()
        except Exception as second:
            error.add_note(f"The state after step {self.step} could not be saved: {second}")
        else:
            error.add_note(
                f"The state after step {self.step} is saved: the same call resumes from there."
            )

    def _check(self, state: TrainState) -> None:
        """Raises NonFiniteLoss for the losses up to this state, or for its parameters."""
        self.history.settle()
        if self.checked != self.done:
            self.history.check(self.step, (state.params, state.term_params))
            self.checked = self.done

    def _evaluated(self, state: TrainState) -> dict[str, float] | None:
        if self.evaluate is None:
            return None
        self._check(state)
        with self.stop.at_once():
            values = _numbers(self.evaluate(state))
        self.evaluated = self.done
        self.history.evaluated(self.step, values)
        return values

    def _save(self, state: TrainState, position: Any, values: dict[str, float] | None) -> None:
        """Saves a state, unless it is not finite: a run resumed from it would fail again."""
        if self.saver is None:
            return
        self._check(state)
        self.saver.save(self.step, state, position, values)


def _numbers(values: Any) -> dict[str, float]:
    """What ``evaluate`` returned, as Python floats."""
    if not isinstance(values, Mapping):
        raise TypeError(
            f"evaluate must return a dictionary of numbers, got {type(values).__name__}"
        )
    for name, x in values.items():
        if np.ndim(x):
            raise TypeError(f"evaluate must give numbers, got {name!r} of shape {np.shape(x)}")
    return {name: float(x) for name, x in values.items()}
