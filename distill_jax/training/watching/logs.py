"""Logs: where the metrics of a run are written while it runs.

A log is any callable ``(step, metrics)``: ``step`` counts the optimizer steps taken, 1 after the
first, and ``metrics`` are Python floats by name. ``fit`` calls it once per step, in order, and
again with the same step and the results of ``evaluate`` after an evaluation. Metrics arrive one
compiled call late, from arrays that are on the host by then: a log never waits for the device.

The logs here write each record at once and whole: a process that is killed loses no record, and
nothing has to be closed. A run that resumes from a checkpoint continues its old log: records of
steps that are taken again are replaced. Of several processes, the first one writes.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import pathlib
import socket
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax._files import end_of_whole_lines, json_values

Log = Callable[[int, Mapping[str, float]], None]
"""``(step, metrics) -> None``."""


@checked
def json_lines(path: str | os.PathLike[str], *, every: int = 1) -> Log:
    """A log that appends ``{"step": 7, "loss": 0.53, ...}`` to a file, one line per record.

    Read it with ``pandas.read_json(path, lines=True)``. JSON has no NaN and no infinity: they are
    written as the strings ``"nan"``, ``"inf"`` and ``"-inf"``, which ``float`` and
    ``pandas.to_numeric`` read.

    One file holds one run. If a record's step is in the file already, that step and all later ones
    are being taken again, and their lines are deleted: a resumed run leaves no line twice, and a
    run that starts over empties the file. An incomplete last line is deleted as well.

    Args:
      path: The file; missing folders are created.
      every: Steps between lines; evaluations are always written.

    Returns:
      A log ``(step, metrics) -> None``. If it cannot write, for example to a full disk, it warns
      once, and training continues without those lines.

    Raises:
      TypeError: if ``every`` is not an integer.
      ValueError: if ``every < 1``, or the file holds something else.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.jsonl"
      >>> log = json_lines(path)
      >>> log(1, {"loss": 0.5})
      >>> log(1, {"accuracy": 0.75})
      >>> print(path.read_text())
      {"step": 1, "loss": 0.5}
      {"step": 1, "accuracy": 0.75}
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"path must be a file, got the folder {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _whole_lines(path, math.inf)
    except FileNotFoundError:
        pass
    except _Foreign as line:
        raise ValueError(
            f"path must be a new file or a log, got {path}, which holds {line}: use another path"
        ) from None
    return _Log(every, _Lines(path))


@checked
def tensorboard(folder: str | os.PathLike[str], *, every: int = 1) -> Log:
    """A log for TensorBoard, with one curve per name.

    Needs tensorboardX: ``pip install 'distill_jax[tensorboard]'``. Show it with ``tensorboard
    --logdir folder``. A resumed run writes a second file into the folder, which says from which
    step on it replaces the first.

    Args:
      folder: A folder for this run alone, on a disk; created if it is missing.
      every: Steps between points; evaluations are always written.

    Returns:
      A log ``(step, metrics) -> None``. If it cannot write, for example to a full disk, it warns
      once, and training continues without those points.

    Raises:
      ImportError: without tensorboardX.
      TypeError: if ``every`` is not an integer.
      ValueError: if ``every < 1``, or the folder is a file.
    """
    try:
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c
    except ImportError as error:
        raise ImportError(
            "tensorboard needs tensorboardX: pip install 'distill_jax[tensorboard]'"
        ) from error
    folder = pathlib.Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder must be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    return _Log(every, _Events(folder, event_pb2, masked_crc32c))


def listed(log: Any) -> tuple[Log, ...]:
    """One log or several, as a tuple."""
    logs = (log,) if callable(log) else log
    if not isinstance(logs, Sequence) or not all(map(callable, logs)):
        raise TypeError(
            "log must be a callable (step, metrics) or a list of them, json_lines(path) for "
            f"example, got {log!r}"
        )
    return tuple(logs)


