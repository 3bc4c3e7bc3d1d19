"""The breakdown of a step: every instant once, every operation in its part; traces of calls."""

from __future__ import annotations

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax import models, report, teachers
from distill_jax.losses import cross_entropy, soft_targets
from distill_jax.objectives import term, weighted_sum
from distill_jax.training import Recipe, breakdown, profiling
from distill_jax.training.profiling import Span, part_of, parts_of, shared, tracing

RNG = np.random.default_rng(0)
DATA = {
    "inputs": RNG.normal(size=(128, 16)).astype(np.float32),
    "labels": RNG.integers(0, 3, 128).astype(np.int32),
}
STUDENT = models.mlp([8], 3)
ADAM = optax.adam(1e-2)
OBJECTIVE = weighted_sum(
    term("labels", 0.5, cross_entropy), term("teacher", 0.5, soft_targets, temperature=2.0)
)
LABELS = weighted_sum(term("labels", 1.0, cross_entropy))
KEY = jax.random.key(0)


def taught(width=600):
    model = models.mlp([width, width], 3)
    return {"teacher": teachers.teacher(model, *model.init(KEY, DATA["inputs"][:1]))}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("jit(step)/teacher/dot_general", "teacher"),
        ("jit(step)/jvp(student)/dot_general", "student"),
        ("jit(step)/transpose(jvp(student))/dot_general", "student"),
        ("jit(step)/while/body/closed_call/vmap(transpose(jvp(loss)))/mul", "loss"),
        ("jit(step)/transpose(jvp(student))/loss/kernel/dot_general", "student"),
        ("jit(step)/transpose(jvp(checkpoint))/student/rematted_computation/add", "student"),
        ("update", "update"),
        ("jit(update)/jit(loss)/add", None),
        ("jit(step)/my_teacher/updates/add", None),
        ("", None),
    ],
)
def test_the_outermost_scope_is_the_part(name, part):
    assert part_of(name) == part


def test_parts_of_a_programs_operations():
    program = """\
HloModule jit_step, entry_computation_layout={()->f32[]}

%fused_computation (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %tanh.1 = f32[4]{0} tanh(%p), metadata={op_name="jit(step)/teacher/tanh"}
  %exp.1 = f32[4]{0} exponential(%tanh.1), metadata={op_name="jit(step)/teacher/exp"}
  ROOT %add.1 = f32[4]{0} add(%exp.1, %p), metadata={op_name="jit(step)/jvp(loss)/add"}
}

%body (c: (f32[4])) -> (f32[4]) {
  ROOT %neg.7 = f32[4]{0} negate(%c), metadata={op_name="jit(step)/while/body/update/neg"}
}

ENTRY %main (x: f32[4]) -> f32[] {
  %x = f32[4]{0} parameter(0), metadata={op_name="batch"}
  %copy.1 = f32[4]{0} copy(%x)
  %fusion.2 = f32[4]{0} fusion(%copy.1), kind=kLoop, calls=%fused_computation
  %dot.3 = f32[4]{0} dot(%x, %fusion.2), metadata={op_name="jit(step)/transpose(jvp(student))/dot"}
  %while.4 = (f32[4]) while(%dot.3), condition=%cond, body=%body, metadata={op_name="loss"}
  ROOT %reduce-window.5 = f32[] reduce-window(/*index=0*/%copy.1, %dot.3)
}
"""
    found = parts_of(program)
    assert found["fusion.2"] == "teacher"  # what most of it is
    assert found["dot.3"] == found["reduce-window.5"] == "student"
    assert found["neg.7"] == "update" and found["copy.1"] is None
    assert "while.4" not in found


def test_every_instant_counts_once():
    spans = [
        Span(0, 10, "a", "teacher"),
        Span(4, 10, "b", "student"),  # shares [4, 10]
        Span(12, 20, "a", "update"),
        Span(14, 16, "a", "loss"),  # nested: stands for it
        Span(18, 22, "b", None),  # an operation without a part takes its share
        Span(30, 30, "a", "loss"),
    ]
    assert shared(spans) == {"teacher": 7, "student": 3, "update": 5, "loss": 2}
    assert shared(reversed(spans)) == shared(spans)
    assert shared([]) == {}


