"""SIGTERM: the machine is about to be taken away, and the run should save and end."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 128 + signal.SIGTERM
"""The exit code of a process after SIGTERM: not 0, so that schedulers restart it."""


@contextlib.contextmanager
def stopping(watched: bool = True) -> Iterator[Callable[[int], bool]]:
    """Inside it, SIGTERM only makes the yielded function return True: whether to stop at this step.

    Several processes all stop at the same step, whichever of them received the signal. Python
    handles signals only in its main thread; in another one the answer is always False.
    """
    if not watched:
        yield lambda step: False
        return
    if jax.process_count() > 1:
        # The distributed runtime has its own handler, and agrees on a number to stop at that no
        # process has reached. Every number must be asked for: so calls are counted, not steps.
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
