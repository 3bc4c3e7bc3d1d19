"""Traces of a few calls of a training loop, by JAX's profiler."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax


class Tracer:
    """Passes calls on, and profiles a few of them; see :func:`tracing`."""

    def __init__(self, folder: str | os.PathLike[str] | None, skip: int, calls: int):
        self.folder, self.skip, self.end = folder, skip, skip + calls
        self.number, self.active = 0, False

    def call(self, step: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)``; ``step``, the first one it takes, is shown in the trace."""
        if self.folder is None:
            return function(*arguments)
        number, self.number = self.number, self.number + 1
        if number == self.skip:
            self._start()
        if not self.active:
            return function(*arguments)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*arguments)
        if number == self.end - 1:
            jax.block_until_ready(result)
            self.stop()
        return result

    def _start(self) -> None:
        try:
            jax.profiler.start_trace(os.fspath(self.folder))  # type: ignore[arg-type]
            self.active = True
        except Exception as error:  # another profile is running, or the folder cannot be created
            self._fail(error)

    def stop(self) -> None:
        """Writes the trace, if one was started."""
        if self.active:
            self.active = False
            try:
                jax.profiler.stop_trace()
            except Exception as error:  # a full disk
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        warnings.warn(
            f"no trace could be written to {self.folder} ({error}): training continues without one",
            RuntimeWarning,
            stacklevel=2,
        )


@contextlib.contextmanager
def tracing(
    folder: str | os.PathLike[str] | None, *, skip: int = 1, calls: int = 3
) -> Iterator[Tracer]:
    """A tracer of a few calls of a loop, for ``tensorboard --logdir folder`` or xprof.

    Args:
      folder: Where ``jax.profiler`` writes; None traces nothing. Of several processes, the first
        writes.
      skip: Calls before the first traced one; the first call compiles.
      calls: Number of traced calls. The host waits for the last of them.

    Example::

        with tracing("trace") as tracer:
            for i in range(100):
                state = tracer.call(i, step, state)
    """
    tracer = Tracer(folder if jax.process_index() == 0 else None, skip, calls)
    try:
        yield tracer
    finally:
        tracer.stop()
    if tracer.folder is not None and tracer.number <= skip:
        warnings.warn(
            f"no trace was written to {folder}: the run ended before call {skip + 1}, the first "
            "that does not compile",
            RuntimeWarning,
            stacklevel=3,
        )
