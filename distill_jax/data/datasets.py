"""Data sets that can be downloaded and read: MNIST."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np
from rich.errors import LiveError
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from distill_jax._arguments import checked
from distill_jax.data import files
from distill_jax.data.files import Path

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"

# SHA-256 of what is inside each .gz: mirrors compress the same bytes differently.
_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MOST_UNPACKED = 1 << 30
"""Bytes that a file may unpack to: what a few megabytes unpack to is not known beforehand."""

_COMMAND = "python -m distill_jax.data mnist"


@checked
def mnist(folder: Path | None = None) -> dict[str, dict[str, np.ndarray]]:
    """MNIST from its four ``.gz`` files.

    Args:
      folder: The folder that holds them; ``distill_jax.data.folder("mnist")`` by default.

    Returns:
      ``{"train": data, "test": data}`` with 60,000 and 10,000 examples. Each ``data`` has
      ``inputs`` (``[n, 28, 28]``, float32, from 0 for paper to 1 for ink) and ``labels`` (``[n]``,
      int32).

    Raises:
      FileNotFoundError: if the folder or a file is missing.
      ValueError: if a file is damaged, truncated, or not what its name says.

    References:
      LeCun et al., `Gradient-based learning applied to document recognition
      <https://doi.org/10.1109/5.726791>`_, 1998; CC BY-SA 3.0.
    """
    place = pathlib.Path(folder) if folder is not None else files.folder("mnist")
    return {"train": _part(place, "train"), "test": _part(place, "t10k")}


@checked
def download(name: str, *, to: Path | None = None, url: str = MIRROR) -> pathlib.Path:
    """Downloads a data set's files, verifies their checksums, and returns their folder.

    A file that is already there and intact is kept; any other is replaced in one step, so that an
    interrupted download leaves nothing behind.

    Args:
      name: ``"mnist"``.
      to: The folder to fill; the cache by default.
      url: Where the files are, any address that :mod:`urllib` opens.

    Returns:
      The folder that holds the files, for :func:`mnist`.

    Raises:
      ValueError: if ``name`` is unknown, or a file is not the one that was published.
      OSError: if a file cannot be fetched or written.
    """
    if name != "mnist":
        raise ValueError(f"name must be 'mnist', the only data set to download, got {name!r}")
    place = pathlib.Path(to) if to is not None else files.cache() / name
    place.mkdir(parents=True, exist_ok=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with _shown(Progress(*columns, TransferSpeedColumn())) as progress:
        for stem, digest in _MNIST.items():
            path = place / f"{stem}.gz"

            def is_published(path: pathlib.Path, digest: str = digest) -> bool:
                return _content_has(path, digest)

            if not is_published(path):
                files.fetch(f"{url.rstrip('/')}/{path.name}", path, is_published, progress)
    return place


@contextlib.contextmanager
def _shown(progress: Progress) -> Iterator[Progress]:
    """The bar on its terminal; none inside another display where rich allows one only."""
    try:
        progress.start()
    except LiveError:
        progress.disable = True
    try:
        yield progress
    finally:
        progress.stop()


def _part(place: pathlib.Path, prefix: str) -> dict[str, np.ndarray]:
    images_file = place / f"{prefix}-images-idx3-ubyte.gz"
    labels_file = place / f"{prefix}-labels-idx1-ubyte.gz"
    images, labels = _read_idx(images_file, 3), _read_idx(labels_file, 1)
    if images.shape[1:] != (28, 28):
        raise ValueError(f"{images_file} must hold images of 28 x 28, got {images.shape[1:]}")
    if len(images) != len(labels):
        raise ValueError(
            f"{images_file} has {len(images)} images and {labels_file} {len(labels)} labels: they "
            f"do not belong together; {_download_again(images_file)}"
        )
    if labels.size and labels.max() > 9:
        raise ValueError(f"{labels_file} must hold labels 0 ... 9, got {labels.max()}")
    return {"inputs": images.astype(np.float32) / 255.0, "labels": labels.astype(np.int32)}


def _read_idx(path: pathlib.Path, axes: int) -> np.ndarray:
    """An IDX file of unsigned bytes: magic 0, 0, 8, axes; a big-endian size per axis; the bytes."""
    content = b"".join(_unzipped(path))
    header = 4 * (axes + 1)
    if len(content) < header or content[:4] != bytes([0, 0, 8, axes]):
        raise ValueError(
            f"{path} must be an IDX file of unsigned bytes with {axes} axes (its first bytes "
            f"0, 0, 8, {axes}), got {list(content[:4])}: {_download_again(path)}"
        )
    sizes = tuple(int(size) for size in np.frombuffer(content, ">u4", count=axes, offset=4))
    expected = int(np.prod(sizes, dtype=np.int64))
    if len(content) - header != expected:
        raise ValueError(
            f"{path} must hold {expected} bytes for its shape {sizes}, got "
            f"{len(content) - header}: {_download_again(path)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)


def _content_has(path: pathlib.Path, digest: str) -> bool:
    found = hashlib.sha256()
    try:
        for block in _unzipped(path):
            found.update(block)
    except (FileNotFoundError, ValueError):
        return False
    return found.hexdigest() == digest


def _unzipped(path: pathlib.Path) -> Iterator[bytes]:
    """The content of a ``.gz`` file, block by block, up to ``MOST_UNPACKED`` bytes."""
    try:
        with gzip.open(path) as file:
            size = 0
            while block := file.read(1 << 20):
                size += len(block)
                if size > MOST_UNPACKED:
                    raise ValueError(
                        f"{path} unpacks to more than {MOST_UNPACKED} bytes, and is no file of "
                        f"this data set: {_download_again(path)}"
                    )
                yield block
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: run `{_COMMAND} --to {path.parent}`") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged or truncated ({error}): {_download_again(path)}"
        ) from error


def _download_again(path: pathlib.Path) -> str:
    return f"delete {path.name} and its companions there, and run `{_COMMAND} --to {path.parent}`"
