"""Rule texts: what they are read as, and what is said of those that are none."""

from __future__ import annotations

import pytest

from distill_jax.rules import formulas as f
from distill_jax.rules.printing import to_text
from distill_jax.rules.syntax import parse, parse_formula

A, B, C, X, Y = (f.Name(name) for name in "abcxy")
HEART = """
# from the ward
[w=0.8]   pressure: ap_hi >= 140 and age > 55 => disease
[p=0.9]   smoker and age > 60 => disease   # 'really'
[hard]    `genus/species` => `genus`
[hard]    exactly_one(location, organisation,
                      person)
[w=6]     has_but => sentiment == view(clause_b).sentiment
[learn]   text matches r"call.*(free|prize)" => spam
[hard]    increasing(p.disease, by=ap_hi)
[budget]  mean(p.approve, where=sex == 'F') >= 0.8 * mean(p.approve, where=sex == 'M')
          unnamed => x
"""


def compare(left: f.Value, sign: str, right: f.Value) -> f.Compare:
    return f.Compare((left, right), (sign,))


def test_a_whole_text() -> None:
    rules = parse(HEART)
    assert [rule.line for rule in rules] == [3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert [rule.name for rule in rules] == ["pressure"] + [None] * 8
    kinds = ["w", "p", "hard", "hard", "w", "learn", "hard", "budget", ""]
    assert [rule.strength.kind for rule in rules] == kinds
    body = f.And(
        (compare(f.Name("ap_hi"), ">=", f.Number(140)), compare(f.Name("age"), ">", f.Number(55)))
    )
    assert rules[0].formula == f.Implies(body, f.Name("disease"))
    assert rules[2].formula == f.Implies(f.Name("genus/species"), f.Name("genus"))
    assert rules[3].source.startswith("[hard]    exactly_one(") and "\n" in rules[3].source
    assert rules[4].formula.head.operands[1] == f.Of("clause_b", "sentiment")
    assert rules[5].formula.body == f.Matches(f.Name("text"), "call.*(free|prize)")
    assert rules[6].formula == f.Trend("increasing", f.Of(None, "disease"), f.Name("ap_hi"))
    assert not any(rule.definition for rule in rules)


# One row for each pair of neighbours in the table: the tighter one on either side of the looser.
PRECEDENCE = [
    ("a <=> b => c", f.Iff(A, f.Implies(B, C))),
    ("a => b <=> c", f.Iff(f.Implies(A, B), C)),
    ("a => b or c", f.Implies(A, f.Or((B, C)))),
    ("a or b => c", f.Implies(f.Or((A, B)), C)),
    ("a or b and c", f.Or((A, f.And((B, C))))),
    ("a and b or c", f.Or((f.And((A, B)), C))),
    ("a and not b", f.And((A, f.Not(B)))),
    ("not a and b", f.And((f.Not(A), B))),
    ("not x == y", f.Not(compare(X, "==", Y))),
    ("not x in [y]", f.Not(f.In(X, (Y,)))),
    ("not x between a and b", f.Not(f.Between(X, A, B))),
    ("not x is missing", f.Not(f.Missing(X))),
    ("x > a + b", compare(X, ">", f.Arithmetic("+", A, B))),
    ("a - b > x", compare(f.Arithmetic("-", A, B), ">", X)),
    (
        "x + 1 in [y + 1]",
        f.In(f.Arithmetic("+", X, f.Number(1)), (f.Arithmetic("+", Y, f.Number(1)),)),
    ),
    ("a + b * c > x", compare(f.Arithmetic("+", A, f.Arithmetic("*", B, C)), ">", X)),
    ("a / b - c > x", compare(f.Arithmetic("-", f.Arithmetic("/", A, B), C), ">", X)),
    ("-a * b > x", compare(f.Arithmetic("*", f.Negative(A), B), ">", X)),
    ("a * -b > x", compare(f.Arithmetic("*", A, f.Negative(B)), ">", X)),
    ("-p.a > x", compare(f.Negative(f.Of(None, "a")), ">", X)),
    ("-mean(a) > x", compare(f.Negative(f.Call("mean", A)), ">", X)),
]


@pytest.mark.parametrize(("text", "tree"), PRECEDENCE)
def test_precedence(text: str, tree: f.Formula) -> None:
    assert parse_formula(text) == tree
    assert to_text(tree) == text


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a => b => c", f.Implies(A, f.Implies(B, C))),
        ("a and b and c", f.And((A, B, C))),
        ("(a and b) and c", f.And((f.And((A, B)), C))),
        ("a - b - c > 0", compare(f.Arithmetic("-", f.Arithmetic("-", A, B), C), ">", f.Number(0))),
        ("0 < x <= 3", f.Compare((f.Number(0), X, f.Number(3)), ("<", "<="))),
        ("x not in ['a', -1]", f.In(X, (f.String("a"), f.Number(-1)), True)),
        ("x between 1 and 2 and b", f.And((f.Between(X, f.Number(1), f.Number(2)), B))),
        ("x is not missing", f.Missing(X, True)),
        ("at_most(2, a, b or c)", f.Count("at_most", 2, (A, f.Or((B, C))))),
        ("all_of(a, b)", f.Count("all_of", None, (A, B))),
        ("--x > -(3)", compare(f.Negative(f.Negative(X)), ">", f.Negative(f.Number(3)))),
        ("Größe > 1.5e-07", compare(f.Name("Größe"), ">", f.Number(1.5e-7))),
        ("`not` and `a \\` b`", f.And((f.Name("not"), f.Name("a ` b")))),
    ],
)  # fmt: skip
def test_formulas(text: str, tree: f.Formula) -> None:
    assert parse_formula(text) == tree
    assert to_text(tree) == text
