"""What a release is made with: the workflows call targets of the Makefile, links are checked."""

import importlib.util
import re
import subprocess
import sys

import pytest
from programs import ROOT

import mcr_fast

if not (ROOT / "Makefile").is_file():
    pytest.skip("the source tree is not here", allow_module_level=True)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
WORKFLOW_IDS = [path.name for path in WORKFLOWS]


def targets() -> set[str]:
    return {
        name
        for names in re.findall(r"^([a-z][a-z0-9 -]*):(?!=)", MAKEFILE, re.MULTILINE)
        for name in names.split()
    }


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=WORKFLOW_IDS)
def test_workflows_call_targets(workflow):
    commands = re.findall(r"^ +- run: (.*)$", workflow.read_text(encoding="utf-8"), re.MULTILINE)
    assert commands
    for command in commands:
        words = re.sub(r"\w+=\".*\"|#.*", "", command).split()
        assert words[0] == "make", command
        assert set(words[1:]) <= targets(), command


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=WORKFLOW_IDS)
def test_workflows_may_little(workflow):
    text = workflow.read_text(encoding="utf-8")
    assert "\npermissions: {}\n" in text
    assert set(re.findall(r"^ {6}([\w-]+: (?:read|write))", text, re.MULTILINE)) <= {
        *("contents: read", "id-token: write"),
    }
    assert text.count("id-token: write") == text.count("environment: release")
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
    assert "secrets." not in text
    for action in re.findall(r"uses: (\S+)", text):
        assert re.fullmatch(r"[\w/-]+@v\d+\.\d+\.\d+", action)


def test_changelog_has_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.*)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)
    assert versions[0] == ("Unreleased", "")
    newest, date = versions[1]
    assert newest == mcr_fast.__version__
    assert date


def test_release_check_knows_its_steps():
    script = (ROOT / ".ci/release-check").read_text(encoding="utf-8")
    steps = re.search(r"^all=\((.*)\)$", script, re.MULTILINE)[1].split()
    page = (ROOT / "docs/releasing.md").read_text(encoding="utf-8")
    assert steps == re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)
    assert set(steps) <= targets()


def test_release_check_stops_at_the_first_failure():
    """In a clone, whose time and result it prints."""
    done = subprocess.run(
        [ROOT / ".ci/release-check", "no-such-step", "lint"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Cloning" in done.stderr or "not a git repository" in done.stderr:
        pytest.skip("no repository to clone")
    assert done.returncode == 1
    assert re.search(r"no-such-step +\d+:\d\d  FAILED", done.stdout)
    assert "lint" not in done.stdout


def test_broken_links_are_found():
    pytest.importorskip("markdown_it", reason="make links installs it")
    spec = importlib.util.spec_from_file_location("check_links", ROOT / ".ci/check_links.py")
    links = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(links)
    page = ROOT / "README.md"
    assert links.why_broken(page, "docs/clusters.md#is-it-the-fast-path") is None
    assert links.why_broken(page, "docs/no-such-page.md") == "no such file"
    assert links.why_broken(page, "docs/clusters.md#no-such-heading") == "no such heading"
    assert links.why_broken(page, "../x.md") in ("no such file", "outside of the repository")
    assert links.slug("`exclude`, and what it's for") == "exclude-and-what-its-for"
    done = subprocess.run([sys.executable, ROOT / ".ci/check_links.py"], check=False)
    assert done.returncode == 0