def test_every_product_of_a_step_has_a_part():
    recipe = Recipe(STUDENT, ADAM, microbatches=2)
    arguments = DATA, OBJECTIVE, taught()
    state = jax.eval_shape(recipe.init, OBJECTIVE, DATA, taught(), KEY)
    program = jax.jit(recipe.step).lower(state, *arguments).as_text("hlo", debug_info=True)
    products = re.findall(r' dot\(.*op_name="([^"]*)"', program)
    parts = [part_of(name) for name in products]
    assert {"teacher", "student"} == set(parts)
    assert any("transpose(" in name for name in products)
    names = re.findall(r'op_name="([^"]*)"', program)
    assert set(map(part_of, names)) == {"teacher", "student", "loss", "update", None}


def test_a_large_teacher_takes_most_of_the_step():
    found = breakdown(
        STUDENT, OBJECTIVE, ADAM, DATA, key=KEY, teachers=taught(), batch_size=64, average_decay=0.9
    )
    assert found.method == "profile" and tuple(found.seconds) == profiling.PARTS
    computed = {n: x for n, x in found.seconds.items() if n not in ("input", "other")}
    assert min(computed.values()) > 0 and min(found.seconds.values()) >= 0
    assert max(computed, key=lambda name: computed[name]) == "teacher"
    *parts, step = found.rows()
    assert step["part"] == "step" and step["share"] == 1
    np.testing.assert_allclose(sum(row["ms"] for row in parts), step["ms"])
    assert report.table(found.rows()).row_count == 7


def test_without_operations_in_the_profile_parts_are_timed_alone(monkeypatch):
    empty = types.SimpleNamespace(planes=[])
    monkeypatch.setattr(
        jax.profiler, "ProfileData", types.SimpleNamespace(from_file=lambda path: empty)
    )
    batches = ({name: x[i : i + 64] for name, x in DATA.items()} for i in (0, 64))
    found = breakdown(STUDENT, OBJECTIVE, ADAM, batches, key=KEY, teachers=taught())
    assert found.method == "parts" and tuple(found.seconds) == profiling.PARTS
    assert found.seconds["teacher"] > 0 and min(found.seconds.values()) >= 0
    assert max(found.seconds["student"], found.seconds["loss"]) > 0


def test_errors_come_before_the_step(library_errors):
    with pytest.raises(ValueError, match="batch_size must be given"):
        breakdown(STUDENT, OBJECTIVE, ADAM, DATA, key=KEY)
    with pytest.raises(ValueError, match="batch_size is for arrays in memory"):
        breakdown(STUDENT, OBJECTIVE, ADAM, [DATA], key=KEY, batch_size=3)
    with pytest.raises(ValueError, match="needs a teacher"):
        breakdown(STUDENT, OBJECTIVE, ADAM, [DATA], key=KEY)
    with pytest.raises(ValueError, match="microbatches must divide the 128 rows"):
        breakdown(STUDENT, LABELS, ADAM, [DATA], key=KEY, microbatches=3)


@jax.jit
def double(x):
    return 2 * x


def steps_in(folder):
    """The numbers of the annotated steps in a trace."""
    (file,) = folder.rglob("*.xplane.pb")
    found = []
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            found += [dict(e.stats).get("step_num") for e in line.events if e.name == "train"]
    return sorted(found)


def test_a_trace_holds_a_few_calls_after_the_first(tmp_path):
    x = jnp.ones(3)
    with tracing(tmp_path, skip=1, calls=2) as tracer:
        for call in range(5):
            x = tracer.call(16 * call, double, x)
            assert tracer.active == (call == 1)
    assert x[0] == 32 and steps_in(tmp_path) == [16, 32]


def test_a_run_that_ends_or_fails_writes_what_it_has(tmp_path):
    with pytest.raises(KeyboardInterrupt), tracing(tmp_path) as tracer:
        for call in range(2):
            tracer.call(call, double, jnp.ones(3))
        raise KeyboardInterrupt
    assert steps_in(tmp_path) == [1]
    with pytest.warns(RuntimeWarning, match="no trace was written.*before call 2"):
        with tracing(tmp_path / "other") as tracer:
            tracer.call(0, double, jnp.ones(3))
    with tracing(None) as tracer:
        assert tracer.call(0, double, jnp.ones(3)).shape == (3,)


def test_a_second_profiler_does_not_stop_training(tmp_path):
    with jax.profiler.trace(str(tmp_path)):
        with pytest.warns(RuntimeWarning, match="no trace could be written.*goes on") as met:
            with tracing(tmp_path / "mine", skip=0) as tracer:
                for call in range(3):
                    assert tracer.call(call, double, jnp.ones(3))[0] == 2
    assert len(met) == 1
