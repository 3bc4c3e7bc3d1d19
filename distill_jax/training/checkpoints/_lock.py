"""One run per folder: a lock that the system releases when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import BinaryIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from distill_jax._files import locked

LOCK = ".lock"
_held: set[BinaryIO] = set()


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other runs out of a folder.

    The first of several processes holds the lock for all. If the system or the file system has no
    locks, no run is kept out.

    Raises:
      ValueError: in every process, if another run is in the folder.
    """
    file, holder = _take(folder / LOCK) if jax.process_index() == 0 else (None, None)
    try:
        refused = holder is not None
        if jax.process_count() > 1:
            refused = bool(multihost_utils.process_allgather(np.array([refused])).any())
        if refused:
            raise ValueError(
                f"another run has {folder} open{holder or ''}: use another folder for this run, "
                "or wait until that one ends"
            )
        yield
    finally:
        if file is not None:
            _release(file, folder / LOCK)


def _take(path: pathlib.Path) -> tuple[BinaryIO | None, str | None]:
    """The locked file, or else who holds it; neither where there are no locks."""
    while True:
        try:
            file = path.open("a+b", buffering=0)
        except OSError:  # another user's
            return None, None
        taken = locked(file)
        # Whoever held the lock may just have deleted the file: then others see another one.
        if taken and _is_at(file, path):
            break
        with file:
            if taken is None:
                return None, None
            if not taken:
                file.seek(0)
                who = file.read(200).decode(errors="replace").strip()
                return None, f" ({who})" if who else ""
    with contextlib.suppress(OSError):  # a full disk
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    _held.add(file)
    return file, None


def _release(file: BinaryIO, path: pathlib.Path) -> None:
    _held.discard(file)
    with file, contextlib.suppress(OSError):
        if _is_at(file, path):
            path.unlink()


def _is_at(file: BinaryIO, path: pathlib.Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _forget() -> None:
    """In a forked process, which would otherwise keep the lock after this one has ended."""
    while _held:
        _held.pop().close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
