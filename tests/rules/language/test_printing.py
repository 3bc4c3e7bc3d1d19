"""Printing is the inverse of reading, for every tree."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import hypothesis.strategies as st
import jaxtyping
import pytest
from hypothesis import given, settings

from distill_jax.rules.language import formulas as f
from distill_jax.rules.language._spelling import number
from distill_jax.rules.language.errors import RuleError
from distill_jax.rules.language.parsing import parse, parse_formula
from distill_jax.rules.language.printing import to_text

A, B, C, X, Y = (f.Name(name) for name in "abcxy")

words = [
    "a",
    "b c",
    "not",
    "in",
    "p",
    "r",
    "view",
    "where",
    "unless",
    "else",
    "first",
    "by",
    "missing",
    "mean",
    "True",
    "p-37",
]
names = st.one_of(st.sampled_from(words), st.text(max_size=5))
numbers = st.builds(
    f.Number,
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9) | st.integers(-(10**30)),
)
nanoseconds = st.integers(-62135596800 * 10**9, 253402300800 * 10**9 - 1)  # the years 1 to 9999
days = st.integers(-719162, 2932896).map(lambda n: n * 86_400 * 10**9)
members = st.builds(f.Of, st.none() | names, names)
# Regular expressions that are sound: literal texts, and a few with operators.
patterns = st.text(max_size=5).map(re.escape) | st.sampled_from(
    [r"a.*(b|c)+\d", r"\\", r"\"'", "'", '"', "[^`]", r"\'\"", "a\nb", ""]
)


@pytest.fixture(scope="module", autouse=True)
def _unchecked() -> Iterator[None]:
    """The checks of annotations draw random items of tuples, which hypothesis does not allow."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def some(parts: st.SearchStrategy, least: int = 1) -> st.SearchStrategy:
    return st.lists(parts, min_size=least, max_size=4).map(tuple)


def values_of(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(
        st.builds(f.Negative, inner),
        st.builds(f.Days, inner),
        st.builds(f.Recased, st.sampled_from(f.CASES), inner),
        st.builds(f.Size, st.sampled_from(f.SIZES), inner),
        st.builds(f.Arithmetic, st.sampled_from(f.ARITHMETIC), inner, inner),
    )


times = st.one_of(
    st.builds(f.Time, nanoseconds | days, st.booleans()),
    st.builds(f.TimeOfDay, st.integers(0, 86_400 * 10**9 - 1)),
    st.builds(f.Duration, st.integers(-(10**18), 10**18) | days),
)
atoms = st.one_of(st.builds(f.Name, names), numbers, st.builds(f.String, names), members, times)
values = st.recursive(atoms, values_of, max_leaves=5)


@st.composite
def chains(draw: st.DrawFn) -> f.Compare:
    operands = draw(some(values, least=2))
    signs = [draw(st.sampled_from(f.COMPARISONS)) for _ in operands[1:]]
    return f.Compare(operands, tuple(signs))


def scores_of(inner: st.SearchStrategy) -> st.SearchStrategy:
    factors = st.sampled_from([1, 2, 0.5, -1, -0.5]) | st.floats(-9, 9)
    return st.builds(f.Score, some(st.builds(f.Points, factors, inner)))


def formulas_of(inner: st.SearchStrategy) -> st.SearchStrategy:
    mean = st.builds(f.Call, st.just("mean"), values, st.none() | inner)
    return st.one_of(
        st.builds(f.Not, inner),
        st.builds(f.And, some(inner, least=2)),
        st.builds(f.Or, some(inner, least=2)),
        st.builds(f.Implies, inner, inner),
        st.builds(lambda a, b, c: f.Implies(f.Unless((a, f.Not(c))), b), inner, inner, inner),
        st.builds(lambda head: f.Implies(f.Else(), head), inner),
        st.builds(f.Iff, inner, inner),
        st.builds(
            f.Count, st.sampled_from(["at_most", "at_least"]), st.integers(0, 9), some(inner)
        ),
        st.builds(
            f.Count, st.sampled_from(["exactly_one", "all_of", "any_of"]), st.none(), some(inner)
        ),
        st.builds(lambda a, b: f.Compare((f.Negative(a), b), (">=",)), mean, values),
        st.builds(
            lambda a, b, sign: f.Compare((a, f.Arithmetic("-", b, a)), (sign,)),
            scores_of(inner),
            values,
            st.sampled_from(f.COMPARISONS),
        ),
    )


tests = st.one_of(
    st.builds(f.Name, names),
    members,
    chains(),
    st.builds(f.In, values, some(values), st.booleans()),
    st.builds(f.Between, values, values, values),
    st.builds(f.Missing, values, st.booleans()),
    st.builds(f.Matches, values, patterns),
    st.builds(f.Contains, st.sampled_from(f.TEXT_TESTS), values, st.text(min_size=1, max_size=5)),
    st.builds(f.Trend, st.sampled_from(f.TRENDS), values, values),
)
formulas = st.recursive(tests, formulas_of, max_leaves=6)
strengths = st.one_of(
    st.sampled_from([f.Strength(), f.HARD, f.LEARN, f.BUDGET]),
    st.builds(f.Strength, st.just("w"), st.floats(allow_nan=False, allow_infinity=False)),
    st.builds(f.Strength, st.just("p"), st.floats(0, 1, exclude_min=True, exclude_max=True)),
)
horn = st.one_of(
    formulas.filter(lambda tree: f.Else not in kinds(tree)),
    st.builds(lambda name, word: f.Compare((f.Name(name), f.String(word)), ("==",)), names, names),
)
group_names = names.filter(bool)
priorities = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30))
groups = st.one_of(
    st.just({}),
    st.builds(lambda name: {"group": name}, group_names),
    st.builds(
        lambda name, x: {"group": name, "priority": x}, group_names | st.just(""), priorities
    ),
)
sound = formulas.filter(lambda tree: f.Else not in kinds(tree))
rules = st.one_of(
    st.builds(
        lambda formula, name, strength, group: f.Rule(formula, name, strength, **group),
        sound, st.none() | names, strengths, groups,
    ),
    st.builds(
        lambda head, strength, name: f.Rule(
            f.Implies(f.Else(), head), None, strength, group=name
        ),
        sound, strengths, group_names,
    ),
    st.builds(
        lambda body, head, name, strength, group: f.Rule(
            f.Implies(body, f.Name(head)), name, strength, True, **group
        ),
        horn | st.builds(f.And, some(horn, least=2)),
        names,
        st.none() | names,
        strengths,
        groups,
    ),
)  # fmt: skip


