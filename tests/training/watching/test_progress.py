"""The progress bar shows names as they are, and makes room for other displays."""

from __future__ import annotations

import io

import pytest
import rich
from rich.console import Console
from rich.errors import LiveError

from distill_jax.training.watching._progress import Progress


@pytest.fixture
def terminal(monkeypatch):
    """A terminal that keeps what it was sent."""

    def made(encoding="utf-8"):
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        console = Console(file=file, force_terminal=True, width=120, legacy_windows=False)
        monkeypatch.setattr(rich, "get_console", lambda: console)
        monkeypatch.setattr("rich.progress.get_console", lambda: console)
        return console

    return made


def shown(console, parts):
    with Progress(4) as bar:
        bar.update(2, parts)
    console.file.flush()
    return console.file.buffer.getvalue().decode(console.file.encoding)


@pytest.mark.quick
def test_names_are_no_markup_and_command_no_terminal(terminal):
    text = shown(terminal(), {"kl[/T]": 0.5, "[red]x": 0.25, "a\x1b]0;owned\x07": 1.0})
    assert "kl[/T] 0.5  [red]x 0.25  a\\x1b]0;owned\\x07 1" in text
    assert "\x1b]0" not in text


def test_a_terminal_of_few_characters(terminal):
    assert "gr\\xf6\\xdfe 1" in shown(terminal("ascii"), {"größe": 1.0})


def test_inside_another_display_there_is_no_bar(terminal, monkeypatch):
    console = terminal()

    def refuse(*_):
        raise LiveError("Only one live display may be active at once")

    monkeypatch.setattr(console, "set_live", refuse)
    assert shown(console, {"loss": 1.0}) == ""
