"""Where data sets are looked for."""

from __future__ import annotations

import pytest

from distill_jax.data import files, folder, mnist
from distill_jax.data.__main__ import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DISTILL_JAX_DATA", raising=False)
    return tmp_path / "cache" / "distill_jax"


@pytest.mark.quick
def test_folder_prefers_the_variable_to_the_cache(tmp_path, own_cache, monkeypatch):
    (own_cache / "mnist").mkdir(parents=True)
    assert folder("mnist") == own_cache / "mnist"
    monkeypatch.setenv("DISTILL_JAX_DATA", str(tmp_path / "sets"))
    assert folder("mnist") == own_cache / "mnist"  # the variable's folder does not have it
    (tmp_path / "sets" / "mnist").mkdir(parents=True)
    assert folder("mnist") == tmp_path / "sets" / "mnist"


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert files.cache() == tmp_path / ".cache" / "distill_jax"


def test_without_a_home_only_the_cache_is_missing(monkeypatch, tmp_path, capsys):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(files.pathlib.Path, "home", homeless)
    monkeypatch.setenv("DISTILL_JAX_DATA", str(tmp_path / "sets"))
    with pytest.raises(FileNotFoundError, match="mnist' was found neither .*sets"):
        folder("mnist")
    (tmp_path / "sets" / "mnist").mkdir(parents=True)
    assert folder("mnist") == tmp_path / "sets" / "mnist"
    monkeypatch.delenv("DISTILL_JAX_DATA")
    with pytest.raises(FileNotFoundError, match="this user has no home"):
        folder("mnist")
    with pytest.raises(FileNotFoundError, match="set HOME or XDG_CACHE_HOME"):
        files.cache()
    assert main(["mnist"]) == 1 and "set HOME or XDG_CACHE_HOME" in capsys.readouterr().err


def test_a_missing_folder_says_where_it_looked(tmp_path, own_cache, monkeypatch):
    with pytest.raises(FileNotFoundError, match="DISTILL_JAX_DATA is not set"):
        folder("mnist")
    monkeypatch.setenv("DISTILL_JAX_DATA", str(tmp_path / "sets"))
    with pytest.raises(FileNotFoundError, match="python -m distill_jax.data mnist") as caught:
        mnist()
    assert str(tmp_path / "sets" / "mnist") in str(caught.value)
    assert str(own_cache / "mnist") in str(caught.value)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc"])
def test_a_name_is_one_folder(name):
    with pytest.raises(ValueError, match="name must be the name of one folder"):
        folder(name)
