"""Blocks of trials under compiled programs: how many at once, in which mode, on which devices."""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, PyTree

from distill_jax.training.sweeps._trials import Traced

Mode = Literal["vmap", "sequential"]
Outputs = dict[str, Any]

_AXIS = "trial"
_SHARE = 0.5  # of the free memory, for a block
_MOST = 128  # trials at once on a device: results are saved one block at a time
# On a CPU core, more than 32 students at once gain nothing (widths 8 to 128), and exceeding the
# cache costs time: blocks of 16 took 15% longer than blocks of 8 at 2.4 MB per student.
_MOST_ON_CPU, _LEAST_ON_CPU, _CACHE = 32, 4, 16e6


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program that runs ``slots`` trials in one call.

    Attributes:
      bytes: What it takes on each device, as the compiler reports; results count twice, since
        those of the call before are still held.
      fixed: The part of these that does not grow with the number of trials.
      seconds: How long tracing and compiling took.
    """

    call: Callable[..., tuple[Array, ...]]
    mode: Mode
    slots: int
    bytes: int
    fixed: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Limits:
    """How large blocks may be.

    Attributes:
      devices: Over which each block is spread.
      memory: Bytes on each device.
      block: Trials in a block, on all devices together; None for as many as fit.
      mode: None measures which is faster.
    """

    devices: tuple[Any, ...]
    memory: int
    block: int | None = None
    mode: Mode | None = None


@dataclasses.dataclass
class _Memory:
    """What this process remembers about a group of trials."""

    trial: Traced  # kept alive: its words hold addresses of its host callbacks
    programs: dict[tuple[Mode, int], Program] = dataclasses.field(default_factory=dict)
    mode: Mode | None = None
    waited: float = 0.0  # seconds of work done sequentially, to avoid compiling for vmap


_KNOWN: collections.OrderedDict[Any, _Memory] = collections.OrderedDict()
_KEPT = 32  # groups


def run_group(
    trial: Traced,
    key: Array,
    shared: PyTree,
    seeds: np.ndarray,
    numbers: Mapping[str, np.ndarray],
    limits: Limits,
) -> Iterator[tuple[np.ndarray, Outputs, Mode]]:
    """Runs trials that differ only in seeds and numbers.

    Args:
      trial: One trial.
      key: Of the sweep.
      shared: On the devices already; see :func:`replicated`.
      seeds: ``[trials]``.
      numbers: Hyper-parameters by name, each ``[trials]``.
      limits: How large blocks may be.

    Yields:
      The numbers of the trials, what they returned (padded to the size of the block), and the mode.
      A block is yielded once the next has been started, so that devices do not wait.

    Raises:
      ValueError: if a block, or a single trial, does not fit; if trials are to run side by side
        that would draw other random numbers there.
    """
    if trial.unlike is not None and limits.mode == "vmap":
        raise ValueError(
            f"mode='vmap' needs keys whose draws are the same side by side as alone, and "
            f"{trial.name!r} draws from keys of {trial.unlike!r}, of which JAX draws a whole batch "
            "from the first: equal seeds would start unequal. Use jax.random.key(seed, "
            "impl='threefry2x32'), or leave mode= out to run one trial after another"
        )
    group = _Group(trial, key, shared, seeds, numbers, limits)
    todo, mode = np.arange(len(seeds)), limits.mode or group.known.mode
    mode = mode if trial.unlike is None else "sequential"
    if mode is None:
        mode = "sequential"
        program = group.sequential()
        if len(todo) > program.slots:
            done, todo, alone = group.timed(program, todo)
            yield done
            wide = group.wide_if_worth_it(program, alone * len(todo))
            if wide is not None and len(todo):
                done, todo, together = group.timed(wide, todo)
                yield done
                mode = group.known.mode = "vmap" if together < alone else "sequential"
    if not len(todo):
        return
    program = None if mode == "sequential" else group.wide(optional=limits.mode is None)
    program = program or group.sequential()
    before = None
    while len(todo):
        done, todo = group.started(program, todo)
        if before is not None:
            yield before
        before = done
    if before is not None:
        yield before


class _Group:
    """The programs of one group of trials, compiled on demand."""

    def __init__(self, trial: Traced, key, shared, seeds, numbers, limits: Limits):
        self.trial, self.key, self.shared = trial, key, shared
        self.seeds, self.numbers, self.limits = seeds, dict(numbers), limits
        structure = jax.tree.structure((shared, self.numbers))
        self.known = _recall((trial.words, trial.metrics, structure, limits.devices), trial)

    def started(self, program: Program, todo: np.ndarray) -> tuple[Any, np.ndarray]:
        """Starts the first trials of ``todo``; returns them with their outputs, and the rest."""
        chosen = todo[: program.slots]
        # The last block is padded, so that it needs no program of its own.
        rows = np.concatenate([chosen, np.repeat(chosen[-1:], program.slots - len(chosen))])
        varying = self._place(
            (self.seeds[rows], {name: x[rows] for name, x in self.numbers.items()})
        )
        outputs = program.call(self.key, self.shared, *varying)
        named = dict(zip(self.trial.metrics, outputs, strict=True))
        return (chosen, named, program.mode), todo[program.slots :]

    def timed(self, program: Program, todo: np.ndarray) -> tuple[Any, np.ndarray, float]:
        """As :meth:`started`, with the seconds per trial."""
        start = time.perf_counter()
        done, rest = self.started(program, todo)
        jax.block_until_ready(done[1])
        return done, rest, (time.perf_counter() - start) / program.slots

    def sequential(self) -> Program:
        """The program that runs one trial per device at a time."""
        program = self._program("sequential", len(self.limits.devices))
        if program.bytes > self.limits.memory:
            raise self._too_large("one trial", program)
        return program

    def wide_if_worth_it(self, alone: Program, seconds: float) -> Program | None:
        """The vmapped program; None if a block could not hold two trials per device, or if
        compiling would take longer than the work, both what is left and what was done so far."""
        compiled = any(mode == "vmap" for mode, _ in self.known.programs)
        if not compiled and alone.seconds > self.known.waited + seconds:
            self.known.waited += seconds
            return None
        if self.limits.block is None and self._most(alone) < 2:
            return None
        return self.wide(optional=True)

    def wide(self, *, optional: bool = False) -> Program | None:
        """The vmapped program of as many trials as fit; None, if optional, if not even one does."""
        devices, trials = len(self.limits.devices), len(self.seeds)
        if self.limits.block is not None:
            slots = -(-self.limits.block // devices) * devices
            program = self._program("vmap", slots)
            if program.bytes > self.limits.memory:
                raise self._too_large(f"a block of {slots} trials", program)
            return program
        for (mode, slots), program in self.known.programs.items():
            filled = -(-trials // slots) * slots
            if mode == "vmap" and program.bytes <= self.limits.memory and filled <= 1.25 * trials:
                return program
        alone = self.known.programs.get(("sequential", devices))
        most = self._most(alone)
        while True:
            calls = -(-trials // (devices * most))
            each = -(-trials // (devices * calls))  # evenly, so that there is little padding
            program = self._program("vmap", each * devices)
            if program.bytes <= self.limits.memory:
                return program
            if each == 1:
                if optional:
                    return None
                raise self._too_large("one trial", program)
            most = min(each - 1, self._most(program))

    def _most(self, program: Program | None) -> int:
        """Trials to run side by side per device, if memory grows linearly with their number."""
        on_cpu = self.limits.devices[0].platform == "cpu"
        most = _MOST_ON_CPU if on_cpu else _MOST
        if program is None:
            return most
        each = (program.bytes - program.fixed) * len(self.limits.devices) / program.slots
        if on_cpu:
            most = min(most, max(_LEAST_ON_CPU, int(_CACHE / max(each, 1))))
        return max(1, min(most, int((self.limits.memory - program.fixed) / max(each, 1))))

    def _too_large(self, what: str, program: Program) -> ValueError:
        shared = sum(x.nbytes for x in jax.tree.leaves(self.shared))
        return ValueError(
            f"{what} of {self.trial.name!r} would take about {_size(program.bytes)} on "
            f"each device ({_size(shared)} of it shared data), more than the "
            f"{_size(self.limits.memory)} of memory=: "
            + (
                "make the trial smaller, or raise memory="
                if what == "one trial"
                else "lower block=, or leave it out so that blocks are made to fit"
            )
        )

    def _program(self, mode: Mode, slots: int) -> Program:
        if (mode, slots) not in self.known.programs:
            self.known.programs[mode, slots] = self._compiled(mode, slots)
        return self.known.programs[mode, slots]

    def _compiled(self, mode: Mode, slots: int) -> Program:
        def alone(key, shared, seeds, numbers):
            one = jax.tree.map(lambda x: x[0], (seeds, numbers))
            return jax.tree.map(lambda x: x[None], self.trial(key, shared, *one))

        side_by_side = jax.vmap(self.trial, in_axes=(None, None, 0, 0))
        run = alone if mode == "sequential" else side_by_side
        if len(self.limits.devices) > 1:
            whole, cut = PartitionSpec(), PartitionSpec(_AXIS)
            # Trials are independent, so there is nothing to check between devices.
            run = jax.shard_map(
                run,
                mesh=_mesh(self.limits.devices),
                in_specs=(whole, whole, cut, cut),
                out_specs=cut,
                check_vma=False,
            )
        examples = (np.resize(self.seeds, slots), self.numbers)
        varying = self._place(jax.tree.map(lambda x: np.resize(x, slots), examples))
        start = time.perf_counter()
        compiled = jax.jit(run).lower(self.key, self.shared, *varying).compile()
        seconds = time.perf_counter() - start
        memory: Any = compiled.memory_analysis()
        fixed = int(getattr(memory, "argument_size_in_bytes", 0))
        own = int(getattr(memory, "temp_size_in_bytes", 0))
        own += 2 * int(getattr(memory, "output_size_in_bytes", 0))
        return Program(compiled, mode, slots, fixed + own, fixed, seconds)

    def _place(self, varying: PyTree) -> PyTree:
        return jax.device_put(varying, _sharding(self.limits.devices, PartitionSpec(_AXIS)))


def replicated(tree: PyTree, devices: Sequence[Any]) -> PyTree:
    """Arrays replicated on all devices."""
    return jax.device_put(tree, _sharding(devices, PartitionSpec()))


def free_memory(devices: Sequence[Any]) -> int:
    """Half of the free bytes of each device, or of its share of the machine's memory."""
    if not all(isinstance(device, jax.Device) for device in devices):
        raise TypeError("devices must be devices of JAX, such as jax.devices()[:1]")
    stats = [device.memory_stats() for device in devices]
    if all(s and "bytes_limit" in s for s in stats):
        free = min(s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats)
    else:
        free = _free_on_host() // len(devices)
    return int(_SHARE * free)


def _free_on_host() -> int:
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":") for line in lines)
        free = 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # not Linux
        return 4 * 2**30
    try:  # a container may have less than the machine
        folder = pathlib.Path("/sys/fs/cgroup")
        limit = int((folder / "memory.max").read_text())
        return min(free, limit - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):
        return free


def _recall(name: Any, trial: Traced) -> _Memory:
    found = _KNOWN.setdefault(name, _Memory(trial))
    _KNOWN.move_to_end(name)
    while len(_KNOWN) > _KEPT:
        _KNOWN.popitem(last=False)
    return found


@functools.lru_cache
def _mesh(devices: tuple[Any, ...]) -> Mesh:
    return Mesh(np.array(devices), (_AXIS,))


def _sharding(devices: Sequence[Any], spec: PartitionSpec) -> Any:
    if len(devices) == 1:
        return SingleDeviceSharding(devices[0])
    return NamedSharding(_mesh(tuple(devices)), spec)


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
