"""Results as files that say where they come from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from distill_jax._files import json_values, replacing

_PACKAGES = ("distill_jax", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "torch")


def save_json(path: str | os.PathLike[str], payload: Any) -> pathlib.Path:
    """Writes plain data as JSON, all or nothing: a failure leaves an old file as it was.

    Args:
      path: The file; folders above it are made.
      payload: Mappings, sequences, strings, numbers, None, and NumPy and JAX scalars and arrays.
        JSON has no NaN and no infinity: they become the strings ``"nan"``, ``"inf"``, ``"-inf"``.

    Returns:
      The path.

    Raises:
      TypeError: for anything else, naming where in ``payload`` it stands.
    """
    text = json.dumps(
        json_values(payload, "payload"), indent=2, ensure_ascii=False, allow_nan=False
    )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode() + b"\n")
    return path


def result_file(
    script: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], command: str
) -> dict[str, Any]:
    """What a result file holds: the rows, and what it takes to get them again.

    Args:
      script: Of which its file name is kept.
      rows: The results.
      command: What was typed.

    Returns:
      ``script``, ``command``, ``device`` (``platform``, ``kind``, ``devices``, and ``cpus`` that
      this process may use), ``versions`` (Python's, and those of the packages that are installed)
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
