"""The rules by which a newcomer finds a room: names of files, and who imports whom.

Everything is read from the source by ``ast``, so that imports inside functions and those for type
checkers count as well.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "distill_jax"


def _name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
PACKAGES = [name for name, path in FILES.items() if path.name == "__init__.py"]


def _children(package: str) -> list[str]:
    """The modules and packages directly inside, without the scripts that nobody imports."""
    inside = (name for name in FILES if name.rpartition(".")[0] == package)
    return [name for name in inside if not name.endswith("__main__")]


def _imported(module: str, tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Modules of this library that a module imports, each with the name taken from it, if any."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by dots: write the whole name"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if submodule in FILES:
                    yield submodule, None
                elif node.module in FILES:
                    yield str(node.module), alias.name


def _exports(package: str) -> list[str]:
    for node in TREES[package].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


@pytest.mark.quick
@pytest.mark.parametrize("package", PACKAGES)
def test_a_module_has_no_underscore_exactly_if_its_package_exports_from_it(package: str) -> None:
    """Of a package with no exports of its own, the contents are told by its parent."""
    exported = {
        child
        for child in _children(package)
        for module, _ in _imported(package, TREES[package])
        if module == child or module.startswith(f"{child}.")
    }
    public = {c for c in _children(package) if not c.rpartition(".")[2].startswith("_")}
    assert public - exported == set(), f"give them an underscore, or export from them in {package}"
    assert exported - public == set(), f"{package} exports from them: take their underscore away"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_hides_an_exported_name(package: str) -> None:
    """A name must not be a function or a module depending on the order of imports."""
    modules = {child.rpartition(".")[2] for child in _children(package)}
    meant = {
        module.rpartition(".")[2]
        for module, taken in _imported(package, TREES[package])
        if taken is None and module.rpartition(".")[0] == package
    }
    assert set(_exports(package)) & (modules - meant) == set()


@pytest.mark.quick
def test_no_import_makes_a_circle() -> None:
    """Neither among modules, nor among what lies side by side in any package."""
    modules = {
        name: {module for module, _ in _imported(name, tree)} - {name}
        for name, tree in TREES.items()
    }
    assert _circle(modules) is None
    for package in PACKAGES:
        children = _children(package)
        above = {
            child: {
                other
                for name, imports in modules.items()
                if _inside(name, child)
                for other in children
                if other != child and any(_inside(module, other) for module in imports)
            }
            for child in children
        }
        assert _circle(above) is None, f"inside {package}"


def _inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _circle(graph: Mapping[str, Iterable[str]]) -> list[str] | None:
    """Nodes each of which leads to the next and the last to the first, or None."""
    done: set[str] = set()

    def follow(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for other in sorted(graph.get(node, ())):
            if found := follow(other, [*path, node]):
                return found
        done.add(node)
        return None

    for start in sorted(graph):
        if found := follow(start, []):
            return found
    return None


def test_a_circle_would_be_found() -> None:
    assert _circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
    assert _circle({"a": ["b", "c"], "b": ["c"], "c": []}) is None
