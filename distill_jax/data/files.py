"""Where data sets lie on disk, and files fetched from the web.

``DISTILL_JAX_DATA`` may name a folder that has one sub-folder per data set. Downloads go to the
user's cache, ``~/.cache/distill_jax``, or below ``XDG_CACHE_HOME`` if that is set.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import BinaryIO, TypeAlias

from rich.progress import Progress, TaskID

from distill_jax._arguments import checked
from distill_jax._files import replacing

VARIABLE = "DISTILL_JAX_DATA"

Path: TypeAlias = str | os.PathLike[str]


def cache() -> pathlib.Path:
    """The folder that downloads go to. It need not exist yet.

    Raises:
      FileNotFoundError: if this user has no home, as in a container without ``HOME`` whose user is
        not in ``/etc/passwd``.
    """
    place = os.environ.get("XDG_CACHE_HOME")
    try:
        home = pathlib.Path(place) if place else pathlib.Path.home() / ".cache"
    except RuntimeError as error:
        raise FileNotFoundError(
            "there is no cache, since this user has no home folder: set HOME or XDG_CACHE_HOME, "
            f"or {VARIABLE} to a folder that has the data sets"
        ) from error
    return home / "distill_jax"


@checked
def folder(name: str) -> pathlib.Path:
    """The folder of a data set: below ``$DISTILL_JAX_DATA``, or else in the user's cache.

    Args:
      name: Name of the data set, which is also the name of its folder.

    Returns:
      A folder that exists.

    Raises:
      FileNotFoundError: if neither place has it; the message lists the places.
      ValueError: if ``name`` is not a plain folder name.
    """
    if not name or name in (".", "..") or pathlib.PurePath(name).name != name:
        raise ValueError(f"name must be the name of one folder, such as 'mnist', got {name!r}")
    root = os.environ.get(VARIABLE)
    places = [pathlib.Path(root) / name] if root else []
    with contextlib.suppress(FileNotFoundError):  # no home
        places.append(cache() / name)
    for place in places:
        if place.is_dir():
            return place
    unset = "" if root else f" ({VARIABLE} is not set)"
    looked = " and ".join(map(str, places)) or "nothing, as this user has no home"
    raise FileNotFoundError(
        f"data set {name!r} was found neither below ${VARIABLE}{unset} nor in the cache: looked "
        f"for {looked}; set {VARIABLE} to a folder that has "
        f"a sub-folder {name!r}, or run `python -m distill_jax.data {name}` if it is one of those "
        "that can be downloaded"
    )


def fetch(
    url: str, path: pathlib.Path, is_published: Callable[[pathlib.Path], bool], progress: Progress
) -> None:
    """Downloads ``url`` to ``path``, which is replaced in one step, or not at all.

    Args:
      url: Any address that :mod:`urllib` opens.
      path: The file to write.
      is_published: Whether a downloaded file is the one that was published.
      progress: Shows how much has arrived.

    Raises:
      ValueError: if the file is not the published one.
      OSError: if it cannot be fetched or written.
    """
    task = progress.add_task(path.name, total=None)
    with replacing(path) as file:
        _copy(url, file, progress, task)
        file.flush()
        if not is_published(pathlib.Path(file.name)):
            raise ValueError(
                f"{url} is not the published file (the SHA-256 of its content differs, or it is "
                "truncated): try again, or give another address with --url"
            )


def _copy(url: str, file: BinaryIO, progress: Progress, task: TaskID) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            length = response.headers.get("Content-Length")
            progress.update(task, total=int(length) if length else None)
            while block := response.read(1 << 16):
                file.write(block)
                progress.advance(task, len(block))
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        raise OSError(
            f"{url} could not be fetched ({error}): check the connection, or give another address "
            f"with --url, or set {VARIABLE} to a folder that has the files"
        ) from error
