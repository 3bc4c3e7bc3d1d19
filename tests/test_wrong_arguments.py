"""Every argument of every public function, given wrongly: the error says which one, and what came.

A function joins by a line in ``CASES``. The row of each argument is the table's own: nine values,
each of which is wrong for most arguments, in the place of a good one. A value that a function
accepts is no error; what it must not do is to fail with words that do not help.
"""

from __future__ import annotations

import importlib
import inspect
import io
import pathlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import rich.console
from flax import nnx

import distill_jax
from distill_jax import (
    evaluation,
    losses,
    models,
    objectives,
    rules,
    teachers,
    training,
)
from distill_jax.types import Outputs

pytestmark = pytest.mark.filterwarnings("ignore")


class Odd:
    """Something that no function has use for."""

    def __repr__(self) -> str:
        return "<odd>"


WRONG = {
    "an object": Odd(),
    "None": None,
    "a text": "nonsense",
    "a negative number": -1,
    "a number": 2.5,
    "not a number": float("nan"),
    "an empty list": [],
    "a dictionary": {"odd": 1},
    "an array": np.zeros((2, 2, 2)),
}

QUOTED = {"a text": "nonsense", "a dictionary": "odd"}
"""What an error may quote in place of the argument's name: a rule's text, a column, a file."""


class Parts(NamedTuple):
    """Good arguments that several functions take."""

    key: Any
    inputs: Any
    data: dict[str, Any]
    logits: Any
    taught: Any
    model: Any
    params: Any
    teacher: Any
    schema: Any
    book: Any
    hard: Any
    rows: list[dict[str, Any]]
    frame: Any
    folder: pathlib.Path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    key = jax.random.key(0)
    inputs = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    model = models.logistic_regression(3, classes=("u", "v", "w"))
    params, state = model.init(key, inputs)
    schema = rules.Schema(tuple(rules.Column(name) for name in "abcd"), ("u", "v", "w"))
    folder = tmp_path_factory.mktemp("files")
    training.sweep(_trial, {"a": [1.0]}, key=key, progress=False, file=folder / "sweep.jsonl")
    rules.write_rules(rules.parse(TEXT), folder / "rules.csv")
    return Parts(
        key=key,
        inputs=inputs,
        data={"inputs": inputs, "labels": np.arange(8) % 3},
        logits=jnp.zeros((8, 3)),
        taught=jnp.asarray(inputs[:, :3]),
        model=model,
        params=params,
        teacher=teachers.teacher(model, params, state),
        schema=schema,
        book=rules.bind(TEXT, schema),
        hard=rules.bind("[hard] a > 0 => u", schema),
        rows=[{"x": 1.0, "y": 2.0, "g": "a"}, {"x": 2.0, "y": 3.0, "g": "b"}],
        frame=pd.DataFrame(inputs, columns=list("abcd")),
        folder=folder,
    )


TEXT = "[w=2] a > 0 => u\n[w=1] b > 0 => v"


def _trial(key: Any, a: Any) -> dict[str, Any]:
    return {"x": a * 1.0}


def _loop(parts: Parts) -> dict[str, Any]:
    objective = objectives.weighted_sum(objectives.term("labels", 1.0, losses.cross_entropy))
    return {
        "model": parts.model,
        "objective": objective,
        "optimizer": optax.sgd(0.1),
        "data": parts.data,
        "key": parts.key,
        "batch_size": 4,
    }


def _cost(parts: Parts) -> dict[str, Any]:
    return evaluation.cost(parts.model, parts.params, {}, parts.inputs, repeats=1)


def _losses() -> dict[str, Callable[[Parts], dict[str, Any]]]:
    def given(name: str, parts: Parts) -> dict[str, Any]:
        function = getattr(losses, name)
        many = function is losses.binary_cross_entropy
        known = {
            "student_logits": parts.logits,
            "teacher_logits": parts.taught,
            "labels": np.zeros((8, 3), bool) if many else parts.data["labels"],
            "targets": jax.nn.softmax(parts.taught),
        }
        return {n: known[n] for n in inspect.signature(function).parameters if n in known}

    return {f"losses.{name}": lambda p, name=name: given(name, p) for name in losses.__all__}