def kinds(tree: object) -> set[type]:
    """The kinds of trees in a tree."""
    inner = tree if isinstance(tree, tuple) else ()
    if isinstance(tree, f.Tree):
        inner = tuple(vars(tree).values())
    return {type(tree)}.union(*(kinds(part) for part in inner))


def test_a_formula_is_read_back_from_its_text() -> None:
    seen: set[type] = set()

    @given(formulas)
    @settings(max_examples=200, database=None)
    def check(tree: f.Formula) -> None:
        seen.update(kinds(tree))
        text = to_text(tree)
        assert "\n" not in text
        assert parse_formula(text) == tree

    check()
    kinds_of_formula = {
        kind
        for kind in vars(f).values()
        if isinstance(kind, type) and issubclass(kind, (f.Value, f.Formula))
    }
    assert seen >= kinds_of_formula - {f.Value, f.Formula, f.Connective}


@given(rules)
@settings(max_examples=200)
def test_a_rule_is_read_back_from_its_text(rule: f.Rule) -> None:
    text = to_text((rule, rule))
    assert parse(text) == (rule, rule)
    assert to_text(parse(text)) == text


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (f.Implies(f.Implies(A, B), C), "(a => b) => c"),
        (f.Implies(A, f.Implies(B, C)), "a => b => c"),
        (f.Iff(f.Iff(A, B), C), "(a <=> b) <=> c"),
        (f.Iff(A, f.Iff(B, C)), "a <=> (b <=> c)"),
        (f.Not(f.And((A, B))), "not (a and b)"),
        (f.And((f.Not(A), B)), "not a and b"),
        (f.Not(f.Not(A)), "not not a"),
        (f.And((f.And((A, B)), f.Or((A, B)))), "(a and b) and (a or b)"),
        (f.Or((f.Or((A, B)), f.And((A, B)))), "(a or b) or a and b"),
        (f.Compare((X, f.Arithmetic("-", A, f.Arithmetic("-", B, C))), ("<",)), "x < a - (b - c)"),
        (f.Compare((X, f.Arithmetic("/", A, f.Arithmetic("*", B, C))), ("<",)), "x < a / (b * c)"),
        (f.Compare((f.Negative(f.Arithmetic("+", A, B)), X), ("<",)), "-(a + b) < x"),
        (f.Compare((X, f.Number(3.0), f.Number(-0.5)), ("<", "<=")), "x < 3 <= -0.5"),
        (f.Compare((X, f.Number(1e300)), ("<",)), "x < 1e+300"),
        (f.Compare((X, f.String("it's \"\n")), ("==",)), r"""x == 'it\'s "\n'"""),
        (f.Compare((X, f.String("it's")), ("!=",)), '''x != "it's"'''),
        (f.Name("a`\\"), r"`a\`\\`"),
        (f.Matches(X, r"\d+"), r'x matches r"\d+"'),
        (f.Matches(X, 'say "\\d'), r"""x matches r'say "\d'"""),
        (f.Matches(X, "'\""), r"""x matches "'\"" """.strip()),
        (f.Count("exactly_one", None, (A, f.Implies(B, C))), "exactly_one(a, b => c)"),
        (f.Of("other view", "y"), "view(`other view`).y"),
        (f.Implies(f.Unless((A, f.Not(f.Or((B, C))))), X), "a => x unless b or c"),
        (f.Implies(f.Unless((A, f.Not(f.Implies(B, C)))), X), "a => x unless (b => c)"),
        (f.And((f.Implies(f.Unless((A, f.Not(B))), X), C)), "(a => x unless b) and c"),
        (f.Implies(A, f.Implies(f.Unless((B, f.Not(C))), X)), "a => (b => x unless c)"),
        (f.Implies(f.Else(), A), "else => a"),
        (
            f.Compare((f.Score((f.Points(0.5, A), f.Points(1, f.Or((B, C))))), X), ("<",)),
            "score(0.5*a, b or c) < x",
        ),
    ],
)  # fmt: skip
def test_texts(tree: f.Formula, text: str) -> None:
    assert to_text(tree) == str(tree) == text
    assert parse_formula(text) == tree


