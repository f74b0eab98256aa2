"""Documentation that follows from the code says what the code says."""

import pathlib
import re
import runpy
import subprocess
import sys
import tomllib

import pytest

from tdn_interop.reasons import Reason

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_generated_pages_are_up_to_date():
    for path, text in runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]().items():
        assert path.read_text("utf-8") == text, f"{path.name} is out of date, run `make gen`"


def test_the_error_page_has_every_reason_in_both_languages():
    page = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")
    for reason in Reason:
        row = reason.value
        assert f"## {reason.name}\n" in page
        assert f"| {row.number} | {row.status} |" in page
        for sentence in (*row.summary, *row.advice):
            assert sentence in page


@pytest.mark.parametrize("script", ["proto/generate.py", "docs/generate.py"])
def test_generated_files_are_checked(script):
    done = subprocess.run(
        [sys.executable, script, "--check"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def dependencies(heading):
    page = (ROOT / "docs" / "design" / "dependencies.md").read_text("utf-8")
    part = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([\w-]+) \| (.+) \|$", part, re.MULTILINE)
    return {name: why for name, why in rows if name != "package"}


def names(requirements):
    return {re.match(r"[\w-]+", text)[0] for text in requirements}


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(dependencies("Needed to run")) == names(project["dependencies"])
    optional = project["optional-dependencies"]
    assert set(dependencies("Needed to test and to generate")) == names(optional["test"])
    for extra in set(optional) - {"test"}:
        assert set(dependencies(f"Needed for [{extra}]")) == names(optional[extra])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        found = page if not file else (page.parent / file).resolve()
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text("utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


def slug(heading):
    """The anchor a Markdown renderer makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_make_target_explains_itself():
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split())
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    explained = set(re.findall(r"^([a-z-]+):.*## .+$", makefile, re.MULTILINE))
    assert targets == explained
    assert targets <= phony