CASES: dict[str, Callable[[Parts], dict[str, Any]]] = {
    **_losses(),
    "logits.two_class": lambda p: {"logits": p.logits},
    "logits.total": lambda p: {
        "loss": losses.forward_kl,
        "student_logits": p.logits,
        "against": p.taught,
    },
    "models.cast": lambda p: {"model": p.model, "dtype": jnp.bfloat16},
    "models.convnet": lambda p: {"channels": (4,), "num_classes": 3},
    "models.from_function": lambda p: {"init": _init, "apply": lambda params, x: x @ params},
    "models.from_linen": lambda p: {"module": nn.Dense(3)},
    "models.from_nnx": lambda p: {"make": lambda rngs: nnx.Linear(4, 3, rngs=rngs)},
    "models.logistic_regression": lambda p: {"num_classes": 3},
    "models.mlp": lambda p: {"sizes": (4,), "num_classes": 3},
    "models.remat": lambda p: {"model": p.model},
    "models.resnet": lambda p: {"depth": 8, "num_classes": 3},
    "objectives.term": lambda p: {"name": "a", "weight": 1.0, "loss": losses.cross_entropy},
    "optimizers.max_norm": lambda p: {"limit": 1.0},
    "optimizers.pull_to_start": lambda p: {"strength": 0.1},
    "training.best": lambda p: {"rows": [{"x": 1.0}], "by": "x", "better": "higher"},
    "training.run": lambda p: {**_loop(p), "steps": 2},
    "training.fit": lambda p: {**_loop(p), "steps": 2},
    "training.breakdown": _loop,
    "training.data_parallel": lambda p: {},
    "training.fsdp": lambda p: {},
    "training.integers": lambda p: {"low": 1, "high": 3},
    "training.log_uniform": lambda p: {"low": 0.1, "high": 1.0},
    "training.uniform": lambda p: {"low": 0.1, "high": 1.0},
    "training.sampled": lambda p: {"key": p.key, "n": 2, "a": training.uniform(0.0, 1.0)},
    "training.json_lines": lambda p: {"path": p.folder / "log.jsonl"},
    "training.tensorboard": lambda p: {"folder": p.folder / "board"},
    "training.Checkpoints": lambda p: {"folder": p.folder / "checkpoints"},
    "training.read_sweep": lambda p: {"file": p.folder / "sweep.jsonl"},
    "training.shard_by_name": lambda p: {"specs": {}},
    "training.shard_by_size": lambda p: {"axis": "data"},
    "training.summary": lambda p: {"rows": [{"seed": 0, "x": 1.0}]},
    "training.sweep": lambda p: {
        "trial": _trial,
        "grid": {"a": [1.0, 2.0]},
        "key": p.key,
        "progress": False,
    },
    "teachers.augmented": lambda p: {"teacher": p.teacher, "augment": [lambda x: x]},
    "teachers.cast": lambda p: {"teacher": p.teacher},
    "teachers.ensemble": lambda p: {"teachers": [p.teacher, p.teacher]},
    "teachers.from_function": lambda p: {
        "predict": lambda params, inputs: inputs @ params,
        "params": jnp.zeros((4, 3)),
    },
    "teachers.monte_carlo": lambda p: {"model": p.model, "params": p.params, "state": {}},
    "teachers.precompute": lambda p: {"teacher": p.teacher, "inputs": p.inputs},
    "teachers.quantize": lambda p: {"teacher": p.teacher},
    "teachers.reorder": lambda p: {"teacher": p.teacher, "classes": ("w", "v", "u")},
    "teachers.start_average": lambda p: {"params": p.params},
    "teachers.teacher": lambda p: {"model": p.model, "params": p.params, "state": {}},
    "teachers.update_average": lambda p: {
        "average": teachers.start_average(p.params),
        "params": p.params,
        "decay": 0.9,
    },
    "data.batch_indices": lambda p: {"key": p.key, "n": 8, "batch_size": 4, "steps": 2},
    "data.batches": lambda p: {"data": p.data, "key": p.key, "batch_size": 4},
    "data.check": lambda p: {"data": p.data},
    "data.padded": lambda p: {"data": [p.data]},
    "data.padded_batches": lambda p: {"data": p.data, "batch_size": 4},
    "data.positions": lambda p: {"data": [p.data]},
    "data.split": lambda p: {"data": p.data, "parts": [4, 4], "key": p.key},
    "data.take": lambda p: {"data": p.data, "index": np.array([0, 1])},
    "evaluation.cost": lambda p: {
        "model": p.model,
        "params": p.params,
        "state": {},
        "inputs": p.inputs,
        "repeats": 1,
    },
    "evaluation.compression": lambda p: {"big": _cost(p), "small": _cost(p)},
    "evaluation.evaluate": lambda p: {
        "model": p.model,
        "params": p.params,
        "state": {},
        "data": p.data,
    },
    "evaluation.evaluate_many": lambda p: {
        "model": p.model,
        "params": jax.tree.map(lambda x: x[None], p.params),
        "state": {},
        "data": p.data,
    },
    "evaluation.sums": lambda p: {"outputs": Outputs(p.logits), "batch": p.data},
    "report.bars": lambda p: {"rows": p.rows, "x": "g", "y": "y"},
    "report.curves": lambda p: {"series": {"a": ([1, 2], [3, 4])}},
    "report.heat_map": lambda p: {"rows": p.rows, "x": "x", "y": "g", "value": "y"},
    "report.interval95": lambda p: {"values": [1.0, 2.0]},
    "report.mean_std": lambda p: {"values": [1.0, 2.0]},
    "report.save_json": lambda p: {"path": p.folder / "x.json", "payload": {"a": 1}},
    "report.series": lambda p: {
        "rows": [{"g": "a", "y": np.array([1.0, 2.0])}],
        "y": "y",
        "group": "g",
    },
    "report.show": lambda p: {
        "rows": p.rows,
        "console": rich.console.Console(file=io.StringIO()),
    },
    "report.table": lambda p: {"rows": p.rows},
    "rules.bind": lambda p: {"rules": TEXT, "schema": p.schema},
    "rules.check": lambda p: {"book": p.book, "table": p.inputs},
    "rules.col": lambda p: {"name": "a"},
    "rules.conflicts": lambda p: {"book": p.book},
    "rules.corrected": lambda p: {"teacher": p.teacher, "book": p.book},
    "rules.dual_ascent": lambda p: {
        "name": "x",
        "weight": 1.0,
        "book": p.book,
        "budget": 0.1,
        "step_size": 0.1,
    },
    "rules.encode": lambda p: {"book": p.book, "table": p.frame},
    "rules.encode_columns": lambda p: {"schema": p.schema, "table": p.frame},
    "rules.encourage": lambda p: {"name": "x", "weight": 1.0, "book": p.book},
    "rules.energies": lambda p: {"book": p.book, "columns": p.inputs},
    "rules.enforce": lambda p: {"model": p.model, "book": p.hard},
    "rules.explain": lambda p: {
        "book": p.book,
        "example": dict.fromkeys("abcd", 1.0),
        "logits": p.logits[0],
    },
    "rules.fires": lambda p: {"book": p.book, "columns": p.inputs},
    "rules.forbidden": lambda p: {"book": p.hard, "columns": p.inputs},
    "rules.from_rule_strings": lambda p: {"strings": ["a > 0.5"], "then": "u"},
    "rules.from_table": lambda p: {"rows": [{"rule": "a > 0 => u"}]},
    "rules.imitation": lambda p: {"steps_per_epoch": 10.0},
    "rules.implies": lambda p: {"body": rules.col("a") > 0, "head": rules.label("u")},
    "rules.infer_schema": lambda p: {"table": p.frame, "classes": ("u", "v", "w")},
    "rules.label": lambda p: {"name": "u"},
    "rules.log_truth": lambda p: {"book": p.book, "columns": p.inputs, "logits": p.taught},
    "rules.parse": lambda p: {"text": TEXT},
    "rules.parse_formula": lambda p: {"text": "a > 0"},
    "rules.penalty": lambda p: {
        "student_logits": p.logits,
        "columns": p.inputs,
        "views": {},
        "rules": p.book,
    },
    "rules.posterior_kl": lambda p: {
        "student_logits": p.logits,
        "columns": p.inputs,
        "views": {},
        "rules": p.book,
    },
    "rules.project": lambda p: {"book": p.book, "columns": p.inputs, "logits": p.taught},
    "rules.read_rules": lambda p: {"path": p.folder / "rules.csv"},
    "rules.rule": lambda p: {"what": rules.implies(rules.col("a") > 0, rules.label("u"))},
    "rules.rule_teacher": lambda p: {"book": p.book},
    "rules.teach": lambda p: {"name": "x", "weight": 1.0, "book": p.book},
    "rules.to_logistic_regression": lambda p: {"rules": p.book},
    "rules.to_network": lambda p: {"theory": "u :- a > 0.\nv :- b > 0.", "schema": p.schema},
    "rules.to_table": lambda p: {"rules": rules.parse(TEXT)},
    "rules.to_text": lambda p: {"what": rules.parse(TEXT)},
    "rules.truth": lambda p: {
        "book": p.book,
        "columns": p.inputs,
        "probabilities": jax.nn.softmax(p.taught),
    },
    "rules.violation": lambda p: {
        "book": p.book,
        "columns": p.inputs,
        "probabilities": jax.nn.softmax(p.taught),
    },
    "rules.write_rules": lambda p: {
        "rules": rules.parse(TEXT),
        "path": p.folder / "written.csv",
    },
}


