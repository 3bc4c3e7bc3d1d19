"""Every model made from rules or held by them, exported with a free batch size.

A new one joins by one line in ``CASES``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from distill_jax import models, teachers
from distill_jax.rules import (
    Column,
    Schema,
    bind,
    corrected,
    enforce,
    fires,
    log_truth,
    project,
    rule_teacher,
    to_logistic_regression,
    to_network,
    truth,
)
from tests.exporting import (
    Case,
    assert_predicts_for_any_batch_size,
    no_shapes_of_traced_arrays,  # noqa: F401 - a fixture
    of_model,
    of_teacher,
)
from tests.models.drawing import drawn
from tests.rules import small_books

COLUMNS = (Column("age", mean=50.0, std=10.0), Column("smoker", "boolean"))
CLASSES = Schema(COLUMNS, ("well", "sick", "dead"))
TWO = Schema(COLUMNS, ("well", "sick"))
LABELS = Schema(COLUMNS, ("a", "b", "c"), exclusive=False)
ROWS = np.array([[20, 0], [65, 1], [75, np.nan], [np.nan, 1], [55, 0]], np.float32)
WITHOUT_GAPS = np.nan_to_num(ROWS / 50)
VIEW = np.random.default_rng(0).standard_normal((len(ROWS), 3)).astype(np.float32)

HARD = "[hard] smoker and age > 1 => not well\n[w=1] age > 1.2 => sick"
IMPLICATIONS = "[hard] age > 1 and a => b\n[hard] b => c\n[hard] smoker => a"
TEXT = "[w=2] age > 60 and smoker => sick\n[w=1] smoker => not well\n[w=0.5] not age > 60 => well"
THEORY = "sick :- old, not smoker.   sick :- age > 70.   old :- age > 60.   old :- age < 30."


def of_function(function: Callable[..., Any], book: Any) -> Case:
    """``function(book, columns, logits, views)``, the book among the variables."""
    inputs = ROWS, np.roll(VIEW, 1), {"later": VIEW} if book.schema.views else {}
    return Case(lambda book, x: function(book, *x), book, inputs)


def teacher() -> teachers.Teacher:
    model = models.mlp([4], 3)
    return teachers.teacher(model, *drawn(model, WITHOUT_GAPS))


def probabilities(book, columns, logits, views):
    to_p = jax.nn.softmax if book.schema.exclusive else jax.nn.sigmoid
    return fires(book, columns), truth(book, columns, to_p(logits), views=views)


def logarithms(book, columns, logits, views):
    return log_truth(book, columns, logits, views=views)


def projected(book, columns, logits, views):
    return project(book, columns, logits, views=views)


CASES: dict[str, Callable[[], Case]] = {
    "logistic regression, one output": lambda: of_model(to_logistic_regression(TEXT, TWO), ROWS),
    "logistic regression, classes": lambda: of_model(to_logistic_regression(TEXT, CLASSES), ROWS),
    "logistic regression, label sets": lambda: of_model(
        to_logistic_regression("[w=2] age > 60 => a and not b\n[w=1] not c", LABELS), ROWS
    ),
    "KBANN, one output": lambda: of_model(to_network(THEORY, TWO), ROWS),
    "KBANN, a unit per class": lambda: of_model(to_network(THEORY, CLASSES), ROWS),
    "enforce, classes": lambda: of_model(
        enforce(models.mlp([4], 3), bind(HARD, CLASSES)), WITHOUT_GAPS
    ),
    "enforce, label sets": lambda: of_model(
        enforce(models.mlp([4], 3, outputs="multi_label"), bind(IMPLICATIONS, LABELS)),
        WITHOUT_GAPS,
    ),
    "rule_teacher": lambda: of_teacher(rule_teacher(small_books.plain()), ROWS),
    "corrected": lambda: of_teacher(corrected(teacher(), small_books.plain()), WITHOUT_GAPS),
    "project": lambda: of_function(projected, small_books.book()),
    # Neither is a model, but a program that predicts may also say which rules hold.
    "truth, classes": lambda: of_function(probabilities, small_books.book()),
    "truth, label sets": lambda: of_function(probabilities, small_books.labels()),
    "log_truth": lambda: of_function(logarithms, small_books.labels()),
}


# A symbol in a shape is no int, which annotations ask for.
@pytest.mark.usefixtures("library_errors", "no_shapes_of_traced_arrays")
@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.quick] if x == "rule_teacher" else []) for x in CASES],
)
def test_a_loaded_program_predicts_for_any_batch_size(name: str) -> None:
    assert_predicts_for_any_batch_size(CASES[name]())
