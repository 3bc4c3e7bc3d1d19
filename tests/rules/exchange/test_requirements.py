"""Requirement files of PiShield become hard rules over labels and outputs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distill_jax.rules import (
    RuleError,
    Schema,
    bind,
    from_requirements,
    parse,
    to_text,
    violation,
)

CLAUSES = "y_0 or not y_1 or y_2\nnot y_0 or not y_1\ny_1 or y_2"  # PiShield's own example
LINEAR = """ordering y_2 y_0 y_1

# from PiShield's linear examples
-y_0 >= -3
y_1 - 2y_2 > 0
1500y_1 - .5*y_0 + y2 - 1e1 >= 0
y_0 <= 3 or neg y_1 >= 0
"""


@pytest.mark.quick
def test_clauses_mean_what_they_say_on_every_set_of_labels():
    labels = ("a", "b", "c")
    rules, ordering = from_requirements(CLAUSES, names=labels)
    assert ordering == labels
    assert to_text(rules) == "[hard] a or not b or c\n[hard] not a or not b\n[hard] b or c"
    book = bind(rules, Schema((), labels, exclusive=False))
    sets = np.array(list(itertools.product([0.0, 1.0], repeat=3)), np.float32)
    a, b, c = sets.T > 0
    want = 1.0 - np.stack([a | ~b | c, ~a | ~b, b | c], axis=1)
    assert np.array_equal(violation(book, np.zeros((8, 0), np.float32), sets), want)


def test_horn_rules_with_numbers_and_names():
    rules, ordering = from_requirements("c0 0 :- 1 n2\nn1 :- 3\n2 :-")
    assert to_text(rules) == (
        "[hard] c0: y_1 and not y_2 => y_0\n[hard] y_3 => not y_1\n[hard] y_2"
    )
    assert ordering == ("y_0", "y_1", "y_2", "y_3")


def test_inequalities_are_rules_that_print_and_parse_back():
    rules, ordering = from_requirements(LINEAR)
    assert ordering == ("y_2", "y_0", "y_1")
    assert to_text(rules).splitlines() == [
        "[hard] -y_0 >= -3",
        "[hard] y_1 - 2 * y_2 > 0",
        "[hard] 1500 * y_1 - 0.5 * y_0 + y_2 - 10 >= 0",
        "[hard] y_0 <= 3 or not y_1 >= 0",
    ]
    assert parse(to_text(rules)) == rules
    assert [rule.line for rule in rules] == [4, 5, 6, 7]


def test_a_sum_of_hundreds_of_outputs_still_prints():
    row = " - ".join(f"y_{i}" for i in range(757)) + " >= 0"
    (rule,) = from_requirements(row).rules
    assert parse(str(rule)) == (rule,)


@pytest.mark.parametrize(
    "text, message",
    [
        ("y_0 or x_1", "line 1, column 8: expected y_0, not y_1, joined by or"),
        ("y_0\ny_0 and y_1", "line 2, column 1: expected y_0"),
        ("y_0 or", "expected y_0"),
        ("0 1 2 :- 3", "expected one head before :-"),
        ("0 :- y_1", "line 1, column 6: expected a label's number"),
        ("y_0 >= 1 >= 2", "line 1, column 10: expected one comparison"),
        ("y_0 >= 1 or y_1", "expected one comparison"),
        ("y_0 y_1 >= 2", "line 1, column 5: expected terms such as 2y_0"),
        ("y_0 * y_1 >= 2", "expected terms"),
        ("y_0 >=", "expected terms"),
        ("y_0 >= 1e999", "beyond double precision"),
        ("ordering y_0\ny_0 - y_1 >= 0", "line 2, column 7: y_1 is not in the line ordering"),
        ("ordering y_0 y_0\ny_0 >= 0", "is in the ordering twice"),
        ("ordering y_0 z\ny_0 >= 0", "line 1, column 14: expected a variable such as y_0"),
        ("ordering y_0\nordering y_0\ny_0 >= 0", "line 2, column 1: expected one line ordering"),
        ("y_0 >= 0\nordering y_0", "ordering must stand before"),
        ("", "expected requirements"),
        ("ordering y_0", "expected requirements"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_its_place(text, message):
    with pytest.raises(RuleError, match=message):
        from_requirements(text)


def test_names_must_reach_every_variable_and_differ():
    with pytest.raises(RuleError, match="column 8: names has 2 names, from y_0, got .* y_2"):
        from_requirements("y_0 or y_2", names=["a", "b"])
    with pytest.raises(ValueError, match="names must differ"):
        from_requirements("y_0 or y_1", names=["a", "a"])
