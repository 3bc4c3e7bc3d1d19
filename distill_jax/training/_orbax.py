"""Orbax as checkpoints use it: which of them stay, and nothing of its own on the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
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
    return ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=best_fn,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=asynchronous,
        ),
    )


def first_line(error: BaseException) -> str:
    """The first line of an error, without the specifications that TensorStore adds."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0].partition(" [tensorstore_spec=")[0]
    return line if len(line) <= 300 else f"{line[:300]}..."


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