def _init(key: Any, inputs: Any) -> Any:
    del key, inputs
    return jnp.zeros((4, 3))


ELSEWHERE = {
    "data": {"download", "folder", "mnist", "prefetch"},  # what they take is on a disk or a network
    "logits": {"as_logits", "rows", "vary_alike"},  # not exported
    "objectives": {"weighted_sum"},  # takes terms only
    "report": {"result_file", "save_figure", "show_check", "show_explanation"},
    "rules": {
        # Each takes formulas, or things that other functions have made.
        *("all_of", "any_of", "at_least", "at_most", "clause", "exactly_one", "iff"),
        *("drift", "from_rule_frame", "from_tree", "learned", "max_constraint_loss", "remainder"),
        "pull_to_start",
    },
    "training": {"replicate", "max_norm"},
}
"""Public functions that are not in the table."""


@pytest.mark.quick
def test_every_public_function_is_in_the_table() -> None:
    names = [m.name for m in pkgutil.iter_modules(distill_jax.__path__) if m.name[0] != "_"]
    found = {
        f"{module}.{name}"
        for module in names
        for name, value in vars(importlib.import_module(f"distill_jax.{module}")).items()
        if inspect.isfunction(value)
        and value.__module__.startswith("distill_jax")
        and name[0] != "_"
        and name != "checked"
        and name not in ELSEWHERE.get(module, ())
    }
    assert found - CASES.keys() == set()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("library_errors")
