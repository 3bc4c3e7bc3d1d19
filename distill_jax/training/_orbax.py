"""Orbax as checkpoints use it: which of them stay, and nothing of its own on the terminal."""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import pathlib
import sys
from collections.abc import Iterator
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


def told(record: logging.LogRecord) -> bool:
    """Drops what asyncio says, long after, of files that failed: it was raised or warned of."""
    text = record.getMessage()
    return not ("never retrieved" in text and ("orbax" in text or "OCDBT" in text))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Orbax's own words from the terminal: what matters of them is raised or warned of."""

    def ours(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    def unraisable(what: Any) -> None:
        # When one file cannot be written or read, Orbax leaves, and those of the other files that
        # come later find nobody to tell.
        if str(what.exc_value) != "Event loop is closed":
            before(what)

    log, before = logging.getLogger("absl"), sys.unraisablehook
    log.addFilter(ours)
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        log.removeFilter(ours)
        sys.unraisablehook = before
