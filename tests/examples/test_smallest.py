"""The smallest example runs, and does what it says."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest

from examples import smallest


def test_a_student_learns_from_its_teacher_alone(capsys: pytest.CaptureFixture[str]) -> None:
    found = smallest.main([])
    # Guessing, and predicting the more frequent class, are right half the time.
    assert found["teacher accuracy"] > 0.8
    assert found["student accuracy"] > 0.8
    assert found["agreement"] > 0.8
    shown = capsys.readouterr().out
    assert all(f"{name} {share:.1%}" in shown for name, share in found.items())


def test_the_task_is_drawn_as_described() -> None:
    first, again, other = (smallest.draw(jax.random.key(seed)) for seed in (0, 0, 1))
    assert first["inputs"].shape == (1000, 8) and set(np.asarray(first["labels"])) == {0, 1}
    np.testing.assert_array_equal(first["inputs"], again["inputs"])
    assert not np.array_equal(first["inputs"], other["inputs"])


def test_it_is_short_and_says_how_to_run_it() -> None:
    assert smallest.__file__ is not None
    text = pathlib.Path(smallest.__file__).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 70
    assert "python examples/smallest.py" in (smallest.__doc__ or "")
