"""SIGTERM, as the machine is about to be taken away, and Ctrl-C: the run should save and end."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 128 + signal.SIGTERM
"""The exit code of a process after SIGTERM: not 0, so that schedulers restart it."""


class Stopping:
    """Whether the process was asked to end.

    A signal only makes ``stop(step)`` return True, since the state may be half way from one step
    to the next; inside ``stop.at_once()``, where the run waits for data or an evaluation, it raises
    ``stop.error()``. A second Ctrl-C always does.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._waiting = False

    def __call__(self, step: int) -> bool:
        """Whether to stop at this step."""
        return self._received is not None

    def error(self) -> BaseException:
        """What the signal is to raise, once the state is saved."""
        return KeyboardInterrupt() if self._received == signal.SIGINT else SystemExit(EXIT_CODE)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside it, a signal does not wait: it may take for ever until the code here returns."""
        self._waiting = True
        try:
            if self._received is not None:
                raise self.error()
            yield
        finally:
            self._waiting = False

    def handle(self, number: int, frame: Any) -> None:
        """The handler of signals."""
        again = number == signal.SIGINT and self._received is not None
        self._received = number
        if self._waiting or again:
            raise self.error()


class _Together(Stopping):
    """Several processes all stop at the same step, whichever of them received the signal."""

    def __init__(self) -> None:
        super().__init__()
        # The distributed runtime has its own handler, and agrees on a number to stop at that no
        # process has reached. Every number must be asked for: so calls are counted, not steps.
        self._calls = itertools.count()

    def __call__(self, step: int) -> bool:
        return multihost_utils.reached_preemption_sync_point(next(self._calls))


@contextlib.contextmanager
def stopping(watched: bool = True) -> Iterator[Stopping]:
    """Inside it, SIGTERM and Ctrl-C do what :class:`Stopping` says.

    Leaving it raises what a signal was to raise, if nobody has acted on it yet. Python handles
    signals only in its main thread; in another one the answer is always False. A handler of
    Ctrl-C that is not Python's own stays.
    """
    if watched and jax.process_count() > 1:
        yield _Together()
        return
    stop = Stopping()
    if not watched or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, stop.handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop(0):
        raise stop.error()
