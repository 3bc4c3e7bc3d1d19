"""Many trials of one function: side by side where that is faster, kept as they finish."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from distill_jax import _checks
from distill_jax.training import _records
from distill_jax.training._blocks import Limits, Mode, Solo, free_memory, replicated, run_group
from distill_jax.training.grids import check_names, configurations, split, trial_name
from distill_jax.training.progress import Progress

Row = dict[str, Any]


def sweep(
    trial: Callable[..., Mapping[str, Any]],
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    *,
    key: Array,
    seeds: int | Sequence[int] = 1,
    shared: Mapping[str, PyTree] | None = None,
    static: Sequence[str] = (),
    memory: float | None = None,
    mode: Mode | None = None,
    block: int | None = None,
    file: str | os.PathLike[str] | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = True,
) -> list[Row]:
    """Runs a trial for every configuration of a grid and every seed, under few compiled programs.

    Hyper-parameters that are numbers are traced: no value compiles anything. Those that are
    strings, booleans, None or tuples, and those named in ``static``, are fixed in a program: one
    is compiled for each combination of them, so that widths or depths can be swept too.

    A group of trials that share a program runs in blocks. Two ways to run a block give the same
    results up to rounding, which training amplifies; the column ``mode`` says which it was:

    - "vmap": trials side by side, spread over the devices. Many times faster where a student is
      small, or the device large.
    - "sequential": one trial on each device at a time. Faster where one student keeps a processor
      busy, as a few hundred units do on a CPU.

    Which is faster is measured: the first trials run one after another, then a block side by side,
    without compilation in the account, and the rest goes the faster way. The process remembers it
    for later calls. Where compiling for ``vmap`` would take longer than the work that is left, it
    is not tried. For bits that can be had again, say ``mode``.

    Args:
      trial: ``trial(key, **hyper_parameters, **shared) -> {"metric": number or array}``, pure: it
        runs under ``jit`` and ``vmap``, as ``run`` does.
      grid: A dictionary of lists, of which every combination is tried; a list of dictionaries; or
        what :func:`sampled` gives.
      key: The trial of seed ``s`` gets ``fold_in(key, s)`` whatever its configuration, so that
        configurations are compared on the same starts and orders of rows.
      seeds: How many, or which. As many trials a configuration.
      shared: Arrays that all trials read, by the trial's parameter: data, teachers, the key of an
        order of rows. They are arguments of the programs, once on each device.
      static: Numbers to fix in a program: those that decide a shape, or a number of steps.
      memory: Bytes that a block may take on each device; by default half of what is free.
      mode: One of the two above; None measures.
      block: Trials in a block, on all devices together; None takes as many as fit in ``memory``,
        128 a device at most.
      file: Where finished trials are kept, a line of JSON each; see :func:`read_sweep`. Called
        again after an interruption, or with a larger grid or more seeds, only what is missing runs.
        A file of another sweep (key, names, shared data, program) is refused.
      devices: This process's, by default.
      progress: Whether to show a bar, on a terminal.

    Returns:
      A row for each configuration and seed, in that order: hyper-parameters, ``seed``, metrics
      (Python numbers, or NumPy arrays for those with axes) and ``mode``. See :func:`summary`,
      :func:`best` and ``report.show``.

    Raises:
      ValueError: before anything runs, if names do not fit the trial, or the file or grid is not
        right; if a block does not fit in ``memory``, with the estimate.
      TypeError: if a trial returns something else than numbers and arrays by name.

    Example:
      >>> from distill_jax.training import best
      >>> def trial(key, *, rate, inputs):
      ...     def step(w, x):
      ...         w = w - rate * (w - x)
      ...         return w, (w - inputs.mean()) ** 2
      ...     w, errors = jax.lax.scan(step, jax.random.normal(key), inputs)
      ...     return {"error": errors[-1], "curve": errors}
      >>> data = {"inputs": jnp.sin(jnp.arange(20.0))}
      >>> grid = {"rate": [0.01, 0.1, 0.5]}
      >>> rows = sweep(trial, grid, key=jax.random.key(0), seeds=4, shared=data, mode="vmap")
      >>> len(rows), rows[0]["curve"].shape
      (12, (20,))
      >>> best(rows, by="error", better="lower")["rate"]
      0.1
    """
    made = configurations(grid)
    names, given = list(made[0]), dict(shared or {})
    static = (static,) if isinstance(static, str) else tuple(static)
    check_names(trial, names, list(given), static)
    fixed, columns = split(made, static)
    numbers = _seeds(seeds)
    limits = _limits(mode, block, memory, devices)
    key = jnp.asarray(key)
    for name, tree in given.items():
        for leaf in jax.tree.leaves(tree):
            if not isinstance(leaf, bool | int | float | np.ndarray | np.generic | jax.Array):
                raise TypeError(
                    f"shared[{name!r}] must hold arrays, got {type(leaf).__name__}: fixed settings "
                    "belong into the trial, or into the grid"
                )
    given = jax.tree.map(jnp.asarray, given)
    trials = [(i, s) for i in range(len(made)) for s in numbers]
    if file is None:
        rows: dict[int, Row] = {}
        _run(trial, made, trials, fixed, columns, key, given, limits, rows, None, progress)
    else:
        header = {
            "trial": trial_name(trial),
            "parameters": sorted(names),
            "key": _records.key_words(key),
            "shared": {name: _records.checksum(tree) for name, tree in given.items()},
        }
        with _records.Records(file, header) as records:
            there = [records.found.get(_records.name(made[i], s)) for i, s in trials]
            rows = {
                place: {**made[i], "seed": s, **_metrics(row, names)}
                for place, ((i, s), row) in enumerate(zip(trials, there, strict=True))
                if row is not None
            }
            _run(trial, made, trials, fixed, columns, key, given, limits, rows, records, progress)
    return [rows[place] for place in range(len(trials))]


def _run(
    trial: Callable,
    made: Sequence[Row],
    trials: Sequence[tuple[int, int]],
    fixed: Sequence[str],
    columns: Mapping[str, np.ndarray],
    key: Array,
    shared: Mapping[str, PyTree],
    limits: Limits,
    rows: dict[int, Row],
    records: _records.Records | None,
    progress: bool,
) -> None:
    """Fills ``rows``, by their place, with what is missing."""
    groups: dict[tuple, list[int]] = {}
    for place, (i, _) in enumerate(trials):
        groups.setdefault(tuple((name, made[i][name]) for name in fixed), []).append(place)
    key, shared_there = replicated((key, dict(shared)), limits.devices)
    try:
        with _Bar(len(trials), shown=progress) as bar:
            bar.update(len(rows), {})
            for static, places in groups.items():
                solo = Solo(trial, static)
                if records is not None:
                    kinds = {name: jax.ShapeDtypeStruct((), x.dtype) for name, x in columns.items()}
                    seed = jax.ShapeDtypeStruct((), np.int32)
                    lowered = jax.jit(solo).lower(key, shared, seed, kinds)
                    words = _records.program_words(lowered, jax.default_backend())
                    records.check_program(dict(static), words)
                todo = np.array([place for place in places if place not in rows], int)
                which = np.array([trials[place][0] for place in todo], int)
                seeds = np.array([trials[place][1] for place in todo], np.int32)
                numbers = {name: x[which] for name, x in columns.items()}
                blocks = run_group(solo, key, shared_there, seeds, numbers, limits)
                for chosen, outputs, how in blocks:
                    fetched = {name: np.asarray(x) for name, x in outputs.items()}
                    new = [{**_one(fetched, i), "mode": how} for i in range(len(chosen))]
                    done = [int(place) for place in todo[chosen]]
                    if records is not None:
                        pairs = zip(done, new, strict=True)
                        records.add((made[trials[p][0]], trials[p][1], row) for p, row in pairs)
                    for place, row in zip(done, new, strict=True):
                        i, s = trials[place]
                        rows[place] = {**made[i], "seed": s, **row}
                    bar.update(len(rows), {})
    except BaseException as error:
        if rows:
            error.rows = [rows[place] for place in sorted(rows)]  # pyright: ignore
            error.add_note(
                f"{len(rows)} of {len(trials)} trials were finished; they are in the attribute "
                "'rows' of this exception" + (", and in the file." if records else ".")
            )
        raise


class _Bar(Progress):
    """A bar of trials."""

    def update(self, done: int, parts: Mapping[str, float]) -> None:
        super().update(done, parts)
        self._bar.update(self._task, rate="trials")


def _one(fetched: Mapping[str, np.ndarray], i: int) -> Row:
    row: Row = {}
    for name, x in fetched.items():
        if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4:
            x = x.astype(np.float32)
        row[name] = x[i].item() if x.ndim == 1 else x[i]
    return row


def _metrics(row: Row, names: Sequence[str]) -> Row:
    return {name: value for name, value in row.items() if name not in (*names, "seed")}


def _seeds(seeds: Any) -> list[int]:
    listed = list(range(seeds)) if isinstance(seeds, int) else [int(s) for s in seeds]
    if not listed or isinstance(seeds, bool):
        raise ValueError(f"seeds must be 1 or more, or a list of integers, got {seeds!r}")
    if len(set(listed)) < len(listed) or min(listed) < 0 or max(listed) >= 2**31:
        raise ValueError(f"seeds must differ and lie in 0 ... 2**31 - 1, got {listed}")
    return listed


def _limits(mode: Any, block: Any, memory: Any, devices: Any) -> Limits:
    if mode not in (None, "vmap", "sequential"):
        raise ValueError(f"mode must be 'vmap', 'sequential' or None, got {mode!r}")
    for name, value in (("block", block), ("memory", memory)):
        if value is not None:
            _checks.positive(**{name: value})
    devices = tuple(jax.local_devices() if devices is None else devices)
    if not devices:
        raise ValueError("devices must be one or more, got none")
    room = free_memory(devices) if memory is None else int(memory)
    return Limits(devices, room, None if block is None else int(block), mode)
