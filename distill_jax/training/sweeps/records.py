"""A file of finished trials: a line each, written as soon as they are known.

The first line says what sweep it is. A last line that was cut off is dropped.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

from distill_jax._files import end_of_whole_lines, json_values, locked

_KIND, _FLOAT = "sweep", "float"
_ADVICE = "give this sweep a file of its own, or remove the old one"

Row = dict[str, Any]


class Records:
    """An open file; a context manager.

    Attributes:
      found: The metrics that are there already, by :func:`name`.

    Raises:
      ValueError: if the file is not one of this sweep, naming the difference.
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any]):
        self._path = pathlib.Path(path)
        self._header = json_values({_KIND: 1, **header})
        self.found: dict[str, Row] = {}
        self._programs: dict[str, Any] = {}
        self._synced = -math.inf

    def __enter__(self) -> Records:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = self._path.open("a+b")
        try:
            if locked(self._file) is False:
                raise ValueError(f"{str(self._path)!r} is being written by another sweep")
            self._file.seek(0)
            content = self._file.read()
            lines, whole = _lines(content, self._path)
            if lines:
                self._check(lines[0])
            elif not _line(self._header).startswith(content):
                raise self._foreign()
            for line in lines[1:]:
                if "program" in line:
                    self._programs[_text(line["static"])] = line["program"]
                else:
                    self.found[name(line["parameters"], line["seed"])] = _metrics(line)
            # Only now: until the file is known to be this sweep's, it is somebody else's.
            self._file.truncate(whole)
            if not lines:
                self._write([self._header])
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._sync()

    def add(self, rows: Iterable[tuple[Mapping[str, Any], int, Row]]) -> None:
        """Appends ``(parameters, seed, metrics)``."""
        self._write(
            {"parameters": _kept(parameters), "seed": seed, **_packed(metrics)}
            for parameters, seed, metrics in rows
        )

    def check_program(self, static: Mapping[str, Any], program: Mapping[str, str]) -> None:
        """Compares a program with the one that made the rows that are there, or notes it."""
        before = self._programs.get(_text(_kept(static)))
        if before is None:
            self._write([{"static": _kept(static), "program": dict(program)}])
            return
        same_compiler = all(before[n] == program[n] for n in program if n != "text")
        if same_compiler and before["text"] != program["text"]:
            raise ValueError(
                f"the trial that made {str(self._path)!r} was another program than this one "
                f"{f'with {dict(static)} ' if static else ''}(its code, its number of steps, "
                "shapes of its data, or whole numbers in the grid that were none before have "
                f"changed): {_ADVICE}"
            )

    def _check(self, header: Mapping[str, Any]) -> None:
        where = str(self._path)
        if _KIND not in header:
            raise self._foreign()
        ours, theirs = self._header, header
        for part in {**theirs, **ours}:
            mine, other = ours.get(part), theirs.get(part)
            if isinstance(mine, dict) and isinstance(other, dict):
                names = sorted(n for n in {**mine, **other} if mine.get(n) != other.get(n))
                if names:
                    raise ValueError(
                        f"{where!r} is of a sweep with other {part} data ({', '.join(names)}): "
                        f"{_ADVICE}"
                    )
            elif mine != other:
                raise ValueError(
                    f"{where!r} is of another sweep: {part} there is {other!r}, here {mine!r}: "
                    f"{_ADVICE}"
                )

    def _foreign(self) -> ValueError:
        return ValueError(f"{str(self._path)!r} is no file of a sweep: {_ADVICE}")

    def _write(self, lines: Iterable[Any]) -> None:
        self._file.write(b"".join(map(_line, lines)))
        self._file.flush()  # outlives the process from here on
        if time.monotonic() - self._synced > 1.0:
            self._sync()

    def _sync(self) -> None:
        """Makes what is written outlive the machine too, which may take long."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def read_sweep(file: str | os.PathLike[str]) -> list[Row]:
    """The finished trials in a sweep's file, as :func:`sweep` returns them, in order of finishing.

    Also while the sweep is running, or after it was cut off.

    Raises:
      ValueError: if it is no file of a sweep.
    """
    path = pathlib.Path(file)
    lines, _ = _lines(path.read_bytes(), path)
    if not lines or _KIND not in lines[0]:
        raise ValueError(f"{str(path)!r} is no file of a sweep")
    return [_row(line) for line in lines[1:] if "program" not in line]


def name(parameters: Mapping[str, Any], seed: int) -> str:
    """A trial's name within its sweep; the order of parameters does not matter."""
    return _text({"parameters": _kept(parameters), "seed": seed})


def _lines(content: bytes, path: pathlib.Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines, and how many bytes they are."""
    whole = end_of_whole_lines(content)
    lines = []
    for i, line in enumerate(content[:whole].splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {i} of {str(path)!r} cannot be read: {error}") from error
        if not isinstance(lines[-1], dict):
            raise ValueError(f"line {i} of {str(path)!r} is none of a sweep")
    return lines, whole


def _line(x: Any) -> bytes:
    return json.dumps(json_values(x), allow_nan=False).encode() + b"\n"


def _packed(metrics: Row) -> dict[str, Any]:
    """Metrics, and the kinds of those that are arrays."""
    kinds = {n: [str(x.dtype), x.shape] for n, x in metrics.items() if isinstance(x, np.ndarray)}
    return {"metrics": metrics, "arrays": kinds}


def _row(line: Mapping[str, Any]) -> Row:
    row: Row = {n: _given(value) for n, value in line["parameters"].items()}
    return {**row, "seed": line["seed"], **_metrics(line)}


def _metrics(line: Mapping[str, Any]) -> Row:
    row: Row = {}
    for metric, value in line["metrics"].items():
        if metric in line["arrays"]:
            dtype, shape = line["arrays"][metric]
            row[metric] = np.asarray(_numbers(value), dtype).reshape(shape)
        else:
            row[metric] = value if metric == "mode" else _numbers(value)
    return row


def _numbers(x: Any) -> Any:
    if isinstance(x, list):
        return [_numbers(value) for value in x]
    return float(x) if isinstance(x, str) else x


def _kept(x: Any) -> Any:
    """Parameters as JSON, in which an infinity is no string; what is so already stays."""
    if isinstance(x, Mapping):
        return {n: _kept(value) for n, value in x.items()}
    if isinstance(x, list | tuple):
        return [_kept(value) for value in x]
    return {_FLOAT: str(x)} if isinstance(x, float) and not math.isfinite(x) else x


def _given(x: Any) -> Any:
    """A parameter as it was, from what is kept of it."""
    if isinstance(x, list):
        return tuple(_given(value) for value in x)
    return float(x[_FLOAT]) if isinstance(x, Mapping) else x


def _text(x: Any) -> str:
    return json.dumps(json_values(x), sort_keys=True)
