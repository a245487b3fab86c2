"""The declared ranges exclude releases with known holes, and doctor holds to them."""

import re

import pytest
from packaging.version import Version
from tiny import ROOT

from lorafit.doctor.checks.packages import declared_requirements, package_in_range

# The last release that each of the holes named in SECURITY.md is in.
LAST_BAD = {"torch": "2.9.1", "pyyaml": "5.3.1", "jinja2": "3.1.5", "transformers": "5.2.0"}


@pytest.mark.parametrize(("package", "bad"), LAST_BAD.items())
def test_a_release_with_a_known_hole_is_out_of_range(package, bad):
    assert not declared_requirements()[package].specifier.contains(Version(bad))


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_doctor_says_so_when_one_is_installed(monkeypatch, package):
    monkeypatch.setattr("importlib.metadata.version", lambda name: LAST_BAD[package])
    outcome = package_in_range(package, None)
    assert outcome.status == "error"
    assert f"{package} {LAST_BAD[package]} is outside the supported range" in outcome.detail


def test_the_floors_in_the_security_policy_are_the_declared_ones():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \|", text, re.MULTILINE)
    assert len(rows) == len(LAST_BAD)
    for package, floor in rows:
        specifier = str(declared_requirements()[package.lower()].specifier)
        assert f">={floor}" in specifier.split(",")
