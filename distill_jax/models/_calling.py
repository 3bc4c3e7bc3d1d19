"""How a module is called with its inputs: whole, by name, or in order.

- A dictionary whose keys are parameters of ``__call__`` is passed by name, ``module(**inputs)``.
  One that shares no key with them is passed whole, to a module that takes one argument.
- A tuple is passed in order, ``module(*inputs)``, to a module that needs several arguments, and
  whole to one that takes one.
- Everything else is passed whole: ``module(inputs)``.

What could be meant in two ways is refused. A named tuple or a dataclass is one object.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

WHO = "the module's __call__"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments(NamedTuple):
    """The arguments that hold the inputs.

    Attributes:
      positional: In order.
      by_name: By the names of parameters.
      filled: The names of all parameters that these fill.
    """

    positional: tuple[Any, ...]
    by_name: dict[str, Any]
    filled: tuple[str, ...]


def arguments(call: Callable[..., Any], inputs: Any, reserved: Collection[str]) -> Arguments:
    """The arguments with which ``call``, a method, takes the inputs.

    Args:
      call: A function whose first parameter is the module itself.
      inputs: An array or a pytree.
      reserved: Parameters that are filled otherwise: the mode, random keys.

    Raises:
      TypeError: if the inputs do not fit the parameters, or could be meant in two ways.
    """
    found = list(inspect.signature(call).parameters.values())[1:]
    free = [p for p in found if p.name not in reserved]
    if isinstance(inputs, dict) and inputs and all(isinstance(name, str) for name in inputs):
        names = [p.name for p in free if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        others = any(p.kind is p.VAR_KEYWORD for p in found)
        if any(name in names for name in inputs) or (others and not _positional(free)):
            return _by_name(inputs, found, names, others, reserved)
        _check_one(free, f"inputs are a dictionary of {sorted(inputs)}, which has none of these")
    elif type(inputs) is tuple:
        positional = _positional(free)
        several = len(_needed(positional)) > 1
        if several or (not positional and any(p.kind is p.VAR_POSITIONAL for p in found)):
            return _in_order(inputs, positional, found)
        _check_one(
            positional, f"a tuple of {len(inputs)} could be these, or the first of them alone"
        )
    first = tuple(p.name for p in _positional(found)[:1])
    return Arguments((inputs,), {}, first)


def _by_name(
    inputs: dict[str, Any],
    found: list[inspect.Parameter],
    names: list[str],
    others: bool,
    reserved: Collection[str],
) -> Arguments:
    taken = [name for name in inputs if name in reserved and any(p.name == name for p in found)]
    if taken:
        raise TypeError(
            f"inputs have {taken}, which {WHO} is given as its mode or its random key: rename "
            "them, in the inputs and in the module"
        )
    unknown = [name for name in inputs if name not in names]
    if unknown and not others:
        raise TypeError(
            f"inputs have {unknown}, which {WHO} does not take: it takes {names}. Rename or remove "
            "them; to pass a dictionary as one argument, put it under that argument's name"
        )
    missing = [p.name for p in found if p.name in names and _is_needed(p) and p.name not in inputs]
    if missing:
        raise TypeError(
            f"{WHO} needs {missing}, and inputs have {list(inputs)}: add them, or give them a "
            "default in the module"
        )
    return Arguments((), dict(inputs), tuple(inputs))


def _in_order(
    inputs: tuple[Any, ...], positional: list[inspect.Parameter], found: list[inspect.Parameter]
) -> Arguments:
    names = [p.name for p in positional]
    least, endless = len(_needed(positional)), any(p.kind is p.VAR_POSITIONAL for p in found)
    if len(inputs) < least or (len(inputs) > len(names) and not endless):
        raise TypeError(
            f"{WHO} takes {names}, of which it needs {least}, and inputs are a tuple of "
            f"{len(inputs)}: give one for each, or name them in a dictionary"
        )
    if _positional(found)[: len(inputs)] != positional[: len(inputs)]:
        raise TypeError(
            f"{WHO} has parameters for its mode or random key before {names[-1]!r}, so that a "
            "tuple cannot be passed in order: name the inputs in a dictionary"
        )
    return Arguments(inputs, {}, tuple(names[: len(inputs)]))


def _check_one(free: list[inspect.Parameter], why: str) -> None:
    """Raises TypeError unless a module that is passed one object takes one, and only one."""
    needed = _needed(free)
    # None is the default of arrays that may be left out.
    perhaps = [p for p in free if p.default is None]
    if len(needed) > 1 or (perhaps and needed):
        names = [p.name for p in free]
        raise TypeError(
            f"{WHO} takes {names}, and {why}: pass a dictionary with these names, "
            f"inputs={{{', '.join(f'{n!r}: ...' for n in names)}}}"
        )


def _positional(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    return [p for p in parameters if p.kind in _POSITIONAL]


def _needed(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    return [p for p in parameters if _is_needed(p)]


def _is_needed(p: inspect.Parameter) -> bool:
    return p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
