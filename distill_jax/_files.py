"""What this library's files need: to be written whole, to hold JSON, to have one writer."""

from __future__ import annotations

import contextlib
import errno
import math
import numbers
import os
import pathlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import jax
import numpy as np

from distill_jax._fingerprints import is_key


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` at the end, in one step.

    If the block raises, or the disk is full, what was at ``path`` stays, and nothing else is left.
    """
    # In the same folder: a rename is atomic only within one file system.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a full disk may show only here
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def locked(file: BinaryIO) -> bool | None:
    """Takes the lock of an open file, which the system releases when the process ends.

    Returns:
      True if this process has the lock now, False if another one has it, and None where the system
      or the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held = error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
        return False if held else None
    return True


def end_of_whole_lines(text: Any) -> int:
    """Bytes of a file of lines without its last line, if that was cut off while it was written.

    Args:
      text: The content, as ``bytes`` or a memory map.
    """
    return text.rfind(b"\n") + 1


def json_values(x: Any, place: str = "value") -> Any:
    """Plain data as values of JSON.

    JSON has no NaN and no infinity: they become the strings ``"nan"``, ``"inf"`` and ``"-inf"``,
    which ``float`` reads.

    Args:
      x: Mappings, sequences, strings, numbers, None, paths, and NumPy and JAX scalars and arrays.
      place: What to call ``x`` in messages.

    Raises:
      TypeError: for anything else, naming where in ``x`` it stands.
    """
    if x is None or isinstance(x, bool | str):
        return x
    if isinstance(x, Mapping):
        return {_name(k, place): json_values(v, f"{place}[{k!r}]") for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [json_values(v, f"{place}[{i}]") for i, v in enumerate(x)]
    if isinstance(x, os.PathLike):
        return os.fspath(x)
    # Random keys are arrays too, but no numbers.
    if isinstance(x, np.ndarray | np.generic) or (isinstance(x, jax.Array) and not is_key(x)):
        return json_values(np.asarray(x).tolist(), place)
    if isinstance(x, numbers.Integral):
        return int(x)
    if isinstance(x, numbers.Real):
        return float(x) if math.isfinite(x) else str(float(x))
    raise TypeError(f"{place} must be plain data or an array, got {type(x).__name__}")


def _name(key: Any, place: str) -> str:
    if isinstance(key, str | int | np.integer) and not isinstance(key, bool):
        return str(key)
    raise TypeError(f"the names in {place} must be strings, got {key!r}")
