"""How the names of a function's parameters say what they read from a context."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax

from distill_jax import _batches
from distill_jax.objectives._guarding import Guard
from distill_jax.objectives.context import AVERAGE, Context
from distill_jax.types import Batch

Sources = Mapping[str, str | Callable[[Context], Any]]
"""Where parameters come from, if not by their names: the ``reads`` of a term."""

OUTPUTS = ("student_logits", "teacher_logits", "student_features", "teacher_features", "views")
OTHERS = ("context", "step", "key")
_VIEW = "view:"
"""The prefix by which ``teacher_logits`` are the student's own on another view."""
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)
_NEVER_FILLED = frozenset(
    "rng rngs rng_key prng prng_key random_key dropout_rng dropout_key seed train training "
    "is_training is_train deterministic inference eval is_eval mode".split()
)


class Parameters(NamedTuple):
    """What a function reads by the names of its parameters.

    Attributes:
      required: Parameters without a default.
      optional: Parameters with one, which are read where there is something of their name.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return self.required + self.optional


def parameters(function: Callable, *, own: int = 0, given: Collection[str] = ()) -> Parameters:
    """The parameters that a function reads.

    Args:
      function: Its parameters may be positional or keyword-only.
      own: Number of first parameters that are filled otherwise.
      given: Names of parameters that are filled otherwise; ``where`` always is.
    """
    taken = {"where", *given, *_keywords_of_partial(function)}
    found = [p for p in inspect.signature(function).parameters.values() if p.kind in _NAMED]
    free = [p for p in found[own:] if p.name not in taken]
    return Parameters(
        tuple(p.name for p in free if p.default is p.empty),
        tuple(p.name for p in free if p.default is not p.empty),
    )


def first_positional(function: Callable, count: int) -> list[str]:
    """The names of a function's first positional parameters without a default, up to ``count``."""
    found = inspect.signature(function).parameters.values()
    return [p.name for p in found if p.kind in _POSITIONAL and p.default is p.empty][:count]


def check_filled(who: str, function: Callable, read: Parameters, reads: Sources) -> None:
    """Raises TypeError for a parameter that looks as if it were filled, and is not."""
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.VAR_POSITIONAL:
            raise TypeError(
                f"{who} must name its parameters, which determine what it is given, got *{p.name}"
            )
    for name in read.all:
        if name in _NEVER_FILLED and name not in reads:
            raise TypeError(
                f"{who} has the parameter {name!r}, which is not filled: call it 'key' for a key "
                "of this step, give its value as an option of the term (losses are computed in "
                f"training only), or pass reads={{{name!r}: column}}. Known names are "
                f"{[*OUTPUTS, *OTHERS]} and the batch's columns"
            )


def read_all(
    term: str,
    read: Parameters,
    defaults_of: Callable,
    reads: Sources,
    context: Context,
    guard: Guard,
) -> dict[str, Any]:
    """The value of each parameter, by the rule that ``term`` documents, guarded."""
    values, guarded = {}, functools.cache(lambda: guard.context(context))
    for name in read.all:
        source = reads.get(name)
        if callable(source):
            values[name] = source(guarded())
            continue
        if name in read.optional and source is None and not _is_there(term, name, context):
            _check_not_misspelt(term, name, defaults_of, read, context)
            continue
        if name == "context":
            values[name] = guarded()
        elif name in OTHERS and source is None and name not in context.batch:
            values[name] = getattr(context, name)
        else:
            how = guard.outputs if name in OUTPUTS else guard.columns
            values[name] = how(_read(term, name, source, context))
    return values


def call(function: Callable, own: tuple[Any, ...], values: Mapping[str, Any]) -> Any:
    """Calls a function with its first parameters and with the others by name."""
    positional, by_name = list(own), dict(values)
    for p in list(inspect.signature(function).parameters.values())[len(own) :]:
        if p.kind not in _POSITIONAL or p.name not in by_name:
            break
        positional.append(by_name.pop(p.name))
    return function(*positional, **by_name)


def column_of(batch: Batch, column: str, who: str) -> Any:
    found = _batches.found(batch, column)
    if found is None:
        raise ValueError(
            f"{who} reads the column {column!r}; the batch has {sorted(_batches.arrays(batch))}"
        )
    return found


def number_of_rows(batch: Batch) -> int:
    return _batches.rows(batch)


def _keywords_of_partial(function: Callable) -> Collection[str]:
    return function.keywords if isinstance(function, functools.partial) else ()


def _is_there(term: str, name: str, context: Context) -> bool:
    """Whether a parameter with a default has something to read."""
    if name == "teacher_logits":  # several teachers of which none is meant are an error
        return bool(_others(context)) or term in context.teachers or name in context.batch
    if name == "views":
        return bool(context.views)
    return name in (*OUTPUTS, *OTHERS) or name in context.batch


def _check_not_misspelt(
    term: str, name: str, function: Callable, read: Parameters, context: Context
) -> None:
    """Raises ValueError where a parameter that is None by default nearly has a known name."""
    if inspect.signature(function).parameters[name].default is not None:
        return
    known = [x for x in (*context.batch, *OUTPUTS, *OTHERS) if x not in (*read.all, "where")]
    near = difflib.get_close_matches(name, known, 1, cutoff=0.8)
    if near:
        raise ValueError(
            f"term {term!r} has the parameter {name!r}, which is None by default, and nothing of "
            f"that name: is {near[0]!r} meant? Rename it, pass reads={{{name!r}: ...}}, or pass "
            f"{name}=None as an option of the term"
        )


def _read(term: str, parameter: str, source: Any, context: Context) -> Any:
    if parameter == "student_logits":
        return context.student.logits
    if parameter == "views" and source is None:
        return dict(context.views)
    if parameter == "teacher_logits":
        return _teacher_logits(term, source, context)
    if parameter == "student_features":
        return _student_features(term, source, context)
    if parameter == "teacher_features":
        return _teacher_features(term, source, context)
    column = source or parameter
    found = _batches.found(context.batch, column)
    if found is None:
        raise ValueError(
            f"term {term!r} reads the column {column!r}; the batch has {sorted(context.batch)}. "
            f"Other names that a loss may read are {[*OUTPUTS, *OTHERS]}"
        )
    return found


def _teacher_logits(term: str, source: str | None, context: Context) -> Any:
    teachers = context.teachers
    name = _teacher_named(term, context) if source is None else source
    if name is not None and name in teachers:
        return teachers[name].logits
    if source is not None and source.startswith(_VIEW):
        return _logits_on_view(term, source.removeprefix(_VIEW), context)
    if source is None and "teacher_logits" in context.batch and not _others(context):
        return context.batch["teacher_logits"]
    if source == AVERAGE:
        raise ValueError(
            f"term {term!r} reads {AVERAGE!r}, the average of the student's own parameters, which "
            "is kept only with a decay: pass average_decay=0.99, say, to run or fit"
        )
    raise ValueError(
        f"term {term!r} needs a teacher: the teachers are {sorted(teachers)}, the batch's columns "
        f"{sorted(context.batch)}. Pass teachers={{{term!r}: teacher}}, a column 'teacher_logits', "
        "or reads={'teacher_logits': name}"
    )


def _logits_on_view(term: str, view: str, context: Context) -> Any:
    if view not in context.views:
        raise ValueError(
            f"term {term!r} reads {_VIEW + view!r}, the student's own prediction on another view; "
            f"the views are {sorted(context.views)}: give the inputs of each as a column, "
            f"'inputs:{view}', in the data or by augment="
        )
    return jax.lax.stop_gradient(context.views[view].logits)


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
