"""Text: tests and sizes of text, in every use of a rule."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from distill_jax.rules import (
    Column,
    RuleError,
    Schema,
    bind,
    check,
    col,
    conflicts,
    encode,
    explain,
    fires,
    infer_schema,
    parse,
    parse_formula,
    to_logistic_regression,
)
from distill_jax.rules.binding import _texts

SCHEMA = Schema(
    (
        Column("subject", "text"),
        Column("body", "text"),
        Column("kind", "categorical", ("Bill", "note")),
        Column("n"),
    ),
    ("ham", "spam"),
)
TABLE = pd.DataFrame(
    {
        "subject": ["Invoice No. 7", "re: INVOICE", "straße ende", None, ""],
        "body": ["one two  three", "x" * 41, None, "\n", ""],
        "kind": ["Bill", "bill", None, "note", "Bill"],
        "n": [3.0, 41.0, 2.0, None, 0.0],
    }
)
# What each holds for in pandas: True, False, or None where a text is missing.
FORMULAS = {
    "contains(subject, 'voice')": lambda s, b, k: s.str.contains("voice", regex=False),
    "contains(lower(subject), 'invoice')": lambda s, b, k: s.str.lower().str.contains("invoice"),
    "contains(upper(subject), 'STRASSE')": lambda s, b, k: s.str.upper().str.contains("STRASSE"),
    "starts_with(subject, 'In')": lambda s, b, k: s.str.startswith("In"),
    "ends_with(subject, 'ende')": lambda s, b, k: s.str.endswith("ende"),
    "lower(subject) == 're: invoice'": lambda s, b, k: s.str.lower() == "re: invoice",
    "subject in ['', 're: INVOICE']": lambda s, b, k: s.isin(["", "re: INVOICE"]),
    "subject != ''": lambda s, b, k: s != "",
    "upper(lower(subject)) matches r'^RE'": lambda s, b, k: s.str.match("(?i)re"),
    "length(body) > 40": lambda s, b, k: b.str.len() > 40,
    "words(body) == 3": lambda s, b, k: b.str.split().str.len() == 3,
    "0 < length(body) - words(body) <= 11": lambda s, b, k: (
        b.str.len() - b.str.split().str.len()
    ).between(1, 11),
    "lower(kind) == 'bill'": lambda s, b, k: k.str.lower() == "bill",
    "length(kind) == 4": lambda s, b, k: k.str.len() == 4,
    "contains(kind, 'ill')": lambda s, b, k: k.str.contains("ill"),
}


@pytest.mark.quick
def test_text_is_what_pandas_says_and_missing_text_unknown() -> None:
    text = "\n".join(f"[w=1] {x} => spam\n[w=1] not ({x}) => ham" for x in FORMULAS)
    book = bind(text, SCHEMA)
    assert parse(str(book)) == book.rules
    columns = encode(book, TABLE)
    held = np.asarray(fires(book, columns)).T.reshape(len(FORMULAS), 2, -1)
    series = [TABLE[name].astype(object) for name in ("subject", "body", "kind")]
    for (formula, want), (yes, no) in zip(FORMULAS.items(), held, strict=True):
        used = next(x for name, x in zip(("(subject", "(body", "(kind"), series, strict=True)
                    if name in formula or formula.startswith(name[1:]))  # fmt: skip
        truth = want(*series).where(used.notna(), None)
        np.testing.assert_array_equal(yes, [x is not None and x == 1 for x in truth], formula)
        np.testing.assert_array_equal(no, [x is not None and x == 0 for x in truth], formula)
    rows = check(book, TABLE).rows
    assert [row["silent"] for row in rows] == [1] * len(rows)


def test_text_in_a_clause_in_a_model_and_in_an_explanation() -> None:
    text = "long :- length(body) > 40. spam :- contains(lower(subject), 'invoice'), long."
    book = bind(text, SCHEMA)
    assert parse(str(book)) == (*book.info.definitions, *book.rules)
    assert (
        np.asarray(fires(book, encode(book, TABLE)))[:, 0].tolist() == [False, True] + [False] * 3
    )
    (row,) = explain(book, TABLE.iloc[1], jnp.zeros(2)).rows
    assert row["violated"] is True and not row["silent"]
    model = to_logistic_regression(book)
    columns = encode(book, TABLE)
    params, state = model.init(jax.random.key(0), columns)
    logits = np.asarray(model.predict(params, state, columns).logits)
    assert (logits[:, 1] - logits[:, 0]).argmax() == 1


def test_a_text_is_tested_once_however_often_it_occurs(monkeypatch: pytest.MonkeyPatch) -> None:
    tested = []
    holds = _texts.holds
    monkeypatch.setattr(
        _texts, "holds", lambda test, text: tested.append(text) or holds(test, text)
    )
    schema = Schema((Column("subject", "text"),), ("ham", "spam"))
    book = bind("contains(lower(subject), 'a') => spam", schema)
    columns = encode(book, {"subject": ["A a", "B", None, b"B"] * 250})
    np.testing.assert_array_equal(columns[:4], [[1], [0], [np.nan], [0]])
    assert tested == ["A a", "B"]


def test_the_same_in_python() -> None:
    subject, body = col("subject"), col("body")
    built = {
        "contains(lower(subject), 'a')": subject.lower().contains("a"),
        "starts_with(upper(subject), 'A')": subject.upper().starts_with("A"),
        'ends_with(subject, "\'")': subject.ends_with("'"),
        "length(body) > 40": body.length() > 40,
        "words(body) / length(body) < 0.5": body.words() / body.length() < 0.5,
    }
    for text, formula in built.items():
        assert str(formula) == text and parse_formula(text) == formula.tree
    with pytest.raises(ValueError, match="part must be a string that is not empty"):
        subject.contains("")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("contains(lower(subject), 'Invoice')", "never holds.*write 'invoice'"),
        ("lower(subject) in ['a', 'B']", "never holds.*write 'b'"),
        ("starts_with(upper(lower(subject)), 'b')", "write 'B'"),
        ("contains(n, 'a')", "n is numeric and holds no text: contains is for text and cat"),
        ("length(n) > 3", "n is numeric and holds no text: length is for"),
        ("lower(n) == 'a'", "n is numeric and holds no text: lower is for"),
        ("length('abc') > 3", "'abc' is a constant and holds no text"),
        ("contains(subject + 1, 'a')", "subject is text: arithmetic takes numbers"),
        ("contains(sujbect, 'a')", "did you mean subject"),
        ("subject > date '2024-01-31'", "declare the kind .*kinds={'subject': 'datetime'}"),
        ("duration '1 h' < kind", "declare the kind .*kinds={'kind': 'duration'}"),
        ("subject > 'a'", "by == or != with a string"),
        ("subject == body", "by == or != with a string"),
        ("lower(subject) == 3", "by == or != with a string"),
        ("lower(subject)", "expected a formula, got the value"),
        ("contains(subject, 'a') > 3", "expected a column, a number or a string, got a formula"),
        ("contains(subject, body)", "expected contains"),
        ("contains(subject)", "expected contains"),
        ("contains(subject, '')", "every text has the part ''"),
        ("length() > 3", "needs at least one argument"),
        ("lenght(subject) > 3", "did you mean length"),
        ("kind == 'bill'", "no category 'bill'; did you mean 'Bill'"),
    ],
)
def test_what_is_no_text_is_refused(text: str, said: str, library_errors: Any) -> None:
    with pytest.raises(RuleError, match=said):
        bind(f"{text} => spam", SCHEMA)


def test_conflicts_over_text_have_an_example() -> None:
    text = """
    [hard] contains(lower(subject), 'invoice') and ends_with(subject, '!') => spam
    [hard] length(subject) > 40 and words(subject) == 3 and not starts_with(subject, 'i') => ham
    """
    book = bind(text, SCHEMA, conflicts="ignore")
    (found,) = conflicts(book)
    assert found.certain and found.region == (
        "contains(lower(subject), 'invoice') and ends_with(subject, '!') and not "
        "starts_with(subject, 'i') and length(subject) > 40 and words(subject) == 3"
    )
    assert np.asarray(fires(book, encode(book, found.example))).all()
    never = "[hard] lower(kind) == 'bill' => spam\n[hard] kind == 'note' => ham"
    assert not any(x.certain for x in conflicts(bind(never, SCHEMA, conflicts="ignore")))


def test_soft_sizes() -> None:
    book = bind("length(body) > 40 => spam", SCHEMA, widths={"length(body)": 2.0})
    (row,) = explain(book, TABLE.iloc[1], jnp.array([5.0, 0.0])).rows
    np.testing.assert_allclose(row["violated"], 1 / (1 + np.exp(-0.5)), rtol=1e-5)


def test_text_needs_names() -> None:
    with pytest.raises(TypeError, match="have columns of text"):
        encode(bind("length(kind) > 3 => spam", SCHEMA), np.zeros((1, 2)))
    schema = infer_schema({"kind": ["a", "b"]}, SCHEMA.classes)
    with pytest.raises(ValueError, match="'kind' holds bytes that are not UTF-8"):
        encode(bind("length(kind) > 3 => spam", schema), {"kind": [b"\xff"]})
