"""Regular expressions: the search that follows all paths at once against Python's own."""

from __future__ import annotations

import re
import warnings
from re import _parser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_jax.rules import RuleError, col
from distill_jax.rules.language import _patterns
from distill_jax.rules.language._patterns import pattern_problem, search

ITEMS = ["a", "b", ".", r"\w", "[ab]", "[^a]", r"\s", r"\b", "^", "$", r"\B", "A", "é", r"\Z", ""]


def longer(patterns: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeats = st.sampled_from(["*", "+", "?", "{1,2}", "*?", "+?", "{2}", "{0,3}?"])
    return (
        st.tuples(patterns, patterns).map("".join)
        | st.tuples(patterns, patterns).map("(%s|%s)".__mod__)
        | st.tuples(patterns, repeats).map("(?:%s)%s".__mod__)
        | st.tuples(st.sampled_from("ims"), patterns).map("(?%s:%s)".__mod__)
    )


patterns = st.recursive(st.sampled_from(ITEMS), longer, max_leaves=8)


@pytest.mark.quick
@given(patterns, st.lists(st.text("ab \nAé1", max_size=6), min_size=3, max_size=3))
def test_all_paths_at_once_find_what_python_finds(pattern: str, texts: list[str]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = re.compile(pattern)
    except re.error:
        return
    automaton = _patterns._Automaton(_parser.parse(pattern))
    for text in texts:
        want = compiled.search(text) is not None
        assert automaton.search(text) == want == search(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text", "want"),
    [
        (r"(a+)+b", "a" * 200, False),
        (r"(a|a)*b", "a" * 200 + "b", True),
        (r"(\w+\s*)+!", "word " * 40, False),
        (r"(?:.*a){9}b", "a" * 60, False),
        ("a?" * 40 + "a" * 40, "a" * 40, True),
        (".*a.*b.*c.*d", "ab" * 400, False),
        (r"(x+x+)+y", "x" * 99, False),
        (r"^(([a-z])+.)+[A-Z]([a-z])+$", "a" * 99, False),
    ],
)
def test_searches_that_would_not_end(pattern: str, text: str, want: bool) -> None:
    """Each would take Python's engine minutes at least, and most of them centuries."""
    assert pattern_problem(pattern) is None
    assert search(pattern, text) == want


def test_patterns_that_people_write_are_searched_by_pythons_engine(monkeypatch) -> None:
    def refused(self, parsed):
        raise AssertionError("another engine")

    monkeypatch.setattr(_patterns._Automaton, "__init__", refused)
    _patterns._search.cache_clear()
    text = "call now, it is free " * 20
    for pattern in (
        r"call.*(free|prize)",
        r"(?i)\bsubscribe\b.*\bchannel\b",
        r"free\s+pri[cz]e|win(ner)?s?",
        r"https?://\S+",
        r"(?:ab|cd)+e",
        r"(\w)\1",
        r"\d{1,3}(,\d{3})*",
    ):
        assert pattern_problem(pattern) is None
        assert search(pattern, text) == (re.search(pattern, text) is not None)


def test_limits_are_said() -> None:
    for pattern, problem in (
        ("x" * 10_001, "it has 10001 characters, at most 10000"),
        (r"(a+)+\1", "together with back-references, lookarounds or possessive repeats"),
        ("(a{1,999}){1,999}", "more than 10000 steps"),
        ("(", "unterminated"),
        ("a{" + "9" * 5000 + "}", "limit"),
        ("(a{9,99999999999999999999})", "too large"),
        ("(?:" * 9 + "a?a?a?a?" + "){1,19}" * 9, "more than 10000 steps"),
        ("(?:" * 2000 + ")" * 2000, "recursion"),
    ):
        assert problem in str(pattern_problem(pattern))
        with pytest.raises(ValueError, match="pattern is not a regular expression: "):
            col("text").matches(pattern)
    assert pattern_problem(r"(.*)(.*)(.*)x\1") is None
    with pytest.raises(RuleError, match="may take too long for a text of 2000 characters"):
        search(r"(.*)(.*)(.*)x\1", "a" * 2000)
