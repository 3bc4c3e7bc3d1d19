"""Profiles: every instant counts once, every operation in its part."""

from __future__ import annotations

import pytest

from distill_jax.training.watching._profiles import Span, part_of, parts_of, shared


@pytest.mark.quick
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
