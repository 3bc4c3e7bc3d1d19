"""Data sets on disk: found, downloaded, read.

``DISTILL_JAX_DATA`` may name a folder that has one sub-folder a data set; downloads go to the
user's cache, ``~/.cache/distill_jax`` (``XDG_CACHE_HOME`` is honoured).
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import pathlib
import urllib.error
import urllib.request
import zlib
from typing import BinaryIO, TypeAlias

import numpy as np
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)

from distill_jax._files import replacing

VARIABLE = "DISTILL_JAX_DATA"
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"

# SHA-256 of what is inside each .gz: mirrors compress the same bytes differently.
_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_COMMAND = "python -m distill_jax.data mnist"

Path: TypeAlias = str | os.PathLike[str]


def cache() -> pathlib.Path:
    """The folder that downloads go to; it need not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(home) if home else pathlib.Path.home() / ".cache") / "distill_jax"


def folder(name: str) -> pathlib.Path:
    """The folder of a data set: below ``$DISTILL_JAX_DATA``, else in the user's cache.

    Args:
      name: Name of the data set, which is the name of its folder.

    Raises:
      FileNotFoundError: if neither place has it; the message says which places were looked at.
      ValueError: if ``name`` is not one plain folder name.
    """
    if not name or name in (".", "..") or pathlib.PurePath(name).name != name:
        raise ValueError(f"name must be the name of one folder, such as 'mnist', got {name!r}")
    root = os.environ.get(VARIABLE)
    places = ([pathlib.Path(root) / name] if root else []) + [cache() / name]
    for place in places:
        if place.is_dir():
            return place
    unset = "" if root else f" ({VARIABLE} is not set)"
    download_it = f"download it with `{_COMMAND}`, or " if name == "mnist" else ""
    raise FileNotFoundError(
        f"data set {name!r} was found neither below ${VARIABLE}{unset} nor in the cache: looked "
        f"for {' and '.join(str(place) for place in places)}; {download_it}set {VARIABLE} to a "
        f"folder that has a sub-folder {name!r}"
    )


def mnist(folder: Path | None = None) -> dict[str, dict[str, np.ndarray]]:
    """MNIST from its four ``.gz`` files.

    Args:
      folder: The folder that holds them; ``distill_jax.data.folder("mnist")`` by default.

    Returns:
      ``{"train": data, "test": data}``. Each ``data`` has ``inputs`` (``[n, 28, 28]``, float32,
      0 paper to 1 ink) and ``labels`` (``[n]``, int32).

    Raises:
      FileNotFoundError: if the folder or a file is missing.
      ValueError: if a file is damaged, truncated, or not what its name says.

    References:
      LeCun et al., `Gradient-based learning applied to document recognition
      <https://doi.org/10.1109/5.726791>`_, 1998; CC BY-SA 3.0.
    """
    place = pathlib.Path(folder) if folder is not None else _folder("mnist")
    return {"train": _part(place, "train"), "test": _part(place, "t10k")}


_folder = folder  # ``mnist`` has an argument of that name


def _part(place: pathlib.Path, prefix: str) -> dict[str, np.ndarray]:
    files = place / f"{prefix}-images-idx3-ubyte.gz", place / f"{prefix}-labels-idx1-ubyte.gz"
    images, labels = _read_idx(files[0], 3), _read_idx(files[1], 1)
    if images.shape[1:] != (28, 28):
        raise ValueError(f"{files[0]} must hold images of 28 x 28, got {images.shape[1:]}")
    if len(images) != len(labels):
        raise ValueError(
            f"{files[0]} has {len(images)} images and {files[1]} {len(labels)} labels: they do "
            f"not belong together; {_again(files[0])}"
        )
    if labels.size and labels.max() > 9:
        raise ValueError(f"{files[1]} must hold labels 0 ... 9, got {labels.max()}")
    return {"inputs": images.astype(np.float32) / 255.0, "labels": labels.astype(np.int32)}


def _again(path: pathlib.Path) -> str:
    return f"delete {path.name} and its companions there, and run `{_COMMAND} --to {path.parent}`"


def _read_idx(path: pathlib.Path, axes: int) -> np.ndarray:
    """An IDX file of unsigned bytes: magic 0, 0, 8, axes; a big-endian size an axis; the bytes."""
    content = _unzip(path)
    header = 4 * (axes + 1)
    if len(content) < header or content[:4] != bytes([0, 0, 8, axes]):
        raise ValueError(
            f"{path} must be an IDX file of unsigned bytes with {axes} axes (its first bytes "
            f"0, 0, 8, {axes}), got {list(content[:4])}: {_again(path)}"
        )
    sizes = tuple(int(size) for size in np.frombuffer(content, ">u4", count=axes, offset=4))
    expected = int(np.prod(sizes, dtype=np.int64))
    if len(content) - header != expected:
        raise ValueError(
            f"{path} must hold {expected} bytes for its shape {sizes}, got "
            f"{len(content) - header}: {_again(path)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)


def _unzip(path: pathlib.Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: run `{_COMMAND} --to {path.parent}`") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or truncated ({error}): {_again(path)}") from error


def download(name: str, *, to: Path | None = None, url: str = MIRROR) -> pathlib.Path:
    """Downloads a data set's files, checks what is in them, and returns their folder.

    A file that is there and sound is kept; any other is replaced in one step, so that a broken
    download leaves nothing behind.

    Args:
      name: ``"mnist"``.
      to: The folder to fill; the cache by default.
      url: Where the files are, any address that :mod:`urllib` opens.

    Raises:
      ValueError: if ``name`` is unknown, or a file is not the one that was published.
      OSError: if a file cannot be fetched or written.
    """
    if name != "mnist":
        raise ValueError(f"name must be 'mnist', the only data set to download, got {name!r}")
    place = pathlib.Path(to) if to is not None else cache() / name
    place.mkdir(parents=True, exist_ok=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, TransferSpeedColumn()) as progress:
        for stem, digest in _MNIST.items():
            file = f"{stem}.gz"
            if not _sound(place / file, digest):
                _fetch(url.rstrip("/") + "/" + file, place / file, digest, progress)
    return place


def _sound(path: pathlib.Path, digest: str) -> bool:
    try:
        return hashlib.sha256(_unzip(path)).hexdigest() == digest
    except (FileNotFoundError, ValueError):
        return False


def _fetch(url: str, path: pathlib.Path, digest: str, progress: Progress) -> None:
    task = progress.add_task(path.name, total=None)
    with replacing(path) as file:
        _copy(url, file, progress, task)
        file.flush()
        if not _sound(pathlib.Path(file.name), digest):
            raise ValueError(
                f"{url} is not the published file (SHA-256 of its content differs, or it is cut "
                "short): try again, or give another address with --url"
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
