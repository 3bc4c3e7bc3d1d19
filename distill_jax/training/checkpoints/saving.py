"""Checkpoints of a run, by Orbax: written in the background, whole or not at all.

A checkpoint holds a ``TrainState`` and a position in the data, never a teacher. The configuration
of the run is written beside the checkpoints and its hash into each, so that neither a run with
another one nor a checkpoint from elsewhere is taken up by mistake.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from distill_jax import _checks, _files, _fingerprints
from distill_jax.training.checkpoints import _configuration, _contents, _lock, _orbax

CONFIGURATION = "configuration.json"
SHOWN = 20  # differences listed in one message


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which one is still intact."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where ``fit`` saves its state, how often, and which checkpoints it keeps.

    A run that finds its own checkpoints in the folder resumes from the latest one. A checkpoint
    whose writing was interrupted is deleted.

    Attributes:
      folder: Created if it is missing. One run per folder. To save into a bucket, mount it.
      every: Optimizer steps between checkpoints.
      keep: How many of the latest checkpoints are kept.
      best: Name of a metric that ``evaluate`` returns: the best checkpoints by it are kept too.
        Those saved without it, or with NaN, are kept only while they are among the latest.
      better: Whether a "higher" or a "lower" metric is better.
      keep_best: How many of the best checkpoints are kept.
      on_failure: What to do if saving fails, for example on a full disk: "raise"; or "warn",
        continue to train, and try again at the next checkpoint. Either way the last good checkpoint
        is kept. Several processes that train together warn of too little room, and raise for
        everything else.
      asynchronous: Whether files are written while training continues. Arrays are copied off the
        device first.
    """

    folder: str | os.PathLike[str]
    _: dataclasses.KW_ONLY
    every: int = 1000
    keep: int = 3
    best: str | None = None
    better: Literal["higher", "lower"] = "higher"
    keep_best: int = 1
    on_failure: Literal["raise", "warn"] = "raise"
    asynchronous: bool = True

    def __post_init__(self) -> None:
        check_folder(self.folder)
        if not (self.best is None or isinstance(self.best, str)):
            raise TypeError(f"best must be the name of a metric, got {self.best!r}")
        if not isinstance(self.asynchronous, bool):
            raise TypeError(f"asynchronous must be True or False, got {self.asynchronous!r}")
        for name in ("every", "keep", "keep_best"):
            object.__setattr__(self, name, _checks.count(name, getattr(self, name)))
        for name, allowed in (("better", ("higher", "lower")), ("on_failure", ("raise", "warn"))):
            _checks.choice(allowed, **{name: getattr(self, name)})

    @contextlib.contextmanager
    def open(self, configuration: Mapping[str, Any]) -> Iterator[Saver]:
        """The folder, opened to restore from and to save into; leaving it waits for the last save.

        Args:
          configuration: What a resumed run must share with this one, as values of JSON. If several
            processes train together, all of them open the folder.

        Raises:
          ValueError: if the folder holds checkpoints of another configuration, naming each
            difference; or if another run has it open.
          OSError: if the folder cannot be created or written.
        """
        folder = _writable(self.folder)
        with _orbax.quiet(), _lock.alone(folder), _orbax.plain_path(folder) as plain:
            saver = Saver(self, folder, plain, configuration)
            try:
                yield saver
            except BaseException:
                # This error says more than one of the last save could.
                with contextlib.suppress(Exception):
                    saver._settle("warn")
                saver._close()
                raise
            try:
                saver.wait()
            finally:
                saver._close()


