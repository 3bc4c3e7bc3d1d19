"""The A-but-B rule: what a clause is, what is taught and projected, and a run from end to end."""

from __future__ import annotations

import gzip
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import data, objectives, rules
from distill_jax.types import Outputs
from examples import sst2_but_rule as example


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Sentences of a few words in the files' own format, found as the data set would be."""
    place = tmp_path / "sst2"
    place.mkdir()
    rng = np.random.default_rng(0)
    words = {0: ["dull", "bad", "stale"], 1: ["good", "warm", "tribute"]}

    def sentence(label: int) -> str:
        end = rng.choice(words[label])
        return f"{rng.choice(words[1 - label])} , but {end} ." if rng.random() < 0.5 else end

    for name, n in (("train", 60), ("dev", 20), ("test", 24)):
        labels = rng.integers(0, 2, n)
        _write(place / f"stsa.binary.{name}.gz", [f"{y} {sentence(y)}" for y in labels])
    crowd = ["0.900\t1,1\tdull , but warm", "0.500\t0,1\tdull , but new", "0.100\t0,0\ttribute"]
    _write(place / "sst_crowd_discourse.txt.gz", crowd)
    monkeypatch.setenv("DISTILL_JAX_DATA", str(tmp_path))
    return place


def _write(path: pathlib.Path, lines: list[str]) -> None:
    with gzip.open(path, "wt", encoding="utf8", newline="\n") as file:
        file.write("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("sentence", "clause"),
    [
        ("dull , but a fine tribute to him", "a fine tribute to him"),
        ("a tribute to butter", ""),
        ("but it is good", ""),
        ("it is good but", ""),
        ("but it is slow , but good", "good"),
        ("slow but good but long", "good but long"),
    ],
)
def test_a_clause_is_what_follows_the_word_but(sentence: str, clause: str) -> None:
    assert " ".join(example.clause_b(sentence.split())) == clause


def test_sentences_become_numbers_and_the_crowd_decides_where_it_agrees(
    folder: pathlib.Path,
) -> None:
    parts, words = example.load(folder)
    assert {name: len(part["labels"]) for name, part in parts.items()} == {
        "train": 60,
        "dev": 20,
        "test": 24,
        "crowd": 1,  # of three, one has no clause and one no majority
    }
    assert parts["crowd"]["labels"] == 1
    train = parts["train"]["inputs"]
    assert set(np.unique(train)) == set(range(words + 1))
    for part in parts.values():
        sentences, clauses = part["inputs"], part["inputs:clause_b"]
        but = part["columns"][:, 0] > 0
        assert (clauses[but].max(1) > 0).all() and not clauses[~but].any()
        for sentence, clause in zip(sentences[but], clauses[but], strict=True):
            assert (
                clause[: (clause > 0).sum()].tolist() == sentence[3 : (sentence > 0).sum()].tolist()
            )
    # A word that only others have is as good as none.
    _write(folder / "stsa.binary.dev.gz", ["1 good unheard-of good"])
    row = example.load(folder)[0]["dev"]["inputs"][0]
    assert row[0] == row[2] > 0 == row[1]
    assert len(example.load(folder, 7)[0]["train"]["labels"]) == 7


def test_missing_data_are_named_with_their_source(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_JAX_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="sst2.*github.com/ZhitingHu/logicnn"):
        example.main(["--quick"])
    (tmp_path / "sst2").mkdir()
    with pytest.raises(FileNotFoundError, match="stsa.binary.train.gz is missing.*ZhitingHu"):
        example.main(["--quick"])


def test_the_network_is_a_convolution_with_the_largest_value_over_the_sentence() -> None:
    model = example.cnn(9, embedding=4, maps=3, dropout=0.5)
    inputs = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    params, state = jax.jit(model.init)(jax.random.key(0), inputs)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    predict = jax.jit(model.predict)
    got = np.asarray(predict(params, state, inputs).logits)

    table = np.concatenate([np.zeros((1, 4)), params["words"]])
    hidden = []
    for sentence in inputs:
        x = np.pad(table[sentence], ((9, 9), (0, 0)))  # with windows that hold no word at all
        for filters in params["filters"]:
            width = len(filters)
            windows = [x[i : i + width] for i in range(len(x) - width + 1)]
            hidden += [np.einsum("nwe,wem->nm", windows, filters).max(0)]
    hidden = np.maximum(np.reshape(hidden, (3, -1)) + params["offset"], 0.0)
    want = hidden @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    # The same sentence in a longer row, and a dropped unit now and then.
    longer = predict(params, state, np.pad(inputs, ((0, 0), (0, 5)))).logits
    np.testing.assert_allclose(longer, got, rtol=1e-4, atol=1e-4)
    learning = jax.jit(lambda key: model.apply(params, state, inputs, key=key, train=True)[0])
    assert not np.allclose(learning(jax.random.key(2)).logits, got)


