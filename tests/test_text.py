"""Text of others: nothing in it commands a terminal, or runs in a spreadsheet."""

from __future__ import annotations

import pytest

from distill_jax._text import from_cell, printable, to_cell


@pytest.mark.quick
def test_what_commands_a_terminal_is_escaped():
    assert printable("a b\tc\nd") == "a b\tc\nd"
    assert printable("größe ± 1 … 😀 日本 \u200d") == "größe ± 1 … 😀 日本 \u200d"
    bad = [*map(chr, (*range(9), *range(11, 32), *range(127, 160))), "\u202e", "\u2066", "\u2028"]
    for c in [*bad, "\udcff"]:
        shown = printable(f"a{c}b")
        assert shown.isascii() and shown.isprintable() and shown.startswith("a\\")
        assert shown.encode().decode("unicode_escape") == f"a{c}b"


@pytest.mark.parametrize(
    "encoding, shown",
    [
        ("ascii", "gr\\xf6\\xdfe +/- 1 \\u65e5"),
        ("latin-1", "größe +/- 1 \\u65e5".replace("+/-", "+/-")),
        ("cp437", "größe +/- 1 \\u65e5"),
        ("utf-8", "größe ± 1 日"),
        ("utf-16", "größe ± 1 日"),
        ("unknown", "gr\\xf6\\xdfe +/- 1 \\u65e5"),
    ],
)
def test_what_an_encoding_lacks_is_escaped(encoding, shown):
    assert printable("größe ± 1 日", encoding) == shown


@pytest.mark.parametrize(
    "text, cell",
    [
        ("=1+1", "'=1+1"),
        ("+1+1", "'+1+1"),
        ("-x > 5 => cat", "'-x > 5 => cat"),
        ("@sum(a)", "'@sum(a)"),
        ("\t=1", "'\t=1"),
        ("'=1", "''=1"),
        ("'a'", "'a'"),
        ("-1.5", "-1.5"),
        ("+inf", "+inf"),
        ("-1e-3", "-1e-3"),
        ("age > 60 => sick", "age > 60 => sick"),
        ("", ""),
    ],
)
def test_a_cell_is_no_formula(text, cell):
    assert to_cell(text) == cell
    assert from_cell(cell) == text
