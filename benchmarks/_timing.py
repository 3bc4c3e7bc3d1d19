"""Fair timing on a machine that is not quiet: cases are interleaved, round after round."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def first_calls(cases: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, float]]:
    """Each case's result, for comparison, and the seconds of its first call, which compiles."""
    results, seconds = {}, {}
    for name, call in cases.items():
        start = time.perf_counter()
        results[name] = call()
        seconds[name] = time.perf_counter() - start
    return results, seconds


def interleaved(
    cases: Mapping[str, Callable[[], Any]],
    *,
    seconds: float,
    least: int = 5,
    most: int = 1000,
    sample: float = 0.002,
) -> dict[str, dict[str, Any]]:
    """Times calls in rounds, so that whatever slows the machine down slows all cases alike.

    Each case must have been called before, so that nothing compiles. A sample is the mean over as
    many calls as take ``sample`` seconds. Short calls are preceded by one that is not timed: by
    then, spinning threads of the previous case have stopped, and the caches hold this case's
    arrays.

    Args:
      cases: By name; each returns when its work is done.
      seconds: Approximate time for all rounds together.
      least: Minimum number of rounds, even if they take longer.
      most: Maximum number of rounds.
      sample: Minimum seconds per sample.

    Returns:
      By name: ``median``, in seconds per call, and ``samples``, one per round.
    """
    calls = {name: max(1, round(sample / _least(call))) for name, call in cases.items()}
    samples: dict[str, list[float]] = {name: [] for name in cases}
    collecting = gc.isenabled()
    gc.disable()
    end = time.perf_counter() + seconds
    try:
        while len(samples[next(iter(cases))]) < most:
            for name, call in cases.items():
                if calls[name] > 1:
                    call()
                else:
                    time.sleep(0.01)
                samples[name].append(_time(call, calls[name]))
            if time.perf_counter() > end and len(samples[name]) >= least:
                break
    finally:
        if collecting:
            gc.enable()
    return {
        name: {"median": statistics.median(times), "samples": times}
        for name, times in samples.items()
    }


def times_faster(timed: Mapping[str, Mapping[str, Any]], ours: str, theirs: str) -> float:
    """How many times faster ours is: the median over rounds of the ratio within a round."""
    pairs = zip(timed[theirs]["samples"], timed[ours]["samples"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def emit(**values: Any) -> None:
    """Prints one JSON line."""
    print(json.dumps(values), flush=True)


def _least(call: Callable[[], Any]) -> float:
    once = _time(call, 1)
    return once if once > 0.05 else min(once, _time(call, 3))


def _time(call: Callable[[], Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times
