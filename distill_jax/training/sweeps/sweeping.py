"""Many trials of one function: vmapped where that is faster, and saved as they finish."""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import index
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from distill_jax import _checks, _fingerprints
from distill_jax._arguments import checked
from distill_jax.training.sweeps import records as records_
from distill_jax.training.sweeps._blocks import Limits, Mode, free_memory, replicated, run_group
from distill_jax.training.sweeps._trials import Traced, traced
from distill_jax.training.sweeps.grids import check_names, configurations, split, trial_name
from distill_jax.training.watching._progress import Progress

Row = dict[str, Any]


@checked
def sweep(
    trial: Callable[..., Mapping[str, Any]],
    grid: Mapping[str, Iterable[Any]] | Iterable[Mapping[str, Any]],
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

    Hyper-parameters that are numbers are traced: another value compiles nothing. Those that are
    strings, booleans, None or tuples, and those named in ``static``, are fixed in a program: one
    is compiled for each combination of them, so that widths or depths can be swept too.

    A group of trials that share a program runs in blocks, in one of two ways. Both give the same
    results up to rounding, which training amplifies; the column ``mode`` says which it was:

    - "vmap": trials side by side, spread over the devices. Many times faster if a student is
      small, or the device large.
    - "sequential": one trial per device at a time. Faster if one student keeps a processor busy,
      as a few hundred units do on a CPU.

    Which is faster is measured, without compilation: the first trials run one after another, then
    a block side by side, and the rest in the faster way. The process remembers it for later calls.
    If compiling for ``vmap`` would take longer than the remaining work, it is not tried. For
    bitwise reproducible results, set ``mode``. A trial that draws from keys of its own of the
    generator ``rbg`` or ``unsafe_rbg`` always runs "sequential": JAX draws a batch of such keys
    from its first, so that equal seeds would start unequal side by side.

    Args:
      trial: ``trial(key, **hyper_parameters, **shared) -> {"metric": number or array}``, pure: it
        runs under ``jit`` and ``vmap``, as ``run`` does.
      grid: A dictionary of lists, of which every combination is tried; a list of dictionaries; or
        what :func:`sampled` returns.
      key: The trial of seed ``s`` gets ``fold_in(key, s)`` whatever its configuration, so that
        configurations are compared on the same initial parameters and orders of rows.
      seeds: Number of trials per configuration, or the seeds themselves.
      shared: Arrays that all trials read, by the trial's parameter: data, teachers, the key of an
        order of rows. They are arguments of the programs, one copy per device.
      static: Names of numbers to fix in a program: those that determine a shape or a number of
        steps.
      memory: Bytes that a block may take on each device; by default half of what is free.
      mode: One of the two above; None measures.
      block: Trials side by side, on all devices together; None takes as many as fit in ``memory``,
        at most 128 per device, on a CPU at most 32, or fewer if they would exceed its cache.
      file: Where finished trials are saved, one line of JSON each; see :func:`read_sweep`. Called
        again after an interruption, or with a larger grid or more seeds, only missing trials run.
        A file of another sweep (key, names, shared data, program) is refused. A damaged line is
        named in a warning, and its trial runs again.
      devices: This process's devices by default.
      progress: Whether to show a progress bar on a terminal.

    Returns:
      One row per configuration and seed, in that order: hyper-parameters, ``seed``, metrics
      (Python numbers, or NumPy arrays for those with axes) and ``mode``. See :func:`summary`,
      :func:`best` and ``report.show``.

    If the sweep is interrupted, or the disk is full, the exception has the finished rows in its
    attribute ``rows``.

    Raises:
      ValueError: before anything runs, if names do not fit the trial, file or grid is invalid, or
        JAX may not compile (``jax_disable_jit``); if a block does not fit in ``memory``, with the
        estimate; if ``mode`` is "vmap" and the trial draws from keys of ``rbg`` or ``unsafe_rbg``.
      TypeError: if a trial does not return numbers and arrays by name, or an argument has the
        wrong type.

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
    _checks.compiles("sweep", "call the trial itself to debug it")
    made = configurations(grid)
    names, given = list(made[0]), dict(shared or {})
    static = (static,) if isinstance(static, str) else tuple(static)
    check_names(trial, names, list(given), static)
    fixed, columns = split(made, static)
    listed = _seeds(seeds)
    limits = _limits(mode, block, memory, devices)
    for name, tree in given.items():
        for leaf in jax.tree.leaves(tree):
            if not isinstance(leaf, bool | int | float | np.ndarray | np.generic | jax.Array):
                raise TypeError(
                    f"shared[{name!r}] must hold arrays, got {type(leaf).__name__}: fixed settings "
                    "belong in the trial, or in the grid"
                )
            _checks.fits_device(**{f"shared[{name!r}]": leaf})
    plan = _Plan(
        trial,
        tuple(made),
        tuple((i, s) for i in range(len(made)) for s in listed),
        tuple(fixed),
        columns,
        jnp.asarray(key),
        jax.tree.map(jnp.asarray, given),
        limits,
    )
    if file is None:
        return plan.run(None, progress)
    header = {
        "trial": trial_name(trial),
        "parameters": sorted(names),
        "key": _fingerprints.key_words(plan.key),
        "shared": {name: _fingerprints.digest(tree) for name, tree in plan.shared.items()},
    }
    with records_.Records(file, header) as records:
        return plan.run(records, progress)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A sweep whose arguments have been checked.

    Attributes:
      trials: Number of the configuration, and seed.
      fixed: Names of hyper-parameters that are fixed in a program.
      columns: The other hyper-parameters, ``[configurations]`` each.
    """

    trial: Callable
    configurations: tuple[Row, ...]
    trials: tuple[tuple[int, int], ...]
    fixed: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    key: Array
    shared: Mapping[str, PyTree]
    limits: Limits

    def run(self, records: records_.Records | None, progress: bool) -> list[Row]:
        """All rows: those in the file, and the others, which run group by group."""
        there = {} if records is None else records.found
        rows: dict[int, Row] = {}
        for place, (i, s) in enumerate(self.trials):
            if there and (row := there.get(records_.name(self.configurations[i], s))) is not None:
                rows[place] = {**self.configurations[i], "seed": s, **row}
        before = saved = len(rows)
        arguments = replicated((self.key, self.shared), self.limits.devices)
        try:
            with Progress(len(self.trials), unit="trials", shown=progress) as bar:
                bar.update(len(rows), {})
                for static, places in self._groups().items():
                    kinds = {name: x[0] for name, x in self.columns.items()}
                    one = traced(self.trial, dict(static), self.key, self.shared, kinds)
                    if records is not None:
                        lowered = one.program.lower()
                        words = _fingerprints.lowered_program(lowered, jax.default_backend())
                        records.check_program(dict(static), words)
                    missing = [place for place in places if place not in rows]
                    for finished in self._finished(one, missing, arguments):
                        for place, row in finished.items():
                            configuration, s = self._named(place)
                            rows[place] = {**configuration, "seed": s, **row}
                        if records is not None:  # last: the disk may be full
                            records.add((*self._named(p), row) for p, row in finished.items())
                        saved = len(rows)
                        bar.update(len(rows), {})
                if records is not None:
                    records.sync()
        except BaseException as error:
            if len(rows) > before:
                error.rows = [rows[place] for place in sorted(rows)]  # pyright: ignore
                error.add_note(
                    f"{len(rows)} of {len(self.trials)} trials have finished; they are in the "
                    "attribute 'rows' of this exception"
                    + (f", and {saved} of them in the file." if records else ".")
                )
            raise
        return [rows[place] for place in range(len(self.trials))]

    def _groups(self) -> dict[tuple[tuple[str, Any], ...], list[int]]:
        """The trials of each program, by what is fixed in it."""
        groups: dict[tuple, list[int]] = {}
        for place, (i, _) in enumerate(self.trials):
            static = tuple((name, self.configurations[i][name]) for name in self.fixed)
            groups.setdefault(static, []).append(place)
        return groups

    def _finished(
        self, one: Traced, places: Sequence[int], arguments: Any
    ) -> Iterator[dict[int, Row]]:
        """Metrics by the trial's place in ``trials``, one block at a time."""
        which = np.array([self.trials[place][0] for place in places], int)
        seeds = np.array([self.trials[place][1] for place in places], np.int32)
        columns = {name: x[which] for name, x in self.columns.items()}
        key, shared = arguments
        for chosen, outputs, how in run_group(one, key, shared, seeds, columns, self.limits):
            fetched = {name: np.asarray(x) for name, x in outputs.items()}
            yield {places[j]: {**_one(fetched, i), "mode": how} for i, j in enumerate(chosen)}

    def _named(self, place: int) -> tuple[Row, int]:
        i, s = self.trials[place]
        return self.configurations[i], s


def _one(fetched: Mapping[str, np.ndarray], i: int) -> Row:
    row: Row = {}
    for name, x in fetched.items():
        if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4:
            x = x.astype(np.float32)
        row[name] = x[i].item() if x.ndim == 1 else x[i]
    return row


def _seeds(seeds: Any) -> list[int]:
    try:
        single = np.ndim(seeds) == 0
        listed = list(range(index(seeds))) if single else [index(s) for s in seeds]
    except TypeError as error:
        raise TypeError(
            f"seeds must be a number of trials, or a list of integers, got {seeds!r}"
        ) from error
    if not listed or isinstance(seeds, bool):
        raise ValueError(f"seeds must be 1 or more, or a list of integers, got {seeds!r}")
    if len(set(listed)) < len(listed) or min(listed) < 0 or max(listed) >= 2**31:
        raise ValueError(f"seeds must differ and lie in 0 ... 2**31 - 1, got {listed}")
    return listed


def _limits(mode: Any, block: Any, memory: Any, devices: Any) -> Limits:
    if mode not in (None, "vmap", "sequential"):
        raise ValueError(f"mode must be 'vmap', 'sequential' or None, got {mode!r}")
    kinds = {"block": (block, numbers.Integral), "memory": (memory, numbers.Real)}
    for name, (value, kind) in kinds.items():
        if value is not None:
            if not isinstance(value, kind) or isinstance(value, bool):
                what = "a number of bytes, such as 2e9" if name == "memory" else "an integer"
                raise TypeError(f"{name} must be {what}, or None, got {value!r}")
            _checks.positive(**{name: value})
    devices = tuple(jax.local_devices() if devices is None else devices)
    if not devices:
        raise ValueError("devices must be one or more, got none")
    room = free_memory(devices) if memory is None else int(memory)
    return Limits(devices, room, None if block is None else int(block), mode)
