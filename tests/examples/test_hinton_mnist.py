"""The table of Hinton et al. 2015: it runs from end to end, goes on, and corrects what it says."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from examples import hinton_mnist


@pytest.mark.usefixtures("compiled_hastily")
def test_a_quick_run_writes_the_whole_table_and_a_second_one_reads_its_stages(tmp_path, capsys):
    command = ["--quick", "--seeds", "2", "--cache", str(tmp_path / "cache")]
    result = hinton_mnist.main([*command, "--out", str(tmp_path / "result.json")])
    assert "teacher: " in capsys.readouterr().out

    rows = {row["name"]: row for row in result["rows"]}
    assert rows["student, soft targets at T=20"]["published"] == 74
    assert rows["student, soft targets at T=20"]["seeds"] == 2
    assert rows["teacher"]["std"] is None
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["command"] == "python examples/hinton_mnist.py --quick"
    assert [row["mean"] for row in saved["rows"]] == [row["mean"] for row in result["rows"]]

    again = hinton_mnist.main(command)
    assert "teacher: " not in capsys.readouterr().out
    assert [row["mean"] for row in again["rows"]] == [row["mean"] for row in result["rows"]]


def test_stages_of_another_configuration_or_with_damage_are_made_anew(tmp_path, capsys):
    made = iter(range(10))

    def stage(width):
        return hinton_mnist._staged(
            tmp_path, "net", {"width": width}, lambda: {"x": np.array(next(made))}
        )

    assert stage(1)["x"] == stage(1)["x"] == 0
    assert stage(2)["x"] == 1
    assert "another configuration" in capsys.readouterr().out
    content = (tmp_path / "net.npz").read_bytes()
    for damage in (content[:40], b"", b"no archive", content[:-60]):
        (tmp_path / "net.npz").write_bytes(damage)
        before = int(stage(2)["x"])
        assert "damaged" in capsys.readouterr().out
        assert stage(2)["x"] == before


def test_correction_undoes_a_known_bias_and_looks_only_at_the_rows_it_names():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 500)
    z = 4.0 * np.eye(10)[labels] + rng.normal(size=(500, 10))
    worse = z - 7.0 * np.isin(np.arange(10), [2, 5])
    logits = {"training": worse[None], "test": np.stack([worse, worse])}
    wrong = (z.argmax(-1) != labels).sum()
    assert (worse.argmax(-1) != labels).sum() > wrong + 50

    fixed, bias = hinton_mnist.corrected(logits, "training", labels, [2, 5])
    assert bias == pytest.approx([7.0], abs=1.0)
    assert ((fixed.argmax(-1) != labels).sum(-1) <= wrong).all()
    np.testing.assert_allclose((fixed - logits["test"])[..., [0, 1, 3]], 0.0)

    elsewhere = {"training": worse[None], "test": z[None]}
    assert hinton_mnist.corrected(elsewhere, "test", labels, [2])[1] == pytest.approx([0], abs=1.0)


def test_jitter_moves_each_image_whole_by_up_to_two_pixels():
    image = np.zeros((9, 9), np.float32)
    image[4, 4], image[4, 5] = 1.0, 0.5
    batch = {"inputs": np.tile(image, (200, 1, 1)), "labels": np.arange(200)}
    moved = hinton_mnist.jitter(2, jax.random.key(0), batch)
    inputs = np.asarray(moved["inputs"])
    rows, columns = np.divmod(inputs.reshape(200, -1).argmax(-1), 9)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {
        (row, column) for row in range(2, 7) for column in range(2, 7)
    }
    np.testing.assert_allclose(inputs.sum((1, 2)), 1.5)
    np.testing.assert_array_equal(inputs[np.arange(200), rows, columns + 1], 0.5)
    np.testing.assert_array_equal(moved["labels"], batch["labels"])


def test_without_mnist_only_a_quick_run_finds_other_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DISTILL_JAX_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    train, test = hinton_mnist._load(quick=True)
    assert "MNIST is missing" in capsys.readouterr().out
    assert train["inputs"].shape[1:] == test["inputs"].shape[1:] == (8, 8)
    assert train["inputs"].max() <= 1.0
    with pytest.raises(FileNotFoundError, match="python -m distill_jax.data mnist"):
        hinton_mnist._load(quick=False)


def test_the_number_of_seeds_must_be_one_or_more(capsys):
    with pytest.raises(SystemExit):
        hinton_mnist.main(["--quick", "--seeds", "0"])
    assert "--seeds must be 1 or more" in capsys.readouterr().err
