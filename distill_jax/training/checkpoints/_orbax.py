"""Orbax as checkpoints use it: which of them stay, and nothing of its own on the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import operator
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal


def manager(
    folder: pathlib.Path,
    *,
    keep: int,
    best: str | None,
    better: Literal["higher", "lower"],
    keep_best: int,
    asynchronous: bool,
) -> Any:
    """A ``CheckpointManager`` that keeps the last ones, and the best by a metric."""
    import orbax.checkpoint as ocp  # takes a third of a second, which other programs need not wait

    policies: list[Any] = [ocp.checkpoint_managers.LatestN(keep)]
    best_fn = None
    if best is not None:
        best_fn = operator.itemgetter(best)
        policies.append(
            ocp.checkpoint_managers.BestN(
                get_metric_fn=best_fn,
                reverse=better == "lower",
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
        )
    made = ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=best_fn,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=asynchronous,
        ),
    )
    # Whoever asks the runtime for its step to stop at is counted, and ``fit`` counts calls.
    made.reached_preemption = lambda step: False  # pyright: ignore[reportAttributeAccessIssue]
    return made


def first_line(error: BaseException) -> str:
    """The first line of an error, without the specifications that TensorStore adds."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0].partition(" [tensorstore_spec=")[0]
    # Where it was comes first, what it was last.
    return line if len(line) <= 400 else f"{line[:200]} ... {line[-195:]}"


def no_room(error: BaseException) -> bool:
    """Whether a full disk, a quota or a limit of sizes is behind an error.

    TensorStore says so in its text alone.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    seen: list[BaseException] = []
    ahead: list[BaseException | None] = [error]
    while ahead:
        e = ahead.pop()
        if e is None or any(e is other for other in seen):
            continue
        seen.append(e)
        if isinstance(e, OSError) and e.errno is not None:
            if e.errno in numbers:
                return True
        elif any(os.strerror(n) in str(e) or f"os_error_code='{n}'" in str(e) for n in numbers):
            return True
        inner = e.exceptions if isinstance(e, BaseExceptionGroup) else ()
        ahead += [e.__cause__, None if e.__suppress_context__ else e.__context__, *inner]
    return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Orbax's own words from the terminal: what matters of them is raised or warned of."""

    def ours(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    log = logging.getLogger("absl")
    log.addFilter(ours)
    # Where one file cannot be written or read, Orbax leaves, and what becomes of the others finds
    # nobody to tell: perhaps long after, so these two stay.
    logging.getLogger("asyncio").addFilter(_told)
    if not isinstance(sys.unraisablehook, _Late):
        sys.unraisablehook = _Late(sys.unraisablehook)
    try:
        yield
    finally:
        log.removeFilter(ours)


def _told(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not ("never retrieved" in text and ("orbax" in text or "OCDBT" in text))


@dataclasses.dataclass
class _Late:
    """A hook for errors that nobody can catch, which drops those of Orbax."""

    before: Callable[[Any], Any]

    def __call__(self, what: Any) -> None:
        text = str(what.exc_value)
        if text != "Event loop is closed" and "'async_serialize_from_host" not in text:
            self.before(what)