class Saver:
    """An open folder of checkpoints; made by ``Checkpoints.open``."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        folder: pathlib.Path,
        plain: pathlib.Path,
        configuration: Mapping[str, Any],
    ):
        self._options = checkpoints
        self._configuration = json.loads(json.dumps(configuration))
        self._folder, self._plain = folder, plain
        # Checkpoints get the hash of the configuration beside them, which the first one wrote.
        self._run = _contents.json_hash(self._configuration)
        self._runs: set[str] | None = {self._run}
        try:
            self._manager = _orbax.manager(
                self._plain,
                keep=checkpoints.keep,
                best=checkpoints.best,
                better=checkpoints.better,
                keep_best=checkpoints.keep_best,
                asynchronous=checkpoints.asynchronous,
            )
        except ValueError as error:  # it reads the files of metrics here
            raise self._damaged_metrics("<step>", self._shown(error)) from error
        self._saving: int | None = None  # the step of the save that goes on in the background
        self._failures = False
        self._last_asked = self.latest() or 0
        try:
            self._compare()
            self._compare_metrics()
        except BaseException:
            self._close()
            raise

    def latest(self) -> int | None:
        """The step of the latest complete checkpoint, or None."""
        steps = self.steps()
        return steps[-1] if steps else None

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return sorted(step for step in self._manager.all_steps() if step != self._saving)

    def due(self, step: int) -> bool:
        """Whether a multiple of ``every`` steps has been reached since the last save."""
        return step // self._options.every > self._last_asked // self._options.every

    def restore(self, state: PyTree, step: int | None = None) -> tuple[PyTree, Any] | None:
        """The latest checkpoint, or that of a step, bit for bit; None if there is none.

        Args:
          state: The expected state: arrays or ``jax.ShapeDtypeStruct``. A leaf with a sharding over
            several devices is placed accordingly, whatever devices it was saved from.
          step: Which checkpoint; None for the latest.

        Returns:
          The state, and the position in the data that was saved with it.

        Raises:
          ValueError: if it is a checkpoint of another run or of another step, or its arrays are not
            those of ``state``.
          CheckpointError: if a file of it is damaged or missing; names an older intact one.
        """
        self.wait()
        if step is not None and step not in self.steps():
            raise CheckpointError(
                f"the checkpoint of step {step} is missing in {self._folder}, which has those of "
                f"{self.steps()}"
            )
        step = self.latest() if step is None else step
        if step is None:
            return None
        try:
            about = self._about(step)
            self._compare_arrays(about, state)
            return self._read(step, about, state), _contents.position_of(about)
        except _contents.OfAnotherRun as error:
            raise ValueError(
                f"the checkpoint of step {step} in {self._folder / str(step)} cannot be resumed "
                f"from: {error}"
            ) from None
        except Exception as error:
            raise CheckpointError(self._damage(step, state, error)) from error

    def watched(self) -> Any:
        """What ``save`` was given as ``watched`` with the latest checkpoint, or None."""
        step = self.latest()
        return None if step is None else self._about(step).get("watched")

    def save(
        self,
        step: int,
        state: PyTree,
        position: Any,
        metrics: Mapping[str, float] | None = None,
        watched: Any = None,
        *,
        replace: bool = False,
    ) -> None:
        """Saves a checkpoint; does nothing if this step has one, unless that is to be replaced.

        When it returns, ``state`` has been copied and may be donated. An error that occurs later,
        while files are written, is raised by the next ``save`` or ``wait``.

        Args:
          step: Optimizer steps taken.
          state: The state after them.
          position: The position in the data to resume from, as values of JSON. If several processes
            train together, each has its own.
          metrics: What ``evaluate`` returned for this state.
          watched: What decides when the run ends, as values of JSON.
          replace: Whether to delete one of this step before.

        Raises:
          CheckpointError: if saving failed, this time or the last, and ``on_failure`` is "raise".
          ValueError: if ``metrics`` lacks the metric named by ``best``.
        """
        step = int(step)
        value = self._metric(metrics)
        self._last_asked = step
        self._settle(self._options.on_failure)
        if step in self._manager.all_steps():
            if not replace:
                return
            self._manager.delete(step)
        self._delete_leftovers()
        arrays = _contents.contents(state)
        best = self._options.best
        about = _contents.description(
            state,
            position,
            metrics,
            step=step,
            run=self._run,
            best=None if best is None else (best, self._options.better),
            watched=watched,
        )
        if not self._has_room(step, arrays):
            return
        self._saving = step
        try:
            self._write_configuration()
            metrics = None if value is None else {str(self._options.best): value}
            _orbax.save(self._manager, step, arrays, about, metrics)
        except Exception as error:
            self._failed(error, self._options.on_failure)
        if not self._options.asynchronous:
            self._settle(self._options.on_failure)

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          CheckpointError: if that failed, and ``on_failure`` is "raise".
        """
        self._settle(self._options.on_failure)

    def _has_room(self, step: int, arrays: Mapping[str, jax.Array]) -> bool:
        """Whether there is room for a checkpoint that several processes write.

        They could not continue together after one of them failed to write its part, so they look
        beforehand. A single process just tries.
        """
        if jax.process_count() == 1:
            return True
        free = shutil.disk_usage(self._folder).free
        needed = sum(x.nbytes for x in arrays.values()) + 2**20
        room = bool(multihost_utils.process_allgather(np.array([free >= needed])).all())
        if not room:
            error = OSError(errno.ENOSPC, f"it takes up to {needed / 1e6:,.1f} MB")
            self._report(step, error, self._options.on_failure)
        return room

    def _settle(self, on_failure: str) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failed(error, on_failure)
        self._saving = None

    def _failed(self, error: Exception, on_failure: str) -> None:
        """Forgets a save that failed, deletes its files, and reports it."""
        step, self._saving = self._saving, None
        self._failures = True
        self._delete_leftovers()
        self._manager.reload()  # otherwise it counts the failed one among the latest
        # With several processes, some may be waiting for others by now.
        self._report(step, error, "raise" if jax.process_count() > 1 else on_failure)

    def _report(self, step: int | None, error: Exception, on_failure: str) -> None:
        good = self.latest()
        stays = "there is no earlier one" if good is None else f"that of step {good} is kept"
        where, advice = str(self._folder), "Fix that, then start again to resume from there"
        if _orbax.no_room(error):
            where += f", where {shutil.disk_usage(self._folder).free / 1e6:,.1f} MB are free"
            advice = "Make room, then start again to resume from there"
        message = (
            f"the checkpoint of step {step} could not be saved in {where} ({stays}): "
            f"{self._shown(error)}"
        )
        if on_failure == "raise":
            raise CheckpointError(
                f'{message}. {advice}; or pass on_failure="warn" to continue without saving'
            ) from error
        warnings.warn(f"{message}. Training continues, and saves again later", stacklevel=2)

    def _delete_leftovers(self) -> None:
        """Deletes files of failed saves, some of which may still have been on their way before."""
        if self._failures and jax.process_index() == 0:
            for left in self._folder.glob(_orbax.LEFTOVERS):
                shutil.rmtree(left, ignore_errors=True)

    def _about(self, step: int) -> dict[str, Any]:
        return _contents.checked(_orbax.read_about(self._manager, step), step, self._runs)

    def _compare_arrays(self, about: Mapping[str, Any], state: PyTree) -> None:
        differences = _configuration.differences(about["arrays"], _fingerprints.shapes(state))
        if differences:
            raise _contents.OfAnotherRun(
                "it holds a state that differs from that of model, objective and optimizer:\n"
                f"{_listed(differences)}"
            )

    def _read(self, step: int, about: Mapping[str, Any], state: PyTree) -> PyTree:
        read = _orbax.read_arrays(self._manager, step, _contents.wanted_arrays(state))
        return _contents.restored(state, read, about)

    def _damage(self, step: int, state: PyTree, error: Exception) -> str:
        whole = None
        for older in reversed(self.steps()[:-1]):
            with contextlib.suppress(Exception):
                self._read(older, self._about(older), state)
                whole = older
                break
        at = self._folder / str(step)
        advice = (
            "no older one is intact: to start over, delete the folder"
            if whole is None
            else f"that of step {whole} is intact: to resume from it, delete every later folder, "
            f"{at} first of all"
        )
        what = f"the checkpoint of step {step} in {at} is damaged"
        return f"{what} ({self._shown(error)}); {advice}"

    def _shown(self, error: BaseException) -> str:
        return _orbax.first_line(error).replace(str(self._plain), str(self._folder))

    def _compare(self) -> None:
        if self.latest() is None:
            return
        path = self._folder / CONFIGURATION
        if not path.exists():
            warnings.warn(
                f"{self._folder} has checkpoints but no {CONFIGURATION}: they are assumed to be of "
                "this configuration",
                stacklevel=2,
            )
            self._runs = None
            return
        try:
            before = json.loads(path.read_text())
            if not isinstance(before, dict):
                raise ValueError(f"expected a dictionary, got {type(before).__name__}")
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: {error}. {_ON_TRUST}") from error
        formats = [x.get("format") for x in (before, self._configuration)]
        if formats[0] != formats[1]:
            raise ValueError(
                f"{self._folder} holds checkpoints of another version of distill_jax (format "
                f"{formats[0] or 1}, this one reads {formats[1]}): resume them with that version, "
                "or use another folder"
            )
        differences = _configuration.differences(before, self._configuration)
        if differences:
            if self._latest_is_ours():
                raise CheckpointError(
                    f"{path} is damaged: the latest checkpoint belongs to this run, and it does "
                    f"not:\n{_listed(differences)}\nDelete it to resume"
                )
            raise ValueError(
                f"{self._folder} holds checkpoints of another configuration:\n"
                f"{_listed(differences)}\nUse another folder for this run. {_ON_TRUST}"
            )
        self._run = _contents.json_hash(before)
        self._runs = {self._run, _contents.json_hash(self._configuration)}
        changed = _configuration.other_versions(before, self._configuration)
        if changed:
            warnings.warn(f"the checkpoints in {self._folder}: {changed}", stacklevel=2)

    def _compare_metrics(self) -> None:
        """The files that decide which ones are best have no sums, but the values are kept twice."""
        for step in self.steps() if self._options.best is not None else ():
            read = self._manager.metrics(step) or {}
            saved = read
            with contextlib.suppress(Exception):  # another file is damaged, and is read later
                saved = self._about(step)["metrics"]
            if any(saved.get(name) != value for name, value in read.items()):
                raise self._damaged_metrics(str(step), "other values were saved")

    def _damaged_metrics(self, step: str, why: str) -> CheckpointError:
        return CheckpointError(
            f"a file of metrics in {self._folder}, {step}/metrics/metrics, is damaged ({why}): "
            "delete the step's folder"
        )

    def _latest_is_ours(self) -> bool:
        with contextlib.suppress(Exception):
            return self._about(self.steps()[-1])["run"] == self._run
        return False

    def _write_configuration(self) -> None:
        path = self._folder / CONFIGURATION
        # The configuration of an earlier run that saved no checkpoint is replaced.
        if jax.process_index() == 0 and (self.latest() is None or not path.exists()):
            with _files.replacing(path) as file:
                file.write(json.dumps(self._configuration, indent=1).encode())

    def _metric(self, metrics: Mapping[str, float] | None) -> float | None:
        best = self._options.best
        if best is None or metrics is None:
            return None
        if best not in metrics:
            raise ValueError(
                f"best must be the name of a metric that evaluate gives, got {best!r}; it gives "
                f"{sorted(metrics)}"
            )
        value = float(metrics[best])
        return value if math.isfinite(value) else None

    def _close(self) -> None:
        with contextlib.suppress(Exception):  # wait has raised it already
            self._manager.close()
        self._delete_leftovers()


_ON_TRUST = (
    f"To resume all the same, delete {CONFIGURATION} there: the checkpoints are then assumed to be "
    "of this run's configuration"
)


def check_folder(folder: Any) -> None:
    """Raises TypeError or ValueError for what is no path on a file system."""
    if not isinstance(folder, str | os.PathLike) or not isinstance(os.fspath(folder), str):
        raise TypeError(f"folder must be a path, as a string or a pathlib.Path, got {folder!r}")
    # pathlib turns two slashes into one. A single letter before the colon is a drive.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(folder)):
        raise ValueError(
            f"folder must be a folder on a file system, got the address {os.fspath(folder)!r}: "
            "mount the bucket as a folder, and pass that"
        )


def _writable(folder: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(folder).absolute()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"folder must be a folder for checkpoints, got the file {path}")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.{jax.process_index()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno, f"folder must be one that can be written: {error.strerror}", str(path)
        ) from error
    return path


def _listed(differences: list[str]) -> str:
    rest = len(differences) - SHOWN
    more = [f"and {rest} more"] if rest > 0 else []
    return "\n".join(f"  {line}" for line in (*differences[:SHOWN], *more))
