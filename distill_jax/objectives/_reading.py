"""How a function's positional parameters say what they read from a context."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distill_jax.objectives.context import AVERAGE, Context
from distill_jax.types import Batch

Sources = Mapping[str, str | Callable[[Context], Any]]
"""Where parameters come from, if not by their names: the ``reads`` of a term."""


def positional(function: Callable) -> list[str]:
    """The names of a function's positional parameters without a default."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind in kinds and p.default is p.empty
    ]


def read_all(term: str, parameters: Iterable[str], reads: Sources, context: Context) -> list[Any]:
    """The value of each parameter, by the rule that ``term`` documents."""
    return [_read(term, parameter, reads.get(parameter), context) for parameter in parameters]


def column_of(batch: Batch, column: str, who: str) -> Any:
    if column not in batch:
        raise ValueError(f"{who} reads the column {column!r}; the batch has {sorted(batch)}")
    return batch[column]


def number_of_rows(batch: Batch) -> int:
    return (batch["inputs"] if "inputs" in batch else next(iter(batch.values()))).shape[0]


def _read(term: str, parameter: str, source: Any, context: Context) -> Any:
    if callable(source):
        return source(context)
    if parameter == "context":
        return context
    if parameter == "student_logits":
        return context.student.logits
    if parameter == "views" and source is None:
        return context.views
    if parameter == "teacher_logits":
        return _teacher_logits(term, source, context)
    if parameter == "student_features":
        return _student_features(term, source, context)
    if parameter == "teacher_features":
        return _teacher_features(term, source, context)
    return column_of(context.batch, source or parameter, f"term {term!r}")


def _teacher_logits(term: str, source: str | None, context: Context) -> Any:
    teachers = context.teachers
    name = _teacher_named(term, context) if source is None else source
    if name is not None and name in teachers:
        return teachers[name].logits
    if source is None and "teacher_logits" in context.batch and not _others(context):
        return context.batch["teacher_logits"]
    raise ValueError(
        f"term {term!r} needs a teacher: the teachers are {sorted(teachers)}, the batch's columns "
        f"{sorted(context.batch)}. Pass teachers={{{term!r}: teacher}}, a column 'teacher_logits', "
        "or reads={'teacher_logits': name}"
    )


def _student_features(term: str, path: str | None, context: Context) -> Any:
    if path is None:
        raise _no_path(term, "student_features", "hidden/0")
    return _features(term, "the student", context.student.features, path)


def _teacher_features(term: str, source: str | None, context: Context) -> Any:
    if source is None:
        raise _no_path(term, "teacher_features", "big:hidden/0")
    teachers = context.teachers
    name, colon, path = source.partition(":")
    if not colon:
        name, path = _teacher_named(term, context), source
    if name is None or name not in teachers:
        raise ValueError(
            f"term {term!r} reads teacher_features {source!r}; the teachers are "
            f"{sorted(teachers)}: write 'teacher:path', where the teacher's name may be left out "
            "if it is the term's or there is only one"
        )
    return _features(term, f"teacher {name!r}", teachers[name].features, path)


def _teacher_named(term: str, context: Context) -> str | None:
    """The teacher that is meant where none is named: the term's namesake, or the only one."""
    if term in context.teachers:
        return term
    others = _others(context)
    return others[0] if len(others) == 1 else None


def _others(context: Context) -> list[str]:
    # The student's own average teaches only where it is asked for by name.
    return [name for name in context.teachers if name != AVERAGE]


def _features(term: str, who: str, features: Mapping[str, Any], path: str) -> Any:
    if path not in features:
        raise ValueError(
            f"term {term!r} reads the features {path!r} of {who}; there are {sorted(features)}"
        )
    return features[path]


def _no_path(term: str, parameter: str, example: str) -> ValueError:
    return ValueError(
        f"term {term!r} must say which features to compare: pass the path of the module that made "
        f"them, for example reads={{{parameter!r}: {example!r}}}"
    )
