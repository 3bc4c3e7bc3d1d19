"""Orbax, the library that writes and reads checkpoints; nothing else imports it.

Another one would have the same functions: a manager of a folder, with ``all_steps``, ``reload``,
``wait_until_finished`` and ``close``, and what saves and reads by it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import operator
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np

LEFTOVERS = "*.orbax-checkpoint-tmp*"
"""The folders of saves that were interrupted."""

LONGEST = 1000  # characters of a path that Orbax gets, which it lengthens by its own folders


@contextlib.contextmanager
def plain_path(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to the folder in which no character has a meaning for Orbax.

    Orbax looks for its own files by patterns that begin with the folder's path, so that brackets,
    stars and question marks in it match other files or none. It takes ``/s3`` for a bucket, and
    wants Unicode. Such a path is replaced by that of a symbolic link.

    Raises:
      ValueError: if a link is needed and cannot be made.
    """
    if _is_plain(folder):
        yield folder
        return
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="distill_jax-", ignore_cleanup_errors=True)
            )
            link = pathlib.Path(place).absolute() / "checkpoints"
            link.symlink_to(folder, target_is_directory=True)
            usable = _is_plain(link) and link.samefile(folder)
        except OSError as error:
            raise ValueError(_not_plain(folder, str(error))) from error
        if not usable:
            raise ValueError(_not_plain(folder, f"{place} is no better"))
        yield link


def _is_plain(path: pathlib.Path) -> bool:
    # A backslash in a name would be read as a slash. Windows has a drive, and forbids most others.
    text = path.as_posix()
    plain = re.fullmatch(r"[A-Za-z0-9_./:+=,@ -]*", text) is not None
    return (
        plain
        and path.parts[1:2] not in (("gs",), ("s3",), ("az",), ("hf",))
        and (len(text) <= LONGEST)
    )


def _not_plain(folder: pathlib.Path, why: str) -> str:
    return (
        f"folder must be a path of letters, digits and ._+=,@- where no symbolic link to it can be "
        f"made in the folder for temporary files ({why}), got {str(folder)!r}: rename it, or set "
        "TMPDIR to a folder that can be written"
    )


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
    import orbax.checkpoint as ocp  # takes a third of a second, so it is imported where it is used

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
            # Otherwise the threads of a save wait for each other by a number that is global in the
            # process: two runs in two threads would take each other's.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        ),
    )
    # The runtime counts how often it is asked for the step to stop at, and ``fit`` counts calls.
    made.reached_preemption = lambda step: False  # pyright: ignore[reportAttributeAccessIssue]
    return made


def save(
    manager: Any,
    step: int,
    arrays: Mapping[str, jax.Array],
    about: Mapping[str, Any],
    metrics: Mapping[str, float] | None,
) -> None:
    """Saves arrays by path, and JSON values about them; in the background, if the manager may."""
    import orbax.checkpoint as ocp

    args = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), about=ocp.args.JsonSave(about))
    manager.save(step, args=args, metrics=metrics, force=True)


def read_about(manager: Any, step: int) -> dict[str, Any]:
    """The JSON values that were saved with the arrays."""
    import orbax.checkpoint as ocp

    return manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]


@contextlib.contextmanager
def reader(folder: pathlib.Path) -> Iterator[Any]:
    """A ``CheckpointManager`` that changes nothing in the folder."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        read_only=True, create=False, enable_async_checkpointing=False
    )
    with contextlib.closing(ocp.CheckpointManager(folder, options=options)) as made:
        yield made


def read_arrays(
    manager: Any,
    step: int,
    wanted: Mapping[str, jax.ShapeDtypeStruct],
    *,
    partial: bool = False,
) -> dict[str, Any]:
    """Arrays by path: on the devices of their sharding, or in NumPy where there is none.

    Args:
      partial: Whether the checkpoint may hold others.
    """
    import orbax.checkpoint as ocp

    def onto(x: jax.ShapeDtypeStruct) -> Any:
        if x.sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)

    tree = ocp.args.PyTreeRestore(
        item={name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in wanted.items()},
        restore_args={name: onto(x) for name, x in wanted.items()},
        transforms={} if partial else None,  # none, of what is not among these
    )
    return manager.restore(step, args=ocp.args.Composite(state=tree))["state"]


def first_line(error: BaseException) -> str:
    """The first line of an error, without the specification that TensorStore adds."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0].partition(" [tensorstore_spec=")[0]
    # The place of the error comes first in it, its cause last.
    return line if len(line) <= 400 else f"{line[:200]} ... {line[-195:]}"


def no_room(error: BaseException) -> bool:
    """Whether a full disk, a quota or a limit of file sizes caused an error.

    TensorStore says so only in its text.
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
    """Keeps Orbax's log messages from the terminal: what matters of them is raised or warned of."""

    def ours(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    log = logging.getLogger("absl")
    log.addFilter(ours)
    # If one file cannot be written or read, Orbax returns, and errors of the others surface where
    # nobody catches them, perhaps much later: these two filters stay.
    logging.getLogger("asyncio").addFilter(_is_news)
    if not isinstance(sys.unraisablehook, _WithoutOrbax):
        sys.unraisablehook = _WithoutOrbax(sys.unraisablehook)
    try:
        yield
    finally:
        log.removeFilter(ours)


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not ("never retrieved" in text and ("orbax" in text or "OCDBT" in text))


@dataclasses.dataclass
class _WithoutOrbax:
    """A hook for errors that nobody can catch, which ignores those of Orbax."""

    before: Callable[[Any], Any]

    def __call__(self, what: Any) -> None:
        text = str(what.exc_value)
        if text != "Event loop is closed" and "'async_serialize_from_host" not in text:
            self.before(what)
