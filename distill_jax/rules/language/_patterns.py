"""Regular expressions that may come from strangers, searched in bounded time.

Python's engine backtracks: ``(a+)+b`` takes twice as long for each further letter. So a bound on
the paths that it may take is derived from the pattern, as coefficient · length ^ degree of the
text. Texts for which it is small are searched by Python's engine, others by following all paths at
once, in time proportional to the length of the text times the size of the pattern.
"""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Callable
from re import _compiler, _parser  # type: ignore[attr-defined]  # they read a pattern as Python does
from re import _constants as ops  # type: ignore[attr-defined]
from typing import Any

from distill_jax.rules.language.errors import RuleError, shortened

MOST_CHARACTERS = 10_000
"""Characters of a pattern, at most."""
MOST_PATHS = 1e8
"""Paths that Python's engine may take in a text, at most: about a second."""
MOST_STATES = 10_000
"""Steps of a pattern whose paths are followed at once, with repeats written out, at most."""


def pattern_problem(pattern: str) -> str | None:
    """Why a text is no regular expression that can be searched for; None if it is one."""
    if len(pattern) > MOST_CHARACTERS:
        return f"it has {len(pattern)} characters, at most {MOST_CHARACTERS}: write several rules"
    try:
        _search(pattern)
    except (re.error, ValueError, OverflowError, RecursionError, _NotRegular) as error:
        return str(error)
    return None


def search(pattern: str, text: str) -> bool:
    """Whether a regular expression is found somewhere in a text.

    Raises:
      RuleError: if that may take too long.
    """
    try:
        return _search(pattern)(text)
    except (_NotRegular, RecursionError) as error:
        raise RuleError(
            f"the pattern {shortened(pattern)!r} may take too long for a text of {len(text)} "
            f"characters: {error}"
        ) from None


