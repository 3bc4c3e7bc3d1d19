"""The commands and code of the README and of the pages run, and their links lead somewhere."""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/guide.md",
        "docs/rules.md",
        "docs/rules_language.md",
        "docs/rules_exchange.md",
        "docs/scaling.md",
    ],
)
@pytest.mark.usefixtures("compiled_hastily")
def test_python_blocks_run(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    names = {"__name__": "page"}  # a block goes on where the one before ended
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_two_commands_set_everything_up() -> None:
    """One for the main job, one for the tests; ``.ci/run`` runs the latter as it stands here."""
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    (job,) = [line for line in commands if line.endswith("examples/rules_quickstart.py")]
    (tests,) = [line for line in commands if "pytest" in line]
    assert commands == [job, tests]
    assert (ROOT / "examples" / "rules_quickstart.py").is_file()


@pytest.mark.quick
def test_links_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert not broken


@pytest.mark.quick
def test_every_loss_is_in_the_table_of_losses() -> None:
    from distill_jax import losses

    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)", page, re.MULTILINE))
    assert named == set(losses.__all__)


def test_every_result_file_is_on_the_page_of_figures_with_its_command() -> None:
    page = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        command = rf"`python (examples|benchmarks)/{path.stem}\.py` \(`{path.name}`\)"
        assert re.search(command, page), f"{path.name} and its command are missing"
