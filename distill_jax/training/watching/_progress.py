"""A progress bar with the parts of the loss and the rate."""

from __future__ import annotations

from collections.abc import Mapping

import rich.progress as rich
from rich.errors import LiveError

from distill_jax._text import printable


class Progress:
    """A context manager that shows a progress bar.

    Silent if there is no terminal, or if another display is shown there and rich allows one only.
    """

    def __init__(self, steps: int, *, unit: str = "steps", shown: bool = True):
        self._unit = unit
        self._bar = rich.Progress(
            rich.TextColumn("{task.completed:>6.0f}/{task.total:.0f}"),
            rich.BarColumn(),
            rich.TextColumn("{task.fields[rate]}"),
            rich.TimeRemainingColumn(),
            # Names are text, whatever rich would read into them.
            rich.TextColumn("{task.fields[parts]}", markup=False),
            disable=not shown,
        )
        if not self._bar.console.is_terminal:
            self._bar.disable = True
        self._task = self._bar.add_task("", total=steps, rate="", parts="")

    def __enter__(self) -> Progress:
        try:
            self._bar.start()
        except LiveError:
            self._bar.disable = True
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, parts: Mapping[str, float]) -> None:
        parts = {printable(n, self._bar.console.encoding): x for n, x in parts.items()}
        speed = self._bar.tasks[0].speed
        self._bar.update(
            self._task,
            completed=done,
            rate=f"{speed:.1f} {self._unit}/s" if speed else "",
            parts="  ".join(f"{name} {value:.4g}" for name, value in parts.items()),
        )