def test_strengths_are_those_of_the_equations_they_are_said_to_be() -> None:
    rng = np.random.default_rng(0)
    logits, clauses = rng.normal(size=(2, 6, 2)).astype(np.float32)
    columns = np.array([[1], [1], [1], [1], [0], [0]], np.float32)
    p, b = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (logits, clauses))
    but, c = columns[:, 0] > 0, 6.0

    def projected(strength: float) -> np.ndarray:
        q = rules.project(example.but_rule(strength), columns, logits, views={"clause_b": clauses})
        return np.exp(q)

    def normal(q: np.ndarray) -> np.ndarray:
        return np.where(but[:, None], q / q.sum(-1, keepdims=True), p)

    # Hu et al.'s equation and rule, the mean of two Lukasiewicz implications, over y = 0 and 1.
    y, positive = np.arange(2), b[:, 1:]
    truth = (np.minimum(1, 1 - y + positive) + np.minimum(1, 1 - positive + y)) / 2
    np.testing.assert_allclose(projected(3.0), normal(p * np.exp(-c * (1 - truth))), rtol=1e-4)
    # Their code adds C times the clause's probability, and adds it twice.
    np.testing.assert_allclose(projected(12.0), normal(p * np.exp(2 * c * b)), rtol=1e-4)
    # Krishna et al.'s code, with its weights 1 and 6.
    np.testing.assert_allclose(projected(6.0), normal(p * np.exp(6.0 * b)), rtol=1e-4)


def test_the_objective_is_that_of_hu_et_al() -> None:
    settings = {"strength": 12.0, "alpha": 0.9, "ceiling": 0.9, "first": 0}
    made = example.objective(settings, 10.0)
    rng = np.random.default_rng(1)
    logits, clauses = rng.normal(size=(2, 4, 2)).astype(np.float32)
    labels, columns = np.array([0, 1, 1, 0]), np.array([[1], [0], [1], [0]], np.float32)
    batch = {"inputs": logits, "labels": jnp.asarray(labels), "columns": jnp.asarray(columns)}
    views = {"clause_b": Outputs(jnp.asarray(clauses))}

    @jax.jit
    def gradient(logits: Any, step: Any) -> Any:
        def value(logits):
            context = objectives.Context(Outputs(logits), {}, batch, step, views=views)
            return made({}, {}, context)[0]

        return jax.grad(value)(logits)

    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    b = np.exp(clauses) / np.exp(clauses).sum(-1, keepdims=True)
    q = p * np.exp(12.0 * columns * b)
    q /= q.sum(-1, keepdims=True)
    for step, pi in ((0, 0.0), (20, 1 - 0.9**2), (10_000, 0.9)):
        want = ((1 - pi) * (p - np.eye(2)[labels]) + pi * (p - q)) / 4
        np.testing.assert_allclose(gradient(logits, step), want, atol=1e-6)


@pytest.mark.usefixtures("folder", "compiled_hastily")
def test_a_quick_run_writes_every_figure_and_a_second_one_trains_nothing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--quick", "--seeds", "2", "--cache", str(tmp_path / "cache")]
    result = example.main([*command, "--out", str(tmp_path / "result.json")])
    shown = capsys.readouterr().out
    assert "100 % paper, start 1: " in shown and "Better, each beyond" in shown

    rows = {row["name"]: row for row in result["rows"]}
    plain, projected = (
        rows["100 %, labels only, p: but"],
        rows["100 %, labels only, q, strength 3: but"],
    )
    gain = rows["100 %, labels only, q, strength 3: gain, but"]
    np.testing.assert_allclose(gain["values"], projected["values"] - plain["values"])
    assert gain["seeds"] == 2 and gain["published"] is None
    assert rows["100 %, paper, p: gain, test"]["published"] == 1.6
    before, after = (
        rows[f"100 %, labels only, {by}: violation"]["values"] for by in ("p", "q, strength 12")
    )
    assert (after < before).all()  # which is what a projection is for
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["command"] == "python examples/sst2_but_rule.py --quick"
    assert [row["mean"] for row in saved["rows"]] == [row["mean"] for row in result["rows"]]

    again = example.main(command)
    assert "start" not in capsys.readouterr().out.replace("std of starts", "")
    assert [row["mean"] for row in again["rows"]] == [row["mean"] for row in result["rows"]]


def test_the_data_set_is_the_published_one() -> None:
    try:
        folder = data.folder("sst2")
    except FileNotFoundError as error:
        pytest.skip(f"SST-2 is missing: {error}")
    parts, words = example.load(folder)
    counts = {name: (len(x["labels"]), int(x["columns"].sum())) for name, x in parts.items()}
    assert counts["train"] == (6920, 771) and counts["dev"] == (872, 101)
    assert counts["test"] == (1821, 210) and words == 14828


def test_the_number_of_seeds_must_be_one_or_more(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.main(["--quick", "--seeds", "0"])
    assert "--seeds must be 1 or more" in capsys.readouterr().err
