"""`docs/security.md` says what the catalogue says, about each algorithm and about no other."""

import pathlib
import re

import pytest

from tdn_interop.algo.catalogue import CATALOGUE

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "security.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|^Why|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_every_algorithm_has_a_section():
    assert list(SECTIONS) == list(CATALOGUE)


@pytest.mark.parametrize("spec", CATALOGUE.values(), ids=CATALOGUE.keys())
def test_roles_and_limits_are_those_of_the_catalogue(spec):
    section = SECTIONS[spec.id]
    assert re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", section, re.MULTILINE) == [
        (role, *texts) for role, texts in spec.leakage.items()
    ]
    assert re.findall(r"^- (.+)\n  (.+)$", section, re.MULTILINE) == list(spec.limits)


def test_security_models_are_explained():
    for spec in CATALOGUE.values():
        assert f"`{spec.security_model.id}`" in PAGE
        for text in spec.security_model.text:
            assert text in PAGE