def test_names_the_argument(
    name: str, parts: Parts, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some write to the file "nonsense"
    module, function = name.split(".")
    function = getattr(getattr(distill_jax, module), function)
    good = CASES[name](parts)
    _call(function, good)
    unhelpful = []
    for argument, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        for kind, value in WRONG.items():
            try:
                _call(function, {**good, argument: value})
            except Exception as error:
                if not _helps(error, argument, QUOTED.get(kind)):
                    unhelpful.append(f"{argument} = {kind}: {type(error).__name__}: {error}")
            else:
                assert value is not WRONG["an object"] or argument in ACCEPTED.get(name, ()), (
                    f"{argument} may be anything"
                )
    assert not unhelpful, "\n".join(unhelpful)


ACCEPTED = {
    "teachers.from_function": {"params"},  # any tree, which only predict knows
    "teachers.monte_carlo": {"params", "state"},
    "teachers.teacher": {"params", "state"},
}
"""Arguments that may be any object, as far as the function can know."""


def _helps(error: Exception, argument: str, quoted: str | None) -> bool:
    words = str(error)
    if quoted is not None and quoted in words:
        return True
    if argument in ("rules", "theory") and "rules" in words:
        return isinstance(error, TypeError | ValueError)  # of one kind in several functions
    if re.search(rf"\b{argument}\b", words):
        return isinstance(error, TypeError | ValueError)
    return False


def _call(function: Callable, arguments: Mapping[str, Any]) -> None:
    given = dict(arguments)
    positional = [
        given.pop(name)
        for name, p in inspect.signature(function).parameters.items()
        if p.kind == p.POSITIONAL_ONLY and name in given
    ]
    made = function(*positional, **given)
    if isinstance(made, Iterator):
        next(made)
