"""Result files that record how they were made."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from distill_jax._arguments import checked
from distill_jax._files import json_values, replacing

_PACKAGES = ("distill_jax", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "torch")


@checked
def save_json(path: str | os.PathLike[str], payload: Any) -> pathlib.Path:
    """Writes data as JSON, atomically: if it fails, an existing file is unchanged.

    Args:
      path: The file; missing parent folders are created.
      payload: Mappings, sequences, strings, numbers, None, and NumPy and JAX scalars and arrays.
        Since JSON has no NaN or infinity, they become the strings ``"nan"``, ``"inf"``, ``"-inf"``.

    Returns:
      The path.

    Raises:
      TypeError: for any other value; the message says where in ``payload`` it is.
    """
    text = json.dumps(
        json_values(payload, "payload"), indent=2, ensure_ascii=False, allow_nan=False
    )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode() + b"\n")
    return path


@checked
def result_file(
    script: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], command: str
) -> dict[str, Any]:
    """The content of a result file: the rows, and what is needed to reproduce them.

    Args:
      script: Path of the script; only its file name is recorded.
      rows: The results, one dictionary per row.
      command: The command line that made them.

    Returns:
      A dictionary of ``script``, ``command``, ``device`` (``platform``, ``kind``, ``devices``, and
      the ``cpus`` available to this process), ``versions`` (of Python and of installed packages)
      and ``rows``.
    """
    device = jax.devices()[0]
    return {
        "script": pathlib.PurePath(script).name,
        "command": command,
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "devices": jax.device_count(),
            "cpus": _cpus(),
        },
        "versions": {"python": platform.python_version()} | _versions(),
        "rows": list(rows),
    }


def _cpus() -> int | None:
    if hasattr(os, "sched_getaffinity"):  # a container may have fewer than the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
