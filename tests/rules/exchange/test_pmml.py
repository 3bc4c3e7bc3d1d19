"""Rule sets of PMML predict as rules what PMML says that they predict."""

from __future__ import annotations

import pathlib
import warnings

import numpy as np
import pytest

from distill_jax.rules.binding import Column, RuleWarning, Schema, bind, encode
from distill_jax.rules.exchange import _xml, from_pmml
from distill_jax.rules.language import RuleError, parse
from distill_jax.rules.logic import energies, fires

FIELDS = """<DataDictionary>
  <DataField name="age" optype="continuous" dataType="integer"/>
  <DataField name="K level" optype="continuous" dataType="double"/>
  <DataField name="BP" optype="categorical" dataType="string"><Value value="HIGH"/></DataField>
  <DataField name="smoker" optype="categorical" dataType="boolean"/>
  <DataField name="at" optype="continuous" dataType="date"/>
  <DataField name="clock" optype="continuous" dataType="timeSeconds"/>
  <DataField name="drug" optype="categorical" dataType="string"/>
</DataDictionary>
"""


def document(rules: str, method: str = "firstHit", attributes: str = "", more: str = "") -> str:
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<PMML version="4.4" xmlns="http://www.dmg.org/PMML-4_4"><Header/>{FIELDS}
<RuleSetModel modelName="m" functionName="classification"><MiningSchema>{more}</MiningSchema>
<RuleSet {attributes}><RuleSelectionMethod criterion="{method}"/>{rules}</RuleSet>
</RuleSetModel></PMML>"""


def rule(predicate: str, score: str = "a", attributes: str = "") -> str:
    return f'<SimpleRule score="{score}" {attributes}>{predicate}</SimpleRule>'


def simple(field: str, operator: str, value: str) -> str:
    return f'<SimplePredicate field="{field}" operator="{operator}" value="{value}"/>'


def compound(operator: str, *parts: str) -> str:
    inner = "".join(parts)
    return f'<CompoundPredicate booleanOperator="{operator}">{inner}</CompoundPredicate>'


def array(field: str, operator: str, values: str) -> str:
    return (
        f'<SimpleSetPredicate field="{field}" booleanOperator="{operator}">'
        f'<Array type="string">{values}</Array></SimpleSetPredicate>'
    )


OLD, YOUNG = simple("age", "greaterThan", "60"), simple("age", "lessOrEqual", "30")
HIGH, SMOKER = simple("BP", "equal", "HIGH"), simple("smoker", "equal", "true")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("predicate", "want"),
    [
        (OLD, "age > 60"),
        (simple("K level", "lessThan", "0.0458"), "`K level` < 0.0458"),
        (simple("BP", "notEqual", "1"), "BP != '1'"),
        (SMOKER, "smoker"),
        (simple("smoker", "notEqual", "true"), "not smoker"),
        (simple("at", "greaterOrEqual", "2024-01-31"), "at >= date '2024-01-31'"),
        ('<SimplePredicate field="age" operator="isMissing"/>', "age is missing"),
        ('<SimplePredicate field="age" operator="isNotMissing"/>', "age is not missing"),
        (compound("and", OLD, HIGH), "age > 60 and BP == 'HIGH'"),
        (compound("and", OLD, compound("or", HIGH, SMOKER)),
         "age > 60 and (BP == 'HIGH' or smoker)"),
        (compound("or", compound("or", OLD, YOUNG), HIGH), "age > 60 or age <= 30 or BP == 'HIGH'"),
        (compound("xor", OLD, SMOKER), "not (age > 60 <=> smoker)"),
        (compound("xor", OLD, "<True/>"), "not age > 60"),
        (compound("xor", OLD, SMOKER, "<True/>"), "(age > 60 <=> smoker)"),
        (compound("and", OLD, "<True/>"), "age > 60"),
        (compound("or", OLD, "<False/>"), "age > 60"),
        (array("BP", "isIn", r'HIGH "very high" "a\"b" &lt;3'),
         "BP in ['HIGH', 'very high', 'a\"b', '<3']"),
        (array("age", "isNotIn", "3 4"), "age not in [3, 4]"),
        (array("age", "isNotIn", "3"), "age != 3"),
    ],
)  # fmt: skip
def test_predicates(predicate: str, want: str) -> None:
    (found,) = from_pmml(document(rule(predicate)))
    assert str(found) == f"[first=ruleset] {want} => a"


SMOKERS = rule(SMOKER, "b", 'weight="0.5"')
ALL = rule("<True/>", "c", 'weight="0.45" recordCount="8" confidence="1"')
RULES = f"""{rule(OLD, "a", 'id="r1" confidence="0.8" weight="0.2"')}
<CompoundRule>{HIGH}{SMOKERS}<CompoundRule>{YOUNG}{ALL}</CompoundRule></CompoundRule>
{rule(compound("or", YOUNG, SMOKER), "a", 'weight="0.4"')}"""


def test_selection_methods() -> None:
    end = 'defaultScore="d" defaultConfidence="0.25"'
    assert from_pmml(document(RULES, "firstHit", end), group="g") == parse(
        """[p=0.8, first=g] r1: age > 60 => a
        [first=g] BP == 'HIGH' and smoker => b
        [p=0.9, first=g] BP == 'HIGH' and age <= 30 => c
        [first=g] age <= 30 or smoker => a
        [p=0.25, first=g] else => d"""
    )
    best = [rule.formula for rule in from_pmml(document(RULES, "weightedMax"))]
    assert [str(x.head) for x in best] == ["b", "c", "a", "a"]
    assert from_pmml(document(RULES, "weightedSum"), scale=2) == parse(
        """[w=0.4] r1: age > 60 => a
        [w=1] BP == 'HIGH' and smoker => b
        [w=0.9] BP == 'HIGH' and age <= 30 => c
        [w=0.8] age <= 30 or smoker => a"""
    )
    grouped = from_pmml(document(RULES, "weightedSum", end))
    assert [rule.priority for rule in grouped] == [1, 1, 1, 1, 0]
    both = document(RULES).replace("<SimpleRule", '<RuleSelectionMethod criterion="weightedMax"/>'
                                   "<SimpleRule", 1)  # fmt: skip
    assert from_pmml(both, method="weightedMax")[0].formula == best[0]
    with pytest.raises(ValueError, match="method must be one of firstHit, weightedMax, got 'weigh"):
        from_pmml(both, method="weightedSum")


@pytest.mark.parametrize("method", ["firstHit", "weightedSum", "weightedMax"])
def test_predictions_are_those_of_pmml(method: str) -> None:
    rules = from_pmml(document(RULES, method, 'defaultScore="d"'))
    schema = Schema(
        (Column("age"), Column("BP", categories=("LOW", "HIGH")), Column("smoker", "boolean")),
        tuple("abcd"),
    )
    book = bind(rules, schema)
    grid = [(age, bp, s) for age in (20, 45, 70) for bp in ("LOW", "HIGH") for s in (False, True)]
    table = dict(zip(("age", "BP", "smoker"), map(list, zip(*grid, strict=True)), strict=True))
    columns = encode(book, table)
    hit = np.asarray(fires(book, columns))
    for i, (age, bp, smokes) in enumerate(grid):
        fired = [(0.2, "a")] * (age > 60) + [(0.5, "b")] * (bp == "HIGH" and smokes)
        fired += [(0.45, "c")] * (bp == "HIGH" and age <= 30)
        fired += [(0.4, "a")] * (age <= 30 or smokes)
        if method == "weightedSum":
            sums = [sum(w for w, x in fired if x == name) for name in "abcd"]
            want = "abcd"[int(np.argmax(sums))] if fired else "d"
            assert "abcd"[int(np.asarray(energies(book, columns))[i].argmin())] == want
            continue
        want = (fired[0] if method == "firstHit" else max(fired))[1] if fired else "d"
        (one,) = np.flatnonzero(hit[i])
        assert str(rules[one].formula.head) == want


def test_rules_that_always_or_never_fire() -> None:
    with pytest.warns(RuleWarning, match="it never fires, and was left out"):
        found = from_pmml(document(rule("<False/>") + rule(OLD) + rule("<True/>", "b", 'id="x"')))
    assert found == parse("[first=ruleset] age > 60 => a\n[first=ruleset] x: else => b")
    with pytest.warns(RuleWarning, match="a rule before this one always fires"):
        assert from_pmml(document(rule("<True/>", "b") + rule(OLD))) == parse("b")
    always = document(rule(OLD) + rule("<True/>", "b"), "weightedSum", 'defaultScore="d"')
    assert from_pmml(always) == parse("[w=1] age > 60 => a\n[w=1] b")
    assert from_pmml(document("", "weightedSum", 'defaultScore="d"')) == parse("d")


def test_what_the_model_does_besides_is_said() -> None:
    more = '<MiningField name="age" missingValueReplacement="40"/><MiningField name="BP"/>'
    with pytest.warns(RuleWarning, match="values of 'age' are replaced where they are missing"):
        from_pmml(document(rule(OLD), more=more))
    text = document(rule(simple("ratio", "lessThan", "3")))
    derived = '<DerivedField name="ratio" optype="continuous" dataType="double"/>'
    text = text.replace(
        "<RuleSet ", f"<LocalTransformations>{derived}</LocalTransformations><RuleSet "
    )
    with pytest.warns(RuleWarning, match=r"the fields \['ratio'\] are derived"):
        assert str(from_pmml(text)[0].formula) == "ratio < 3 => a"
    whole = document(rule(HIGH), more=more)  # it asks nothing of age
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_pmml(whole)
    nested = whole.replace("<RuleSetModel", "<MiningModel><RuleSetModel").replace(
        "</RuleSetModel>", "</RuleSetModel></MiningModel>"
    )
    with pytest.warns(RuleWarning, match="a part of another model"):
        from_pmml(nested)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            document(rule(compound("surrogate", OLD, HIGH))),
            "<CompoundPredicate>: surrogate",
        ),
        (
            document(rule(simple("age", "equal", "old"))),
            "of type integer, got 'old'",
        ),
        (document(rule(simple("at", "equal", "2024-02-30"))), "of type date, got '2024-02-30'"),
        (document(rule(simple("clock", "equal", "3"))), "the type 'timeSeconds'"),
        (document(rule(simple("smoker", "lessThan", "1"))), "a boolean is equal to true or false"),
        (
            document(rule(simple("ag", "equal", "3"))),
            "'ag' is not in the data dictionary",
        ),
        (document(rule(simple("age", "like", "3"))), "operator must be one of equal, notEqual"),
        (document(rule(OLD, "a", 'confidence="2"')), "a confidence lies between 0 and 1"),
        (document(rule(OLD, "a", 'weight="x"'), "weightedSum"), "weight must be a number, got 'x'"),
        (document(rule(OLD + HIGH)), "it must have one predicate, got 2"),
        (document(rule(array("BP", "isIn", " "))), "the set has no values"),
        (document(""), "it has no rules that may fire"),
        (document(rule(OLD)).replace('"classification"', '"regression"'), "for classification"),
        (document(rule(OLD), "best"), "the criterion must be one of firstHit"),
        ("<PMML><TreeModel/></PMML>", "no <RuleSetModel>, but TreeModel"),
        ("<html/>", "expected <PMML>"),
        ("<PMML><a></PMML>", "line 1, column 12: not valid XML: mismatched tag"),
        (b"\xff<PMML/>", "not valid XML"),
        (b'<?xml version="1.0" encoding="nonsense"?><PMML/>', "XML"),
    ],
)
def test_files_that_no_rule_can_say(text: str | bytes, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        from_pmml(text)


def test_hostile_files(monkeypatch: pytest.MonkeyPatch) -> None:
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><PMML>&b;</PMML>'
    outside = '<!DOCTYPE x SYSTEM "file:///etc/passwd"><PMML/>'
    for text in (laughs, outside):
        with pytest.raises(RuleError, match="line 1: a document type or entity is declared"):
            from_pmml(text)
    with pytest.raises(RuleError, match="or 200 within another"):
        from_pmml("<a>" * 100_000)
    monkeypatch.setattr(_xml, "MOST_ELEMENTS", 5)
    with pytest.raises(RuleError, match="more than 5 elements"):
        from_pmml(document(rule(OLD)))
    monkeypatch.setattr(_xml, "MOST_BYTES", 100)
    with pytest.raises(RuleError, match="at most 100 are read"):
        from_pmml(document(rule(OLD)))


def test_files_and_several_models(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.pmml"
    text = document(rule(simple("BP", "equal", "höher")))
    path.write_bytes(text.encode("latin-1"))  # as it declares
    assert from_pmml(path) == from_pmml(text) == from_pmml(path.read_bytes())
    assert str(from_pmml(str(path))[0].formula) == "BP == 'höher' => a"
    path.write_text("<PMML/>")
    with pytest.raises(RuleError, match="m.pmml, line 1, <PMML>: it has no <RuleSetModel>"):
        from_pmml(path)
    i, j = text.index("<RuleSetModel"), text.index("</PMML>")
    two = text[:j] + text[i:j].replace('"m"', '"n"').replace("höher", "x") + "</PMML>"
    with pytest.raises(ValueError, match=r"model must name one of the rule sets \['m', 'n'\]"):
        from_pmml(two)
    assert str(from_pmml(two, model="n")[0].formula) == "BP == 'x' => a"
