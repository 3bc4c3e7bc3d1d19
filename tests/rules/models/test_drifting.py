"""How far rules have moved: rows that can be printed."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from distill_jax import models, report
from distill_jax.rules import Column, Schema, drift, to_logistic_regression, to_network

SCHEMA = Schema(tuple(Column(name, "boolean") for name in "abc"), ("no", "yes"))
INPUTS = jnp.zeros((1, 3))


@pytest.mark.quick
def test_a_row_says_how_a_rule_moved() -> None:
    model = to_network("yes :- p, not b.   p :- a.   p :- b, c.", SCHEMA, noise=0.0)
    before, _ = model.init(jax.random.key(0), INPUTS)
    after = jax.tree.map(jnp.copy, before)
    rows = {unit.name: unit for unit in model.layout.units}
    unit, sources = rows["yes"], model.layout.sources[rows["yes"].layer]
    kernel = after[unit.layer]["kernel"]
    kernel = kernel.at[sources.index("p"), unit.column].add(1.5)
    kernel = kernel.at[sources.index("c"), unit.column].add(-0.5)
    after[unit.layer] = {"kernel": kernel, "bias": after[unit.layer]["bias"] + 0.25}

    found = {row["unit"]: row for row in drift(model, before, after, most=1)}
    assert list(found) == ["p/2", "p", "yes"]
    row = found["yes"]
    assert row["rule"] == "yes :- p, not b."
    assert (row["bias_before"], row["bias_after"]) == (-2.0, -1.75)
    assert row["biggest"] == "p 4.00 → 5.50" and row["new"] == "c 0.00 → -0.50"
    assert row["moved"] == pytest.approx((1.5**2 / 3) ** 0.5)  # p, b, unknown: b
    assert {"atom": "b", "before": -4.0, "after": -4.0} in row["weights"]
    assert found["p/2"]["moved"] == 0.0

    with io.StringIO() as file:
        report.show(list(found.values()), console=Console(file=file, width=200))
        assert "p 4.00 → 5.50" in file.getvalue()


def test_refuses_what_does_not_belong_together() -> None:
    model = to_logistic_regression("[w=2] a => yes", SCHEMA)
    params, _ = model.init(jax.random.key(0), INPUTS)
    with pytest.raises(TypeError, match="from to_network or to_logistic_regression"):
        drift(models.mlp([2], 2), params, params)
    with pytest.raises(ValueError, match=r"after must be params of the model, with the layers \["):
        drift(model, params, {"other": params["linear"]})
    many = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    with pytest.raises(ValueError, match="take one run"):
        drift(model, params, many)
