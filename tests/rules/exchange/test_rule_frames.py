"""Tables of imodels say as rules what they say there."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from distill_jax.rules.binding import RuleWarning
from distill_jax.rules.exchange import from_rule_frame
from distill_jax.rules.language import RuleError, label, parse


@pytest.mark.quick
def test_frames_of_imodels() -> None:
    frame = {
        "rule": ["age", "age > 60 and mean area <= 2", "age <= 30", "b > 1"],
        "type": ["linear", "rule", "rule", "rule"],
        "coef": [0.0, 0.5, 0.0, np.float64(-1.25)],
        "support": [1, 0.25, 0.5, 0.5],
        "importance": [0, 0.2, 0.0, 0.6],
    }
    want = parse("[w=0.5] age > 60 and `mean area` <= 2 => y\n[w=-1.25] b > 1 => y")
    assert from_rule_frame(frame, "y") == want
    pandas = pytest.importorskip("pandas")
    assert from_rule_frame(pandas.DataFrame(frame), "y") == want
    doubled = from_rule_frame(frame, "y", scale=2, feature_names=["age", "mean area", "b"])
    assert [rule.strength.number for rule in doubled] == [1.0, -2.5]
    with pytest.raises(ValueError, match="row 0 is a linear term of 'age'.*include_linear=False"):
        from_rule_frame(frame | {"coef": [0.1, 0.5, 0.0, 1.0]}, "y")
    with pytest.raises(ValueError, match="coef must be finite, got inf in row 1"):
        from_rule_frame(frame | {"coef": [0.0, np.inf, 0.0, 1.0]}, "y")
    for bad in ({"rule": ["a > 3"]}, [1], {"rule": ["a > 3"], "coef": ["x"]}, None):
        with pytest.raises(ValueError, match="frame must have the columns"):
            from_rule_frame(bad, "y")


def test_a_rule_list_is_a_group_of_rules_of_which_the_first_fires() -> None:
    frame = pandas.DataFrame(
        {
            "rule": ["age > 60.5", "mean bp <= 110", "else"],
            "prediction": [0.9, 1.0, 0.25],
            "depth": [0, 1, 2],
            "num_pts": [98.0, 8.0, np.nan],
        }
    )
    want = """[p=0.9, first=g] age > 60.5 => y
    [p=0.999, first=g] `mean bp` <= 110 => y
    [p=0.25, first=g] else => y"""
    without = frame.drop(columns="num_pts")
    how = {"prediction": "probability", "group": "g"}
    assert from_rule_frame(without, "y", **how) == parse(want)
    names = ["age", "mean bp"]
    assert from_rule_frame(without, "y", feature_names=names, **how) == parse(want)
    smoothed = [rule.strength.number for rule in from_rule_frame(frame, "y", **how)]
    np.testing.assert_allclose(smoothed, [89.2 / 100, 9 / 10, 0.25])
    with pytest.raises(ValueError, match="else must be the last row .* got it in row 0"):
        from_rule_frame(without.iloc[::-1], "y", **how)
    with pytest.raises(ValueError, match="prediction must say what the column 'prediction' holds"):
        from_rule_frame(without, "y")
    with pytest.raises(ValueError, match="must be a probability, got 1.5 in row 1"):
        from_rule_frame(without.assign(prediction=[0.5, 1.5, 0]), "y", **how)


def test_trees_and_sums_of_trees() -> None:
    frame = {"rule": ["a <= 1 and b > 2", "a > 1"], "prediction": [0.25, 0.75]}
    assert from_rule_frame(frame, "y", prediction="probability") == parse(
        "[p=0.25] a <= 1 and b > 2 => y\n[p=0.75] a > 1 => y"
    )
    one = {"rule": ["else"], "prediction": [0.25]}
    assert from_rule_frame(one, "y", prediction="probability") == parse("[p=0.25] y")
    several = frame | {"tree": [0, 1]}
    with pytest.raises(ValueError, match="the rules of 2 trees"):
        from_rule_frame(several, "y", prediction="probability")
    assert from_rule_frame(several, "y", prediction="log-odds", scale=4) == parse(
        "[w=1] a <= 1 and b > 2 => y\n[w=3] a > 1 => y"
    )
    boosted = {
        "rule": ["a <= 1", "a > 1", "else"],
        "prediction": [0.2, 0.8, 0.9],
        "tree": [0, 0, 1],
        "weight": [1.5, 1.5, 2.0],
    }
    with pytest.warns(RuleWarning, match=r"the rows \[2\] of frame are constants"):
        found = from_rule_frame(boosted, ~label("n"))
    assert found == parse("[w=1.5] a <= 1 => not not n\n[w=1.5] a > 1 => not n")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            {"rule": ["a > 1"], "prediction": [np.nan]},
            "must be finite, got nan in row 0",
        ),
        ({"rule": ["a > 1"], "prediction": ["x"]}, "frame must have the columns"),
        ({"rule": ["a > 1", "b > 1"], "prediction": [0.5]}, "must have one length"),
        ({"rule": ["a > 1"]}, "frame must have the columns"),
    ],
)
def test_tables_that_are_none(frame: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_rule_frame(frame, "y", prediction="probability")


def test_a_condition_that_is_none() -> None:
    with pytest.raises(RuleError, match=r"strings\[0\]"):
        from_rule_frame({"rule": ["a >"], "prediction": [0.5]}, "y", prediction="probability")
