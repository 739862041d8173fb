"""What a public project owes its users: changes, citation, reports of faults, checks on a forge."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import tinyalign
from tinyalign.cli.bank.browse import LOOPBACK, BankBrowseArgs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def yaml_file(name: str) -> dict[Any, Any]:
    return yaml.safe_load(text(name))


def tracked() -> list[Path]:
    """The files that git carries."""
    command = ["git", "ls-files", "--cached", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


# --------------------------------------------------------------------------------------- changelog

KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def releases() -> dict[str, str]:
    """Heading of each release, newest first → what stands under it."""
    parts = re.split(r"^## (.+)$", text("CHANGELOG.md"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def dated() -> list[tuple[Version, date]]:
    headings = list(releases())
    assert headings[0] == "[Unreleased]", "the newest section is what no release holds yet"
    found = [re.fullmatch(r"\[(\S+)\] - (\d{4}-\d\d-\d\d)", line) for line in headings[1:]]
    assert all(found), f"expected `## [1.2.3] - 2001-02-03`, found {headings[1:]}"
    return [(Version(each[1]), date.fromisoformat(each[2])) for each in found if each]


def test_the_changelog_tells_what_the_current_version_brought():
    assert Version(tinyalign.__version__) in [version for version, _ in dated()]


def test_the_changelog_runs_from_new_to_old():
    assert dated() == sorted(dated(), reverse=True)


def test_the_changelog_sorts_entries_by_their_kind():
    for release, body in releases().items():
        parts = re.split(r"^### (.+)$", body, flags=re.MULTILINE)
        kinds = parts[1::2]
        assert set(kinds) <= KINDS, f"{release}: {kinds}"
        assert len(kinds) == len(set(kinds)), f"{release}: a kind stands there twice"
        for kind, entries in zip(kinds, parts[2::2]):
            assert re.match(r"\s*- \S", entries), f"{release}, {kind}: no entry"


# ---------------------------------------------------------------------------------------- citation


def cited() -> dict[str, str]:
    """The fields of README's BibTeX, each on one line and without braces."""
    entry = re.search(r"^```bibtex\n(.*?)^```", text("README.md"), re.MULTILINE | re.DOTALL)
    assert entry, "README shows no BibTeX"
    fields = re.findall(r"^  (\w+) = \{(.*?)\},?$", entry[1], re.MULTILINE | re.DOTALL)
    return {name: re.sub(r"[{}]", "", " ".join(value.split())) for name, value in fields}