@pytest.mark.quick
@pytest.mark.parametrize(
    "text",
    [
        "[w=2] smoking: smoker => disease",
        "[p=0.1] `a name`: a",
        "[hard] a <=> b",
        "[learn] [w]".removesuffix(" [w]") + " x > 3",
        "[budget] mean(p.a, where=x == 'F') >= 0.8 * mean(p.a)",
        "promoter :- contact, conformation.",
        "minus_35 :- p-37=c, not p-36=t, (a or b => c).",
        "[w=-1.5] n: head-1 :- x > 3.",
        "a :- (b and c), x == y, `d e`='f g'.".replace("`d e`='f g'", "`d e` == 'f g'"),
        "a :- x == `b`.".replace("`b`", "b"),
        "[first=iris] x > 3 => a unless b",
        "[w=2, first=`two words`] n: else => a",
        "[hard, group=t, priority=-1.5] x > 3 => a",
        "[priority=3] a :- b.",
    ],
)
def test_rules_as_people_write_them_stay_as_they_are(text: str) -> None:
    (rule,) = parse(text)
    assert to_text(rule) == str(rule) == text
    assert rule == parse(to_text(rule))[0]


def test_many_rules_are_one_a_line() -> None:
    book = parse("a => b\n\n# c\n[w=2] c :- b.")
    assert to_text(book) == "a => b\n[w=2] c :- b."
    assert to_text(list(book)) == to_text(book)
    assert to_text(()) == ""


def test_values_have_a_text_too() -> None:
    total = f.Arithmetic("+", f.Call("mean", X), f.Negative(f.Number(1)))
    assert to_text(total) == str(total) == "mean(x) + -(1)"


@pytest.mark.parametrize(
    "tree",
    [
        f.And((A,)),
        f.Or(()),
        f.In(X, ()),
        f.Compare((X,), ()),
        f.Compare((X, Y), ("<", "<")),
        f.Compare((X, Y), ("=",)),
        f.Arithmetic("**", X, Y),
        f.Call("eval", X),
        f.Count("exactly_one", 2, (A,)),
        f.Count("at_most", None, (A,)),
        f.Count("some_of", None, (A,)),
        f.Trend("wobbling", X, Y),
        f.Unless((A, f.Not(B))),
        f.Score(()),
        f.Implies(f.Unless((A, B)), C),
        f.Not(f.Unless((A, f.Not(B)))),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_trees_that_no_text_says(tree: f.Tree) -> None:
    with pytest.raises(
        ValueError, match="no rule text stands for|two parts|a comparison is one of"
    ):
        to_text(tree)


def test_a_clause_must_define_a_name() -> None:
    with pytest.raises(ValueError, match="body => name, got a or b"):
        to_text(f.Rule(f.Or((A, B)), definition=True))
    with pytest.raises(ValueError, match="no rule text stands for"):
        to_text(f.Rule(f.Implies(f.Unless((A, f.Not(B))), C), definition=True))


def test_only_rules_and_trees_have_a_text() -> None:
    with pytest.raises(
        TypeError, match="what must be a rule, a sequence of rules, or a formula, got 3"
    ):
        to_text(3)  # type: ignore[arg-type]


def test_depth_has_a_limit_in_trees_built_in_python() -> None:
    tree: f.Formula = A
    for _ in range(10_000):
        tree = f.Not(tree)
    assert f.depth(tree) == 10_001
    with pytest.raises(RuleError, match="levels of nesting"):
        to_text(tree)
    with pytest.raises(RuleError, match="levels of nesting"):
        str(f.Rule(tree))


@pytest.fixture
def room_for_checks() -> Iterator[None]:
    """The checks of annotations take two frames more for each call."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(5000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.parametrize("left", [True, False])
def test_trees_as_deep_as_allowed(room_for_checks: None, left: bool) -> None:
    """Each level in parentheses, which is what takes the parser deepest."""
    tree: f.Formula = A
    for i in range(f.MAX_DEPTH - 1):
        kind = f.And if i % 2 else f.Or
        tree = kind((tree, B) if left else (B, tree))
    assert f.depth(tree) == f.MAX_DEPTH
    assert parse_formula(to_text(tree)) == tree
    with pytest.raises(RuleError, match="levels of nesting"):
        parse_formula(f"not ({to_text(tree)})")


def test_numbers() -> None:
    for value, text in [(3.0, "3"), (-0.0, "0"), (0.1, "0.1"), (1e16, "1e+16"), (1e-7, "1e-07")]:
        assert number(value) == text
