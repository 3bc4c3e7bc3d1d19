"""What the package says that it exports is what it holds."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import pytest

import distill_jax


def _public_modules() -> list[str]:
    names = [m.name for m in pkgutil.walk_packages(distill_jax.__path__, "distill_jax.")]
    return ["distill_jax", *(n for n in names if not any(p[0] == "_" for p in n.split(".")))]


def _packages() -> list[str]:
    return [n for n in _public_modules() if hasattr(importlib.import_module(n), "__path__")]


def _held(module: ModuleType) -> set[str]:
    """Public names of a package, less its submodules: importing those sets an attribute."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        # From __future__ import annotations; put there by the hook that checks them in tests.
        and name not in ("annotations", "jaxtyping")
        and not (isinstance(value, ModuleType) and value.__name__ == f"{module.__name__}.{name}")
    }


@pytest.mark.quick
@pytest.mark.parametrize("name", _packages())
def test_all_is_sorted_and_complete(name: str) -> None:
    module = importlib.import_module(name)
    exported = module.__all__
    assert list(exported) == sorted(set(exported)), f"sort __all__ of {name}, each name once"
    missing = [n for n in exported if not hasattr(module, n)]
    assert not missing, f"{name}.__all__ names what {name} does not hold"
    submodules = {n for n in exported if isinstance(getattr(module, n), ModuleType)}
    assert _held(module) == set(exported) - submodules, f"__all__ of {name} is not what it holds"
    ours = {getattr(module, n).__name__.partition(".")[0] for n in submodules}
    assert ours <= {"distill_jax"}, f"{name} exports another library's module"


@pytest.mark.parametrize("name", _public_modules())
def test_every_module_and_export_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    undocumented = [
        n
        for n in getattr(module, "__all__", ())
        if callable(getattr(module, n)) and not getattr(module, n).__doc__
    ]
    assert not undocumented, f"no docstring: {undocumented} of {name}"


def test_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    assert distill_jax.__version__ == version("distill_jax")
