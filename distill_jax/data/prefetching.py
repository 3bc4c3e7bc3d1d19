"""Batches prefetched by a thread, so that the device need not wait for the host."""

from __future__ import annotations

import atexit
import contextvars
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, SupportsIndex

import jax

from distill_jax import _checks
from distill_jax._arguments import checked


@checked
def prefetch(
    pairs: Iterable[tuple[Any, Any]], put: Callable[[Any], Any], size: SupportsIndex = 2
) -> Generator[tuple[Any, Any], None, None]:
    """The pairs ``(put(batch), position)``, prefetched by a thread.

    A pair is ``(batch, position)``, as :func:`~distill_jax.data.positions` gives them. Order and
    values are the same as without a thread. An error of the source or of ``put`` is raised after
    the pairs before it, with its own traceback. Closing the generator (its ``close()``, or leaving
    the frame that holds it) stops the thread after the current batch.

    The thread draws more than was asked for: limit the pairs with ``itertools.islice`` if the rest
    of the source is still needed. It runs in the caller's context, with its default device and
    precision of floats.

    Args:
      pairs: What to draw from; used by the thread alone once the first pair is asked for.
      put: Called with each batch, ``jax.device_put`` for example.
      size: The largest number of pairs that are ready but not yet taken; 0 draws in the caller,
        without a thread.

    Yields:
      ``(put(batch), position)``.

    Example:
      >>> pairs = ((i, {"batches": i + 1}) for i in range(2))
      >>> for batch, position in prefetch(pairs, jax.device_put):
      ...     print(batch, position)
      0 {'batches': 1}
      1 {'batches': 2}
    """
    size = _checks.count("size", size, least=0)
    if size:
        return _ahead(pairs, put, size)
    return ((put(batch), position) for batch, position in pairs)


def _ahead(
    pairs: Iterable[tuple[Any, Any]], put: Callable[[Any], Any], size: int
) -> Generator[tuple[Any, Any], None, None]:
    ready: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    free, stopped = threading.Semaphore(size), threading.Event()
    # JAX's context managers set values per thread.
    wide = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    def work() -> None:
        end = None
        try:
            with jax.enable_x64(wide), jax.default_device(device):
                iterator = iter(pairs)
                # Acquired before a batch is drawn: never more than size batches are alive here.
                while free.acquire() and not stopped.is_set():
                    try:
                        batch, position = next(iterator)
                    except StopIteration:
                        break
                    ready.put(((put(batch), position), None))
                    del batch, position
        except BaseException as error:
            end = error
        ready.put((None, end))
        end = None  # its traceback holds this frame

    def stop() -> None:
        stopped.set()
        free.release()
        if thread is not threading.current_thread():  # as when garbage is collected there
            # With a timeout: the source may block for ever. The thread is a daemon.
            thread.join(timeout=1.0)

    thread = threading.Thread(
        target=contextvars.copy_context().run,
        args=(work,),
        name="distill_jax prefetch",
        daemon=True,
    )
    thread.start()
    atexit.register(stop)  # a thread inside XLA may crash the interpreter as it shuts down
    try:
        while True:
            pair, error = ready.get()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # its traceback holds this frame
            if pair is None:
                return
            free.release()
            yield pair
            del pair
    finally:
        if not stopped.is_set():  # else the interpreter is shutting down, and modules are empty
            stop()
            atexit.unregister(stop)