def test_the_citation_is_of_this_version_under_this_licence():
    citation = yaml_file("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["version"] == tinyalign.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]


def test_the_citation_prefers_the_paper():
    paper = yaml_file("CITATION.cff")["preferred-citation"]
    assert paper["title"].startswith("TinyAlign: Boosting Lightweight Vision-Language Models")
    assert [each["value"] for each in paper["identifiers"]] == ["arXiv:2505.12884"]


def test_readme_and_citation_name_the_same_paper():
    paper, entry = yaml_file("CITATION.cff")["preferred-citation"], cited()
    assert entry["title"] == paper["title"]
    assert entry["booktitle"] == paper["collection-title"]
    assert entry["author"].split(" and ") == [
        f"{each['family-names']}, {each['given-names']}" for each in paper["authors"]
    ]
    assert entry["year"] == str(paper["year"])
    assert entry["pages"] == f"{paper['start']}--{paper['end']}"
    assert entry["url"] == paper["url"]
    assert entry["note"] == paper["identifiers"][0]["value"]
    assert "(CITATION.cff)" in text("README.md")


# ---------------------------------------------------------------------------------------- security

PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPACKERS = {"extractall", "unpack_archive"}


def unsafe(source: str) -> list[str]:
    """What in a module could run code or write files that a stranger's data brought along."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
            found += [f"line {node.lineno}: {name}" for name in names & PICKLERS]
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLERS:
            found.append(f"line {node.lineno}: {node.module}")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {each.arg: ast.unparse(each.value) for each in node.keywords if each.arg}
        if called == "torch.load" and given.get("weights_only") != "True":
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
            found.append(f"line {node.lineno}: {called}")
        if called.rpartition(".")[2] in UNPACKERS:
            found.append(f"line {node.lineno}: {called}")
        for option in ("trust_remote_code", "allow_pickle"):
            if given.get(option, "False") != "False":
                found.append(f"line {node.lineno}: {option}={given[option]}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(file)",
        "archive.extractall(folder)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "np.load(path, allow_pickle=wanted)",
    ],
)
def test_the_search_for_unsafe_code_finds_it(source: str):
    assert len(unsafe(source)) == 1


def test_strangers_files_are_read_by_nothing_that_runs_them():
    found = {
        str(path.relative_to(ROOT)): problems
        for path in sorted((ROOT / "src").rglob("*.py"))
        if (problems := unsafe(path.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_the_browse_page_listens_on_this_machine_alone():
    assert BankBrowseArgs(bank="bank").host in LOOPBACK


def test_faults_are_reported_in_private_and_the_current_version_gets_fixes():
    policy = text("SECURITY.md")
    assert "private vulnerability report" in policy
    major, minor = Version(tinyalign.__version__).release[:2]
    assert re.search(rf"^\| {major}\.{minor}\.x.*\| yes \|$", policy, re.MULTILINE)
    for subject in ("pickle", "trust_remote_code", "Images and archives", "loopback"):
        assert subject in policy, f"SECURITY.md does not speak of {subject}"


# -------------------------------------------------------------------------------------- pre-commit


def hooks() -> dict[str, dict[str, Any]]:
    """Hook id → its settings, with the repository and the version it comes in."""
    found = {}
    for repository in yaml_file(".pre-commit-config.yaml")["repos"]:
        origin = {"repo": repository["repo"], "rev": repository.get("rev")}
        found.update({hook["id"]: {**hook, **origin} for hook in repository["hooks"]})
    return found


def test_pre_commit_runs_the_ruff_that_is_pinned():
    pinned = [
        Requirement(line) for line in text("constraints.txt").splitlines() if line[:4] == "ruff"
    ]
    assert len(pinned) == 1
    for hook in ("ruff-check", "ruff-format"):
        assert f"=={hooks()[hook]['rev'].removeprefix('v')}" == str(pinned[0].specifier)


def test_pre_commit_looks_at_files_and_leaves_types_and_layers_to_make_lint():
    assert {"end-of-file-fixer", "check-added-large-files", "check-yaml"} <= set(hooks())
    assert hooks()["lint"]["repo"] == "local"
    assert hooks()["lint"]["entry"] == "make lint"
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", text("Makefile"), re.MULTILINE)
    assert recipe
    assert "mypy" in recipe[1]
    assert "importlinter" in recipe[1]


def test_no_file_is_larger_than_pre_commit_lets_in():
    (argument,) = hooks()["check-added-large-files"]["args"]
    limit = int(argument.removeprefix("--maxkb="))
    large = [path for path in tracked() if path.stat().st_size > limit * 1024]
    assert [str(path.relative_to(ROOT)) for path in large] == []


def test_text_files_end_as_pre_commit_leaves_them():
    left_alone = re.compile(hooks()["end-of-file-fixer"]["exclude"])
    wrong = []
    for path in tracked():
        name, data = path.relative_to(ROOT).as_posix(), path.read_bytes()
        if left_alone.match(name) or b"\0" in data or not data:
            continue
        if not data.endswith(b"\n") or data.endswith(b"\n\n"):
            wrong.append(name)
    assert wrong == []


# ---------------------------------------------------------------------------------------- workflow


def workflow() -> dict[Any, Any]:
    return yaml_file(".github/workflows/test.yml")


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def promised_pythons() -> list[str]:
    """From the oldest that pyproject.toml allows to the newest that the pins are for."""
    oldest = re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])
    newest = re.search(r"on Python 3\.\d+ to 3\.(\d+)", text("constraints.txt"))
    assert oldest
    assert newest
    return [f"3.{minor}" for minor in range(int(oldest[1]), int(newest[1]) + 1)]


def test_every_promised_python_runs_what_ci_runs():
    job = workflow()["jobs"]["test"]
    assert job["strategy"]["matrix"] == {"python": promised_pythons()}
    assert promised_pythons()[-1] == "3.13"
    (setup,) = (step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert setup["with"]["python-version"] == "${{ matrix.python }}"
    assert commands(job) == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").is_file()


@pytest.mark.parametrize("target", ["lint", "dist"])
def test_linters_and_archives_have_a_job_each(target: str):
    assert commands(workflow()["jobs"][target]) == [f"make {target}"]


def test_every_job_keeps_what_pip_fetched_until_the_pins_change():
    for name, job in workflow()["jobs"].items():
        (setup,) = (step for step in job["steps"] if "setup-python" in step.get("uses", ""))
        assert setup["with"]["cache"] == "pip", name
        depends = setup["with"]["cache-dependency-path"].split()
        assert depends == ["pyproject.toml", "constraints.txt", "requirements-packaged.txt"]
        assert all((ROOT / each).is_file() for each in depends)


def test_the_workflow_may_read_and_nothing_else():
    assert workflow()["permissions"] == {"contents": "read"}
    for name, job in workflow()["jobs"].items():
        assert "permissions" not in job, name
    assert "secrets." not in text(".github/workflows/test.yml")
    triggers = workflow().get("on", workflow().get(True))  # YAML 1.1 reads `on` as true
    assert set(triggers) == {"push", "pull_request"}


def test_actions_are_named_by_their_major_version():
    used = [
        step["uses"]
        for job in workflow()["jobs"].values()
        for step in job["steps"]
        if "uses" in step
    ]
    assert used
    for action in used:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", action), action


# ------------------------------------------------------------------------------------------ builds


def test_make_help_lists_every_target():
    phony = re.search(r"^\.PHONY: (.+)$", text("Makefile"), re.MULTILINE)
    assert phony
    shown = set(re.findall(r'@echo "make ([a-z-]+) ', text("Makefile")))
    assert shown == set(phony[1].split()) - {"help"}


def test_make_dist_builds_with_the_pinned_tools():
    """The tools are of the extra `dev`; without isolation none is fetched beside them."""
    recipe = re.search(r"^dist:.*\n((?:\t.*\n)+)", text("Makefile"), re.MULTILINE)
    assert recipe
    assert "-m build --no-isolation" in recipe[1]
    dev = {Requirement(line).name for line in PROJECT["optional-dependencies"]["dev"]}
    assert {"build", "hatchling"} <= dev


def test_the_package_says_that_it_is_typed():
    assert (Path(tinyalign.__file__).parent / "py.typed").read_bytes() == b""
