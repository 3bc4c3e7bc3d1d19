"""What ``fit`` does between two calls of its program: it shows, evaluates, saves and stops."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.training.checkpoints.saving import CheckpointError, Saver
from distill_jax.training.devices import _hosts
from distill_jax.training.devices._preemption import Stopping
from distill_jax.training.ending import EarlyStopping
from distill_jax.training.step import TrainState
from distill_jax.training.watching._figures import figures, scalars
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
      early: When the run ends by what ``evaluate`` returns, or None.
      watched: The figures that decide it, those of the runs before included: ``(step, figure)``.
      ended: Whether it has ended so.
      best: The best state so far and its step, where it is to be returned and not read again.
      done: Steps taken.
      last: The state after them and the position in the data, once this run has taken any.
      evaluated, checked: The last step whose state was evaluated, by this run or one before, and
        looked at.
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
    early: EarlyStopping | None = None
    watched: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    ended: bool = False
    best: tuple[int, TrainState] | None = None
    done: int = 0
    evaluated: int = -1
    last: tuple[TrainState, Any] | None = None
    checked: int = -1

    @property
    def step(self) -> int:
        """Optimizer steps taken, those of the state given to ``fit`` included."""
        return self.first + self.done

    def begin(self, done: int, state: TrainState, position: Any) -> None:
        """Before the first call; a run that is finished already is only evaluated.

        So is a state that was saved when its evaluation was due and had not taken place.
        """
        self.done = done
        self.bar.update(done, {})
        every = self.evaluate_every
        due = every is not None and done // every > max(self.evaluated, 0) // every
        self.ended = self.early is not None and self.early.decide(self.watched).stop
        if not (due or done == self.steps or self.ended):
            return
        values = self._evaluated(state)
        if due and self.save_evaluated and self.saver is not None and len(self.saver.steps()) > 1:
            # By its metrics it may be the best; if this fails, there is an older one.
            self._save(state, position, values, replace=True)
            self.best = None

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
        last |= self.ended
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
        if self.done < self.steps and not self.ended:
            made = self.history.evaluations
            values = None if made and made[-1][0] == self.step else self._evaluated(state)
            self._save(state, position, values)

    def returned(self, state: TrainState, expected: TrainState) -> TrainState:
        """The state that ``fit`` returns: the last one, or the best.

        Args:
          state: The last one.
          expected: Shapes, dtypes and shardings of it.
        """
        if self.early is None or not self.early.restore_best:
            return state
        step = self.early.decide(self.watched).best
        if step is None or step == self.step:
            return state
        if self.best is not None and self.best[0] == step:
            return self.best[1]
        assert self.saver is not None
        found = self.saver.restore(expected, step)
        assert found is not None
        return found[0]

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
        """The single numbers that ``evaluate`` returned, if there is one."""
        if self.evaluate is None:
            return None
        self._check(state)
        with self.stop.at_once():
            found = figures(self.evaluate(state))
        self.evaluated = self.done
        self.history.evaluated(self.step, found)
        values = scalars(found)
        if self.early is not None:
            self._decide(self.early, state, values)
        return values

    def _decide(self, early: EarlyStopping, state: TrainState, values: dict[str, float]) -> None:
        if early.metric not in values:
            raise ValueError(
                f"stop must watch a number that evaluate gives, got {early.metric!r}; it gives "
                f"{sorted(values)}"
            )
        self.watched = [pair for pair in self.watched if pair[0] < self.step]
        self.watched.append((self.step, _hosts.of_the_first(values[early.metric])))
        self.ended, best = early.decide(self.watched)
        # Saved already, before it was evaluated, a state is not saved as the best one.
        held = self.saver is None or self.step in self.saver.steps()
        if early.restore_best and held and best == self.step:
            self.best = self.step, jax.tree.map(jnp.copy, state)  # the next call takes its memory

    def _save(
        self,
        state: TrainState,
        position: Any,
        values: dict[str, float] | None,
        *,
        replace: bool = False,
    ) -> None:
        """Saves a state, unless it is not finite: a run resumed from it would fail again."""
        if self.saver is None:
            return
        self._check(state)
        watched: dict[str, Any] = {"evaluated": self.evaluated}
        if self.early is not None:
            watched |= {"metric": self.early.metric, "figures": self.watched}
        self.saver.save(self.step, state, position, values, watched, replace=replace)