def tell(logs: Sequence[Log], first: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Passes the metrics of some steps to every log in turn.

    Args:
      logs: One or more, or none.
      first: Steps taken after the first of them, 1 at the start of a run.
      metrics: By name, ``[steps]`` each, on the host.
    """
    if logs:
        columns = [np.asarray(x).tolist() for x in metrics.values()]
        for step, values in enumerate(zip(*columns, strict=True), start=first):
            for log in logs:
                log(step, dict(zip(metrics, values, strict=True)))


class _Log:
    """Chooses the records that are written, and notices when a run starts over or resumes."""

    def __init__(self, every: int, target: Any):
        self.every, self.target = _checks.count("every", every), target
        self.last: float = math.inf

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        if jax.process_index() != 0:
            return
        if "step" in metrics:
            raise ValueError("a metric must not be named 'step': logs use that name already")
        step = int(step)
        if step < self.last:
            self.target.begin(step)
        self.last = step
        if step % self.every == 0 or "loss" not in metrics:
            self.target.write(step, {name: float(value) for name, value in metrics.items()})


class _Appended:
    """A file that grows by whole records; a record that cannot be written is skipped."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.file: Any = None
        self.warned = False

    def append(self, record: bytes) -> None:
        try:
            if self.file is None:
                self.file = self.path.open("ab", buffering=0)
                weakref.finalize(self, self.file.close)
            size = os.fstat(self.file.fileno()).st_size
            if self.file.write(record) != len(record):  # the disk was full half way
                os.ftruncate(self.file.fileno(), size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except (OSError, ValueError) as error:  # ValueError: somebody closed the file
            self.fail(error)

    def fail(self, error: Exception) -> None:
        if not self.warned:
            self.warned = True
            warnings.warn(
                f"{self.path} cannot be written ({error}): training continues, its log has gaps",
                RuntimeWarning,
                stacklevel=2,
            )


class _Lines(_Appended):
    def begin(self, step: int) -> None:
        try:
            os.truncate(self.path, _whole_lines(self.path, step))
        except FileNotFoundError:
            pass
        except _Foreign as line:
            self.fail(ValueError(f"it holds {line}"))
        except OSError as error:
            self.fail(error)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.append(json.dumps(json_values({"step": step, **metrics})).encode() + b"\n")


class _Events(_Appended):
    """A file for TensorBoard: records of Protocol Buffers, each with its length and checksums."""

    def __init__(self, folder: pathlib.Path, messages: Any, checksum: Any):
        # TensorBoard reads the files in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        super().__init__(folder / name)
        self.messages, self.checksum = messages, checksum
        self.headed = False

    def begin(self, step: int) -> None:
        if not self.headed:
            self.headed = True
            self.record(file_version="brain.Event:2")
        start = self.messages.SessionLog(status=self.messages.SessionLog.START)
        self.record(step=step, session_log=start)  # what came before from this step on is void

    def write(self, step: int, metrics: dict[str, float]) -> None:
        points = [{"tag": name, "simple_value": value} for name, value in metrics.items()]
        self.record(step=step, summary={"value": points})

    def record(self, **fields: Any) -> None:
        data = self.messages.Event(wall_time=time.time(), **fields).SerializeToString()
        length = len(data).to_bytes(8, "little")
        parts = [length, self.summed(length), data, self.summed(data)]
        self.append(b"".join(parts))

    def summed(self, data: bytes) -> bytes:
        return self.checksum(data).to_bytes(4, "little")


_START = b'{"step": '  # of every line


class _Foreign(Exception):
    """A line that is not part of a log."""


def _whole_lines(path: pathlib.Path, step: float) -> int:
    """The length in bytes of a log's whole lines before ``step``, read from its end."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            end = end_of_whole_lines(text)
            if not end and text[: len(_START)] != _START[: len(text)]:
                raise _Foreign(repr(text[:40]))
            while end:
                start = text.rfind(b"\n", 0, end - 1) + 1
                if _step(text[start:end]) < step:
                    break
                end = start
            return end


def _step(line: bytes) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        raise _Foreign(repr(line[:40])) from None
