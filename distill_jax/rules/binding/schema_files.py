"""Schemas in files: the columns and classes that rules are bound to, as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from distill_jax import _files
from distill_jax._arguments import checked
from distill_jax.rules.binding.schema import Column, Schema
from distill_jax.rules.language.errors import shortened, visible

_FORMAT, _VERSION = "distill_jax.rules.Schema", 1
_FIELDS = tuple(field.name for field in dataclasses.fields(Schema))
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Column)}
_KINDS: dict[str, tuple[type, ...]] = {
    "format": (str,), "version": (int,), "columns": (list,), "classes": (list,),
    "exclusive": (bool,), "target": (str, type(None)), "views": (list,), "name": (str,),
    "kind": (str,), "categories": (list,), "mean": (int, float), "std": (int, float),
    "ordered": (bool,), "true_values": (list,), "false_values": (list,),
    "zone": (str,),
}  # fmt: skip


@checked
def write_schema(schema: Schema, path: str | pathlib.Path) -> None:
    """Writes a schema to a JSON file from which ``read_schema`` reads an equal one.

    Args:
      schema: The schema. What a column has by default is left out.
      path: The file, which ends in ``.json``. An existing one is replaced atomically.

    Raises:
      ValueError: for another suffix, or a name that UTF-8 cannot hold.

    Example:
      >>> import pathlib, tempfile
      >>> grade = Column("grade", categories=("low", "high"), ordered=True)
      >>> schema = Schema((grade, Column("age", mean=50.5, std=9.25)), ("well", "ill"))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "heart.json"
      ...     write_schema(schema, path)
      ...     read_schema(path) == schema
      True
    """
    path = _checked(path)
    columns = [
        {
            name: float(x) if name in ("mean", "std") else x
            for name, x in ((name, getattr(column, name)) for name in _DEFAULTS)
            if name in ("name", "kind") or x != _DEFAULTS[name]
        }
        for column in schema.columns
    ]
    fields = {name: getattr(schema, name) for name in _FIELDS}
    content = {"format": _FORMAT, "version": _VERSION, **fields, "columns": columns}
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    data = text.encode("utf-8")  # raises for a lone surrogate, before a file is opened
    with _files.replacing(path) as file:
        file.write(data)


@checked
def read_schema(path: str | pathlib.Path) -> Schema:
    """Reads a schema from a JSON file that ``write_schema`` wrote.

    Args:
      path: The file.

    Returns:
      The schema.

    Raises:
      ValueError: for a file that is damaged, is not of a schema, has a field that is unknown,
        missing or of another kind, or is of a later version; with the file, and where in it.
    """
    path = _checked(path)
    try:
        return _schema(_json(path.read_bytes()))
    except (ValueError, TypeError) as error:
        message = visible(shortened(str(error), 1_000))
        raise ValueError(f"{path} does not hold a schema: {message}") from error


def _checked(path: str | pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.suffix.lower() != ".json":
        raise ValueError(f"path must end in .json, got {path.name}")
    return path


def _json(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{where}: not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is there twice")
    return found


def _schema(content: Any) -> Schema:
    if not isinstance(content, Mapping) or content.get("format") != _FORMAT:
        raise ValueError(f"it has no field 'format' with {_FORMAT!r}, as write_schema writes it")
    version = content.get("version")
    if version != _VERSION or isinstance(version, bool):
        raise ValueError(
            f"it is of version {version!r}, and this release reads version {_VERSION}: install a "
            "newer one"
        )
    named = ("format", "version", *_FIELDS)
    own = _fields("", content, named, named)
    del own["format"], own["version"]
    columns = tuple(
        Column(**_fields(f"columns[{i}]: ", column, ("name", "kind"), tuple(_DEFAULTS)))
        for i, column in enumerate(own["columns"])
    )
    return Schema(**{**own, "columns": columns})


def _fields(
    where: str, content: Any, needed: tuple[str, ...], known: tuple[str, ...]
) -> dict[str, Any]:
    """The fields of an object, of the kinds that they must have; lists become tuples."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}expected an object with {', '.join(needed)}")
    if unknown := [name for name in content if name not in known]:
        raise ValueError(f"{where}unknown field {unknown[0]!r}, known are {', '.join(known)}")
    if lacking := [name for name in needed if name not in content]:
        raise ValueError(f"{where}the field {lacking[0]!r} is missing")
    found = {}
    for name, x in content.items():
        kinds = _KINDS[name]
        is_right = isinstance(x, kinds) and (bool in kinds or not isinstance(x, bool))
        if not is_right or (isinstance(x, float) and not math.isfinite(x)):
            expected = " or ".join(_WORDS[kind] for kind in kinds)
            raise ValueError(f"{where}{name} must be {expected}, got {shortened(repr(x), 80)}")
        found[name] = tuple(x) if isinstance(x, list) else x
    return found


_WORDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false",
          list: "a list", type(None): "null"}  # fmt: skip
