"""A file of finished trials: one line each, written as soon as they finish.

The first line describes the sweep. An incomplete last line is ignored.
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
_ADVICE = "use another file for this sweep, or remove the old one"

Row = dict[str, Any]


class Records:
    """An open file; a context manager.

    Attributes:
      found: The metrics that the file holds already, by :func:`name`.

    Raises:
      ValueError: if the file belongs to another sweep, naming the difference.
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
            # Only now: before it is known to be this sweep's, the file must not change.
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
        """Compares a program with the one that made the rows in the file, or records it."""
        before = self._programs.get(_text(_kept(static)))
        if before is None:
            self._write([{"static": _kept(static), "program": dict(program)}])
            return
        same_compiler = all(before[n] == program[n] for n in program if n != "text")
        if same_compiler and before["text"] != program["text"]:
            raise ValueError(
                f"the program of the trial that made {str(self._path)!r} differs from this one "
                f"{f'with {dict(static)} ' if static else ''}(its code, its number of steps, the "
                "shapes of its data, or the type of numbers in the grid, integer or not, have "
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
                        f"{where!r} belongs to a sweep whose {part} data differ "
                        f"({', '.join(names)}): {_ADVICE}"
                    )
            elif mine != other:
                raise ValueError(
                    f"{where!r} belongs to another sweep: its {part} is {other!r}, here {mine!r}: "
                    f"{_ADVICE}"
                )

    def _foreign(self) -> ValueError:
        return ValueError(f"{str(self._path)!r} is not a file of a sweep: {_ADVICE}")

    def _write(self, lines: Iterable[Any]) -> None:
        self._file.write(b"".join(map(_line, lines)))
        self._file.flush()  # from here on it survives the end of the process
        if time.monotonic() - self._synced > 1.0:
            self._sync()

    def _sync(self) -> None:
        """Makes what is written survive a crash of the machine too, which may take long."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def read_sweep(file: str | os.PathLike[str]) -> list[Row]:
    """The finished trials in a sweep's file, also while it runs or after an interruption.

    Args:
      file: The file given to :func:`sweep`.

    Returns:
      Rows as :func:`sweep` returns them, in the order in which the trials finished.

    Raises:
      ValueError: if it is not a file of a sweep.
    """
    path = pathlib.Path(file)
    lines, _ = _lines(path.read_bytes(), path)
    if not lines or _KIND not in lines[0]:
        raise ValueError(f"{str(path)!r} is not a file of a sweep")
    return [_row(line) for line in lines[1:] if "program" not in line]


def name(parameters: Mapping[str, Any], seed: int) -> str:
    """A trial's name within its sweep; the order of parameters does not matter."""
    return _text({"parameters": _kept(parameters), "seed": seed})


def _lines(content: bytes, path: pathlib.Path) -> tuple[list[dict[str, Any]], int]:
    """The complete lines, and their length in bytes."""
    whole = end_of_whole_lines(content)
    lines = []
    for i, line in enumerate(content[:whole].splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {i} of {str(path)!r} cannot be read: {error}") from error
        if not isinstance(lines[-1], dict):
            raise ValueError(f"line {i} of {str(path)!r} is not part of a sweep")
    return lines, whole


def _line(x: Any) -> bytes:
    return json.dumps(json_values(x), allow_nan=False).encode() + b"\n"


def _packed(metrics: Row) -> dict[str, Any]:
    """Metrics, with dtype and shape of those that are arrays."""
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
    """Parameters as JSON in which infinities differ from strings; idempotent."""
    if isinstance(x, Mapping):
        return {n: _kept(value) for n, value in x.items()}
    if isinstance(x, list | tuple):
        return [_kept(value) for value in x]
    return {_FLOAT: str(x)} if isinstance(x, float) and not math.isfinite(x) else x


def _given(x: Any) -> Any:
    """The inverse of ``_kept``."""
    if isinstance(x, list):
        return tuple(_given(value) for value in x)
    return float(x[_FLOAT]) if isinstance(x, Mapping) else x


def _text(x: Any) -> str:
    return json.dumps(json_values(x), sort_keys=True)
