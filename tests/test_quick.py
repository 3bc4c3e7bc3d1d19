"""The short set, ``pytest -m quick``, has a test of every part of the package."""

from __future__ import annotations

import pathlib

import pytest

TESTS = pathlib.Path(__file__).parent
# These start whole programs, so they belong to the full set alone.
WHOLE_PROGRAMS = ("benchmarks/", "examples/", "training/checkpoints/test_killed.py")


@pytest.mark.quick
def test_every_file_of_tests_has_a_quick_one():
    files = {
        str(path.relative_to(TESTS)): path.read_text(encoding="utf-8")
        for path in sorted(TESTS.rglob("test_*.py"))
    }
    without = [
        name
        for name, text in files.items()
        if "pytest.mark.quick" not in text and not name.startswith(WHOLE_PROGRAMS)
    ]
    assert len(files) > 50 and not without, without
