"""SIGTERM: the machine is taken away soon, and asks for an end in good order."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 128 + signal.SIGTERM
"""With what a process leaves after SIGTERM: schedulers restart what failed."""


@contextlib.contextmanager
def stopping(watched: bool = True) -> Iterator[Callable[[int], bool]]:
    """Within, SIGTERM only sets what the returned function tells: whether to stop at this step.

    Of several processes all are told to stop at one step, whichever got the signal. Python takes
    signals in its main thread alone; elsewhere, the answer is always no.
    """
    if not watched:
        yield lambda step: False
        return
    if jax.process_count() > 1:
        # The distributed runtime has a handler of its own, and agrees on a number to stop at that
        # none has reached. It must be met exactly: calls are counted, since steps leave some out.
        calls = itertools.count()
        yield lambda step: multihost_utils.reached_preemption_sync_point(next(calls))
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    received = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield lambda step: received.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
