"""Where the time of a call went, read from its profile: seconds per named part of the program.

The compiler reorders and fuses operations, so the parts of a program cannot be timed one after
another. They carry names, though, and a profile says when each operation ran.
"""

from __future__ import annotations

import collections
import pathlib
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax


def profiled(call: Callable[[], Any], program: str) -> tuple[Any, float, dict[str, float]]:
    """The call's result, its seconds, and those of its operations per part, if it shows any.

    Args:
      call: What to profile.
      program: The text of the compiled program that it runs.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            started = time.perf_counter()
            result = jax.block_until_ready(call())
            whole = time.perf_counter() - started
        files = list(pathlib.Path(folder).rglob("*.xplane.pb"))
        profiles = [jax.profiler.ProfileData.from_file(str(file)) for file in files]
    names = parts_of(program)
    module = re.match(r"HloModule ([\w.\-]+)", program)
    spans: dict[Any, list[Span]] = {}
    with warnings.catch_warnings():
        # JAX makes a type when events are first read; Python 3.12 warns of it, and if warnings are
        # errors, the process aborts.
        warnings.simplefilter("ignore", DeprecationWarning)
        for profile in profiles:
            for device, span in _spans(profile, names, module.group(1) if module else ""):
                spans.setdefault(device, []).append(span)
    if not any(span.part for of in spans.values() for span in of):
        return result, whole, {}
    nanoseconds = shared(spans[min(spans)])
    return result, whole, {part: 1e-9 * x for part, x in nanoseconds.items()}


class Span(NamedTuple):
    """When an operation ran, in nanoseconds, on which line of the profile, and its part."""

    start: float
    end: float
    line: Any
    part: str | None


def _spans(profile: Any, names: Mapping[str, str | None], module: str) -> Iterator[tuple]:
    """Operations with their devices. A device is a plane of its own, or on CPU, a number."""
    for plane in profile.planes:
        own = plane.name.startswith("/device:")
        lines = list(plane.lines)
        ops = [line for line in lines if line.name == "XLA Ops"]  # beside it, lines that sum it up
        for i, line in enumerate(ops or lines):
            for event in line.events:
                stats = dict(event.stats)
                name = str(stats.get("hlo_op") or "")
                if not name and own:
                    name = event.name.lstrip("%").split(" ")[0]
                of = str(stats.get("hlo_module", module)).split("(")[0]
                if name in names and of == module:
                    device = (plane.name, int(stats.get("device_ordinal", 0)))
                    end = event.start_ns + event.duration_ns
                    yield device, Span(event.start_ns, end, i, names[name])


def shared(spans: Iterable[Span]) -> dict[str, float]:
    """Nanoseconds per part. Each instant counts once, in equal shares if several lines are busy.

    Of operations that overlap on one line, the one that began last counts.
    """
    spans = list(spans)
    points = [(s.start, 1, i) for i, s in enumerate(spans)]
    points += [(s.end, 0, i) for i, s in enumerate(spans)]
    running: dict[Any, list[int]] = collections.defaultdict(list)
    total: dict[str, float] = collections.defaultdict(float)
    before = 0.0
    for now, begins, i in sorted(points):
        innermost = [stack[-1] for stack in running.values() if stack]
        for j in innermost:
            if (part := spans[j].part) is not None:
                total[part] += (now - before) / len(innermost)
        if begins:
            running[spans[i].line].append(i)
        elif i in running[spans[i].line]:
            running[spans[i].line].remove(i)
        before = now
    return dict(total)


_NAMED = re.compile(r"(?:^|/)(?:(?!p?jit\()\w+\()*(teacher|student|loss|update)\)*(?=/|$)")


def part_of(op_name: str) -> str | None:
    """The part that the outermost scope of a path names.

    Example:
      >>> part_of("jit(step)/transpose(jvp(student))/loss/dot_general"), part_of("jit(update)/add")
      ('student', None)
    """
    found = _NAMED.search(op_name)
    return found.group(1) if found else None


def parts_of(program: str) -> dict[str, str | None]:
    """The part of each operation by its name, from the text of a compiled program.

    An operation without a name, which XLA has added, belongs to the part of most of its
    computation, or of its first operand. Loops and calls are left out: their contents count.
    """
    found: dict[str, str | None] = {}
    votes: collections.Counter[str] = collections.Counter()
    computation = ""
    for line in program.splitlines():
        instruction = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line)
        if instruction is None:
            header = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
            if header:
                computation, votes = header.group(1), collections.Counter()
            elif line.startswith("}") and votes:
                found[computation] = votes.most_common(1)[0][0]
            continue
        name, text = instruction.groups()
        if re.search(r" (?:while|conditional|call)\(", text):
            continue
        metadata = re.search(r'op_name="([^"]*)"', text)
        part = part_of(metadata.group(1)) if metadata else None
        if part is None:
            others = re.findall(r"[\w.\-]+", text.split(" metadata=")[0])
            called = re.findall(r"calls=%?([\w.\-]+)", text)
            part = next((found[x] for x in (*called, *others) if found.get(x)), None)
        found[name] = part
        if part is not None:
            votes[part] += 1
    return found
