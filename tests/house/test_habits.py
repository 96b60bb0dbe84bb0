"""What helps others to join the project: workflows, hooks, forms and pages are up to date."""

from __future__ import annotations

import re
import subprocess

import pytest
from conftest import ROOT

import ddfm_fast

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.M))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path) -> dict:
    yaml = pytest.importorskip("yaml", reason="comes with the extras diffusers and docs")
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_contributing_is_short_and_has_the_map():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert "\n## The map\n" in text and "\n## Where do I add …\n" in text
    for page in (text, (ROOT / "tests" / "README.md").read_text(encoding="utf-8")):
        assert set(re.findall(r"`make ([a-z][a-z-]*)", page)) <= TARGETS


def test_make_prints_every_target_in_one_line():
    """Targets that are parts of others, such as quick-rooms, are not listed."""
    shown = re.findall(r'^\t@echo "make ([a-z-]+) ', MAKEFILE, re.M)
    assert len(shown) == len(set(shown))
    assert set(shown) == TARGETS - {"help", "quick-method", "quick-rooms"}
    phony = MAKEFILE.partition(".PHONY:")[2].partition("\n\n")[0].replace("\\", "").split()
    assert set(phony) == TARGETS


def test_workflows_call_make_on_every_system_and_python():
    jobs = {name: job for path in WORKFLOWS for name, job in load(path)["jobs"].items()}
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    made = {found[1] for line in commands if (found := re.match(r"make ([a-z-]+)", line))}
    assert {"check", "test-wheel"} <= made <= TARGETS
    matrix = jobs["quick"]["strategy"]["matrix"]
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"] == [f"3.{minor}" for minor in range(10, 15)]
    assert commands.count("bash .ci/run") == 2


def test_the_release_holds_tag_version_and_changelog_together(tmp_path):
    """The step is run as the workflow runs it, on a copy."""
    release = load(".github/workflows/release.yml")
    (check,) = (s["run"] for s in release["jobs"]["release"]["steps"] if "grep" in s.get("run", ""))
    (tmp_path / "ddfm_fast").mkdir()
    (tmp_path / "ddfm_fast" / "__init__.py").write_text('__version__ = "1.2.3"\n')

    def passes(tag: str, changelog: str) -> bool:
        (tmp_path / "CHANGELOG.md").write_text(changelog)
        command = ["bash", "-e", "-c", check]
        done = subprocess.run(command, cwd=tmp_path, env={"GITHUB_REF_NAME": tag, "PATH": PATH})
        return done.returncode == 0

    assert passes("v1.2.3", "## [1.2.3] - 2026-12-01\n")
    assert not passes("v1.2.3", "## [Unreleased]\n")
    assert not passes("v1.2.4", "## [1.2.4] - 2026-12-01\n")


PATH = "/usr/bin:/bin"


def test_the_hook_is_the_lint_of_make_check():
    (hook,) = load(".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert hook["entry"] == "make lint" and hook["pass_filenames"] is False
    assert re.search(r"^check:.*\n.* lint ", MAKEFILE, re.M)


def test_changelog_is_in_the_form_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.*)$", text, re.M)
    assert versions[0] == "[Unreleased]"
    for version in versions[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\]( - \d{4}-\d\d-\d\d)?", version), version
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= kinds


def test_forms_ask_for_the_machine_and_the_citation_has_the_version():
    form = load(".github/ISSUE_TEMPLATE/bug.yml")
    assert any("ddfm-fast doctor --json" in str(part) for part in form["body"])
    citation = load("CITATION.cff")
    assert citation["version"] == ddfm_fast.__version__
    assert citation["preferred-citation"]["year"] == 2023
    assert (ROOT / ".github" / "SECURITY.md").is_file()
