"""Files that are there whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import BinaryIO


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
