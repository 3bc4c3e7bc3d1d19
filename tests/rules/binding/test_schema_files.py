"""Schemas in files: what is written is read back, and what is wrong is said."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from distill_jax.rules import Column, Schema, bind, infer_schema, read_schema, write_schema

SCHEMA = Schema(
    (
        Column("severity", categories=("mild", 'é"\\', "x\ny"), ordered=True),
        Column("sex", categories=("F", "M")),
        Column("smoker", true_values=("Y", "1"), false_values=("",)),
        Column("admitted", "datetime", mean=19753.1 + 1e-11, std=0.1, zone="Europe/Berlin"),
        Column("at", "time", mean=float(np.float64(1) / 3), std=1e-300),
        Column("stay", "duration", mean=-1e300),
        Column("a b", mean=1, std=np.float64(0.1)),
        Column("note", "text"),
        Column("flag", "boolean"),
    ),
    ("home", "ward"),
    target="where",
    views=("later",),
)


@pytest.mark.quick
@pytest.mark.parametrize(
    "schema",
    [SCHEMA, Schema((), ("a",), exclusive=False), infer_schema({"x": [0.1, 0.3]}, ("a", "b"))],
)
def test_what_is_written_is_read_back(schema: Schema, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "heart.json"
    for column in schema.columns:
        assert schema.column(column.name) is column  # which a schema remembers
    write_schema(schema, path)
    found = read_schema(str(path))
    assert found == schema and repr(found.columns[4:6]) == repr(schema.columns[4:6])
    write_schema(found, path)
    assert read_schema(path) == schema
    assert [x.name for x in tmp_path.iterdir()] == [path.name]


def test_rules_bind_to_a_schema_that_was_read(tmp_path: pathlib.Path) -> None:
    write_schema(SCHEMA, tmp_path / "s.json")
    text = "severity >= 'é\"\\\\' and at > time '18:00' and smoker => ward"
    assert bind(text, read_schema(tmp_path / "s.json")).info == bind(text, SCHEMA).info


def changed(**fields: Any) -> Any:
    """Changes the file's object; fields of the first column by ``column_``."""

    def change(content: dict[str, Any]) -> Any:
        for name, x in fields.items():
            own = content["columns"][0] if name.startswith("column_") else content
            own[name.removeprefix("column_")] = x
            if x is None:
                del own[name.removeprefix("column_")]
        return content

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed(format="sklearn"), "no field 'format' with 'distill_jax.rules.Schema'"),
        (changed(format=None), "no field 'format'"),
        (lambda x: [x], "no field 'format'"),
        (changed(version=2), "of version 2, and this release reads version 1"),
        (changed(version=True), "of version True"),
        (changed(classes=None), "the field 'classes' is missing"),
        (changed(classes="ab"), "classes must be a list, got 'ab'"),
        (changed(classes=["a", 1]), "classes must have strings as names, got 1"),
        (changed(classes=["a"]), "two or more"),
        (changed(exclusive=1), "exclusive must be true or false, got 1"),
        (changed(rules=[]), "unknown field 'rules'"),
        (changed(columns=[3]), r"columns\[0\]: expected an object with name, kind"),
        (changed(column_kind="real"), "kind of column 'severity' must be one of"),
        (changed(column_kind=None), r"columns\[0\]: the field 'kind' is missing"),
        (changed(column_kind="text"), "other columns have none"),
        (changed(column_mean=float("nan")), "mean must be a whole number or a number, got nan"),
        (changed(column_mean="1"), "mean must be a whole number or a number, got '1'"),
        (changed(column_std=0), "a std > 0"),
        (changed(column_ordered="yes"), "ordered must be true or false, got 'yes'"),
        (changed(column_zone="Berlin"), "'severity' is categorical: zone is for datetime"),
        (changed(column_unit="cm"), r"columns\[0\]: unknown field 'unit', known are name, kind"),
        (changed(column_name="home"), "distinct names"),
        (lambda x: json.dumps(x)[:-20], "line 1, column .*not valid JSON"),
        (lambda x: json.dumps(x).replace('"views"', '"classes"'), "'classes' is there twice"),
        (lambda x: "[" * 100_000, "nested too deeply"),
        (lambda x: b"\xff\xfe", "'utf-8' codec can't decode"),
        (lambda x: "", "line 1, column 1: not valid JSON"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(
    change: Any, said: str, tmp_path: pathlib.Path, library_errors: Any
) -> None:
    path = tmp_path / "s.json"
    write_schema(SCHEMA, path)
    made = change(json.loads(path.read_text(encoding="utf-8")))
    made = made if isinstance(made, str | bytes) else json.dumps(made)
    path.write_bytes(made if isinstance(made, bytes) else made.encode())
    with pytest.raises(ValueError, match=rf"s\.json does not hold a schema: .*{said}"):
        read_schema(path)


def test_paths(tmp_path: pathlib.Path) -> None:
    for use in (lambda path: write_schema(SCHEMA, path), read_schema):
        with pytest.raises(ValueError, match="path must end in .json, got s.yaml"):
            use(tmp_path / "s.yaml")
    with pytest.raises(FileNotFoundError):
        read_schema(tmp_path / "s.json")
    odd = Schema((Column("a\ud800"),), ("a", "b"))
    with pytest.raises(ValueError, match="surrogates"):
        write_schema(odd, tmp_path / "s.json")
    assert not list(tmp_path.iterdir())
