"""Several processes that train together must agree before the first step.

Each of them compiles and runs the same program on its own. If they disagree on a shape, they wait
for each other forever; if they disagree on a number, the result is meaningless. So they compare
their arguments while an error can still say what is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from distill_jax._fingerprints import digest
from distill_jax._text import printable

SHOWN = 20  # differences listed in one message
LONG = 60  # characters shown of a value


def agree(**named: Any) -> None:
    """Raises ValueError, in every process, unless all processes were given equal values.

    All processes must call it. A single process always agrees with itself.

    Args:
      named: Values of JSON in nested dictionaries and lists, and arrays, which are compared by
        dtype, shape and a cryptographic hash.

    Raises:
      ValueError: names what differs, and which processes were given which value.
      TypeError: if a value is neither a value of JSON nor an array.
    """
    own = dict(_flat(named))
    if jax.process_count() == 1:
        return
    text = json.dumps(own, sort_keys=True).encode()
    digests = _gathered(np.frombuffer(hashlib.sha256(text).digest(), np.uint8))
    if all(digest == digests[0] for digest in digests):
        return
    lengths = [
        int(np.frombuffer(n, np.int32)[0]) for n in _gathered(np.array([len(text)], np.int32))
    ]
    padded = np.zeros(max(lengths), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    texts = [x[:n] for x, n in zip(_gathered(padded), lengths, strict=True)]
    lines = disagreements([json.loads(x) for x in texts])
    more = "" if len(lines) <= SHOWN else f"\n  and {len(lines) - SHOWN} more"
    raise ValueError(
        f"the {len(texts)} processes must be given the same run, and they disagree:\n"
        + "\n".join(f"  {line}" for line in lines[:SHOWN])
        + more
        + "\nStart all of them with the same script, options, data and library versions"
    )


def of_the_first(number: float) -> float:
    """The number that the first process was given, in all of them. All must call it."""
    if jax.process_count() == 1:
        return number
    return float(np.frombuffer(_gathered(np.array([number], np.float64))[0], np.float64)[0])


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside it, an error of the runtime notes that another process may have caused it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1:
            error.add_note(
                f"{jax.process_count()} processes train together, and another process may have "
                "ended: see its log. All of them must be started again; with checkpoints, they "
                "resume from the last one"
            )
        raise


def disagreements(given: Sequence[Mapping[str, str]]) -> list[str]:
    """One line for each name that processes have different values for.

    Args:
      given: Values by name, as they are shown, one mapping per process.

    Example:
      >>> disagreements([{"steps": "10"}, {"steps": "20"}, {"steps": "10"}])
      ['steps is 10 in processes 0, 2; 20 in process 1']
    """
    lines = []
    for name in dict.fromkeys(name for values in given for name in values):
        holders: dict[str, list[int]] = {}
        for process, values in enumerate(given):
            holders.setdefault(values.get(name, "not there"), []).append(process)
        if len(holders) > 1:
            each = [f"{value} in {_processes(who)}" for value, who in holders.items()]
            lines.append(printable(f"{name} is {'; '.join(each)}"))
    return lines


def _processes(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"{'process' if len(numbers) == 1 else 'processes'} {listed}"


def _gathered(x: np.ndarray) -> list[bytes]:
    """The array's bytes in every process, in the order of processes."""
    return [row.tobytes() for row in np.asarray(multihost_utils.process_allgather(_bytes(x)))]


def _bytes(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Paths and how the values there are shown; unequal values are shown differently."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}/{name}" if path else str(name))
    elif isinstance(value, list | tuple) and not all(_plain(x) for x in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{path}/{i}")
    elif isinstance(value, np.ndarray | jax.Array):
        if value.dtype.hasobject:
            raise TypeError(f"{path} must be an array of numbers or text, got dtype {value.dtype}")
        yield path, f"{value.dtype}{list(value.shape)} with hash {digest(value)}"
    elif _plain(value) or isinstance(value, Mapping | list | tuple):
        text = json.dumps(value)
        if len(text) > LONG:
            hashed = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            text = f"{text[:LONG]}... (hash {hashed})"
        yield path, text
    else:
        raise TypeError(f"{path} must be a value of JSON or an array, got {type(value).__name__}")


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