@functools.lru_cache(maxsize=1024)
def _search(pattern: str) -> Callable[[str], bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FutureWarning about sets like [[a]]
        compiled = re.compile(pattern)
        parsed = _parser.parse(pattern)
    coefficient, degree = _times(_bound(parsed), _ONE_REPEAT)  # one path per first character
    logarithm = math.log(coefficient)
    automaton: list[_Automaton] = []
    if coefficient == float("inf"):
        automaton.append(_Automaton(parsed))  # raises for what it cannot follow

    def found(text: str) -> bool:
        if logarithm + degree * math.log(max(len(text), 1)) <= math.log(MOST_PATHS):
            return compiled.search(text) is not None
        if not automaton:
            automaton.append(_Automaton(parsed))
        return automaton[0].search(text)

    return found


# How many paths there are

_Bound = tuple[float, int]
"""A coefficient and a degree."""
_ONE: _Bound = (1.0, 0)
_ONE_REPEAT: _Bound = (1.0, 1)
_NO_BOUND: _Bound = (float("inf"), 0)


def _times(a: _Bound, b: _Bound) -> _Bound:
    return a[0] * b[0], min(a[1] + b[1], 50)


def _bound(items: Any) -> _Bound:
    """At most how many paths lead through a sequence."""
    found = _ONE
    for operator, argument in items:
        found = _times(found, _bound_of(operator, argument))
    return found


def _bound_of(operator: Any, argument: Any) -> _Bound:
    if operator in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
        low, high, body = argument
        inner, unbounded = _bound(body), high == ops.MAXREPEAT
        if inner == _ONE:  # the number of repeats is the only choice
            return _ONE_REPEAT if unbounded else (float(high - low + 1), 0)
        if unbounded or high > 20 or inner[1] * high > 20 or inner[0] > 1e12:
            return _NO_BOUND
        return (high - low + 1) * inner[0] ** high, inner[1] * high
    if operator is ops.BRANCH:
        branches = [_bound(branch) for branch in argument[1]]
        join = max if _exclude_each_other(argument[1]) else sum
        return float(join(c for c, _ in branches)), max(d for _, d in branches)
    if operator is ops.SUBPATTERN:
        return _bound(argument[3])
    if operator is ops.ATOMIC_GROUP:
        return _bound(argument)
    if operator in (ops.ASSERT, ops.ASSERT_NOT):
        return _bound(argument[1])
    if operator is ops.GROUPREF_EXISTS:
        _, yes, no = argument
        return _times(_bound(yes), _bound(no or []))
    return _ONE


def _exclude_each_other(branches: Any) -> bool:
    """Whether the first character says which branch is taken."""
    first = [branch[0] for branch in branches if len(branch)]
    letters = {chr(x).lower() for operator, x in first if operator is ops.LITERAL}
    return len(letters) == len(branches)


# All paths at once


class _NotRegular(Exception):
    """A pattern that only backtracking can search for, or one that is too large."""


class _Automaton:
    """A pattern as steps: a character and the next step, or a choice of next steps.

    A single character, and a place such as ``\\b``, are tested by Python's own engine.
    """

    def __init__(self, parsed: Any):
        self.steps: list[Any] = [("end", None, ())]
        self._tests: dict[Any, Any] = {}
        self._accepted: dict[tuple[int, str], bool] = {}
        self.start = self._sequence(parsed, parsed.state.flags, 0)

    def search(self, text: str) -> bool:
        """Whether the pattern is found somewhere in a text."""
        ready: set[int] = set()
        for place in range(len(text) + 1):
            waiting, reached = [*ready, self.start], set()
            ready = set()
            while waiting:
                step = waiting.pop()
                if step in reached:
                    continue
                reached.add(step)
                kind, test, following = self.steps[step]
                if kind == "end":
                    return True
                if kind == "choice" or (kind == "place" and test.match(text, place)):
                    waiting += following
                elif kind == "character" and place < len(text):
                    key = step, text[place]
                    if key not in self._accepted:
                        self._accepted[key] = test.match(text[place]) is not None
                    if self._accepted[key]:
                        ready.update(following)
        return False

    def _add(self, kind: str, test: Any, following: tuple[int, ...]) -> int:
        if len(self.steps) >= MOST_STATES:
            raise _NotRegular(f"its repeats, written out, have more than {MOST_STATES} steps")
        self.steps.append((kind, test, following))
        return len(self.steps) - 1

    def _sequence(self, items: Any, flags: int, following: int) -> int:
        for operator, argument in reversed(list(items)):
            following = self._item(operator, argument, flags, following)
        return following

    def _item(self, operator: Any, argument: Any, flags: int, following: int) -> int:
        """The first step of an item that is followed by a step."""
        if operator is ops.BRANCH:
            branches = (self._sequence(x, flags, following) for x in argument[1])
            return self._add("choice", None, tuple(branches))
        if operator is ops.SUBPATTERN:
            _, added, removed, body = argument
            return self._sequence(body, (flags | added) & ~removed, following)
        if operator in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            low, high, body = argument
            end = following
            if high == ops.MAXREPEAT:
                following = self._add("choice", None, ())
                again = self._sequence(body, flags, following)
                self.steps[following] = ("choice", None, (again, end))
            else:
                for _ in range(high - low):
                    more = self._sequence(body, flags, following)
                    following = self._add("choice", None, (more, end))
            for _ in range(low):
                following = self._sequence(body, flags, following)
            return following
        if operator is ops.AT:
            return self._add("place", self._test(operator, argument, flags), (following,))
        if operator in (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN):
            return self._add("character", self._test(operator, argument, flags), (following,))
        raise _NotRegular(
            "repeats within repeats cannot be searched in bounded time together with "
            "back-references, lookarounds or possessive repeats"
        )

    def _test(self, operator: Any, argument: Any, flags: int) -> Any:
        key = operator, repr(argument), flags
        if key not in self._tests:
            state = _parser.State()
            state.flags = flags
            one = _parser.SubPattern(state, [(operator, argument)])
            self._tests[key] = _compiler.compile(one, flags)
        return self._tests[key]
