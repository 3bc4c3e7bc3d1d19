"""A file of finished trials: one line each, written as soon as they finish.

The first line describes the sweep. Each line ends with a hash of itself, so that a damaged one is
noticed: its trial is run again, and the other lines stay usable. An incomplete last line, which an
interruption leaves, is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

from distill_jax._arguments import checked
from distill_jax._files import end_of_whole_lines, json_values, locked

_KIND, _FLOAT = "sweep", "float"
_FORMAT = 2
_ADVICE = "use another file for this sweep, or remove the old one"
_SUM = re.compile(rb', "sum": "([0-9a-f]{32})"}')

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
        self._header = json_values({_KIND: _FORMAT, **header})
        self.found: dict[str, Row] = {}
        self._parameters: list[Mapping[str, Any]] = []  # of the trials found
        self._programs: dict[str, Any] = {}
        self._synced = -math.inf

    def __enter__(self) -> Records:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer: what could not be written would be tried again when the file is closed.
        self._file: BinaryIO = self._path.open("a+b", buffering=0)
        try:
            if locked(self._file) is False:
                raise ValueError(f"{str(self._path)!r} is being written by another sweep")
            self._file.seek(0)
            content = self._file.read()
            lines, damaged, whole = _lines(content)
            header = _header(lines, damaged, self._path)
            if header is not None:
                self._check(header)
            elif 1 in damaged:
                raise ValueError(
                    f"line 1 of {str(self._path)!r}, which says what sweep it belongs to, is "
                    f"damaged: {_ADVICE}; read_sweep still reads its rows"
                )
            elif not _line(self._header).startswith(content):
                raise self._foreign()
            for line in lines.values():
                if "program" in line:
                    self._programs[_text(line["static"])] = line["program"]
                elif line is not header:
                    self._parameters.append(line["parameters"])
                    self.found[name(line["parameters"], line["seed"])] = _metrics(line)
            if damaged:
                _warn(self._path, damaged, "those trials run again. Let the sweep end,")
            # Only now: before it is known to be this sweep's, the file must not change.
            self._file.truncate(whole)
            if header is None:
                self._write([self._header])
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._file, contextlib.suppress(OSError):
            self.sync()

    def add(self, rows: Iterable[tuple[Mapping[str, Any], int, Row]]) -> None:
        """Appends ``(parameters, seed, metrics)``."""
        self._write(
            {"parameters": _kept(parameters), "seed": seed, **_packed(metrics)}
            for parameters, seed, metrics in rows
        )

    def check_program(self, static: Mapping[str, Any], program: Mapping[str, str]) -> None:
        """Compares a program with the one that made the rows in the file, or records it."""
        before = self._programs.get(_text(_kept(static)))
        if before is None and any(_holds(x, static) for x in self._parameters):
            raise ValueError(
                f"no line of {str(self._path)!r} says which program made its rows "
                f"{f'with {dict(static)} ' if static else ''}(the line is damaged or was deleted), "
                f"so that new rows might not fit them: {_ADVICE}; read_sweep still reads its rows"
            )
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
        rest = memoryview(b"".join(map(_line, lines)))
        end = os.fstat(self._file.fileno()).st_size
        try:
            while rest:  # a full disk takes a part, and refuses the next
                rest = rest[self._file.write(rest) :]
        except BaseException:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise
        if time.monotonic() - self._synced > 1.0:
            self.sync()

    def sync(self) -> None:
        """Makes what is written survive a crash of the machine too, which may take long."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


@checked
def read_sweep(file: str | os.PathLike[str]) -> list[Row]:
    """The finished trials in a sweep's file, also while it runs or after an interruption.

    Args:
      file: The file given to :func:`sweep`.

    Returns:
      Rows as :func:`sweep` returns them, in the order in which the trials finished. Damaged lines
      are left out, with a warning that names them.

    Raises:
      ValueError: if it is not a file of a sweep.
    """
    path = pathlib.Path(file)
    lines, damaged, _ = _lines(path.read_bytes())
    header = _header(lines, damaged, path)
    if header is None and not damaged:
        raise ValueError(f"{str(path)!r} is not a file of a sweep")
    if damaged:
        _warn(
            path,
            damaged,
            "the other rows are intact. Call sweep again with this file, to run what is missing,",
        )
    return [_row(line) for line in lines.values() if "parameters" in line and line is not header]


def name(parameters: Mapping[str, Any], seed: int) -> str:
    """A trial's name within its sweep; the order of parameters does not matter."""
    return _text({"parameters": _kept(parameters), "seed": seed})


def _lines(content: bytes) -> tuple[dict[int, dict[str, Any]], list[int], int]:
    """The intact lines by their number, the numbers of damaged ones, and the length in bytes."""
    whole = end_of_whole_lines(content)
    lines, damaged = {}, []
    for i, line in enumerate(content[:whole].split(b"\n"), 1):
        found = _SUM.fullmatch(line, max(len(line) - 44, 0))
        if found and found[1].decode() == _sum(line[: found.start()]):
            lines[i] = json.loads(line[: found.start()] + b"}")
        elif line:
            damaged.append(i)
    return lines, damaged, whole


def _header(
    lines: Mapping[int, dict[str, Any]], damaged: list[int], path: pathlib.Path
) -> dict[str, Any] | None:
    """The first line, or None if it is not there or damaged.

    Raises:
      ValueError: if this is not a file of a sweep, or one of another version.
    """
    if 1 in lines:
        if lines[1].get(_KIND) == _FORMAT:
            return lines[1]
    elif lines or not damaged:
        return None
    with path.open("rb") as file:
        other = re.match(rb'{"sweep": (\d+), ', file.readline())
    if other is not None and int(other[1]) != _FORMAT:
        raise ValueError(
            f"{str(path)!r} is a file of a sweep by another version of distill_jax (format "
            f"{int(other[1])}, this one reads {_FORMAT}): read it with that version, or use "
            "another file"
        )
    raise ValueError(f"{str(path)!r} is not a file of a sweep: {_ADVICE}")


def _warn(path: pathlib.Path, damaged: list[int], what: str) -> None:
    listed = ", ".join(map(str, damaged[:20])) + (", ..." if len(damaged) > 20 else "")
    one = len(damaged) == 1
    which = (
        f"{'line' if one else 'lines'} {listed} of {str(path)!r} {'is' if one else 'are'} damaged"
    )
    warnings.warn(f"{which}: {what} and delete from the file what is damaged", stacklevel=3)


def _holds(parameters: Mapping[str, Any], static: Mapping[str, Any]) -> bool:
    """Whether a trial's parameters, as the file has them, have these values."""
    return all(_text(parameters.get(n)) == _text(_kept(value)) for n, value in static.items())


def _line(x: Any) -> bytes:
    text = json.dumps(json_values(x), allow_nan=False).encode()[:-1]
    return text + f', "sum": "{_sum(text)}"}}\n'.encode()


def _sum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:32]


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
