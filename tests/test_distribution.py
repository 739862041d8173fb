"""What `make dist` makes: the source archive and the wheel, looked into and run."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.metadata import Metadata

import tinyalign

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "tinyalign"
pytestmark = pytest.mark.slow  # builds, and starts interpreters


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Run a command with `path` and nothing else as PYTHONPATH; its standard output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both archives, built as `make dist` does; the wheel comes from the other."""
    for tool in ("build", "hatchling"):
        try:
            metadata.version(tool)  # a folder named build would import, too
        except metadata.PackageNotFoundError:
            pytest.skip(f"{tool} is not installed; it comes with the dev extra")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def in_wheel(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def in_sdist(dist: Path) -> set[str]:
    """Files of the source archive, without the folder that holds them all."""
    (found,) = dist.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = [member.name for member in archive if member.isfile()]
    tops = {name.partition("/")[0] for name in names}
    assert tops == {f"tinyalign_vlm-{tinyalign.__version__}"}
    return {name.partition("/")[2] for name in names}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own; what it depends on stays where it is."""
    if find_spec("pip") is None:
        pytest.skip("this environment has no pip")
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    run(*pip, "--target", target, wheel, cwd=target)
    return target


def test_the_wheel_holds_the_whole_package(in_wheel: list[str]):
    ours = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in in_wheel if name.startswith("tinyalign/")} == ours
    assert "tinyalign/py.typed" in ours
    for pattern in ("recipes/*.yaml", "recipes/accelerate/*.yaml", "serving/browse/assets/*"):
        assert list(PACKAGE.glob(pattern)), f"nothing is named {pattern} any more"


def test_the_wheel_holds_nothing_else(in_wheel: list[str]):
    """No tests, no benchmarks: they would land beside other people's packages."""
    tops = {name.partition("/")[0] for name in in_wheel}
    assert tops == {"tinyalign", f"tinyalign_vlm-{tinyalign.__version__}.dist-info"}


def test_the_wheels_metadata_is_what_an_index_accepts(wheel: Path, in_wheel: list[str]):
    (name,) = (each for each in in_wheel if each.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        found = Metadata.from_email(archive.read(name), validate=True)
    assert found.name == "tinyalign-vlm"
    assert str(found.version) == tinyalign.__version__
    assert found.license_expression == "Apache-2.0"
    assert found.description_content_type == "text/markdown"
    assert found.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert name.replace("METADATA", "licenses/LICENSE") in in_wheel


def test_the_source_archive_holds_what_one_needs_to_work_on_it(in_sdist: set[str]):
    wanted = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"}
    wanted |= {"SECURITY.md", "Makefile", "pyproject.toml", "constraints.txt", ".ci/run"}
    wanted |= {"requirements-packaged.txt", ".pre-commit-config.yaml"}
    wanted |= {".github/workflows/test.yml"}
    for folder in ("src", "tests", "docs", "benchmarks"):
        files = [each for each in (ROOT / folder).rglob("*") if each.is_file()]
        kept = {each.relative_to(ROOT).as_posix() for each in files if each.suffix != ".pyc"}
        assert kept
        wanted |= kept
    assert wanted - in_sdist == set()


def test_the_source_archive_holds_no_leavings(in_sdist: set[str]):
    """Its top level is that of the checkout; no environment, run or cache of ours goes out."""
    allowed = {"src", "tests", "docs", "benchmarks", ".ci", ".github"}
    assert {name.partition("/")[0] for name in in_sdist if "/" in name} == allowed
    assert [name for name in in_sdist if name.endswith(".pyc")] == []


def test_the_installed_wheel_is_what_runs(installed: Path, tmp_path: Path):
    code = "import tinyalign; print(tinyalign.__file__); print(tinyalign.__version__)"
    file, version = run(sys.executable, "-c", code, cwd=tmp_path, path=installed).splitlines()
    assert Path(file) == installed / "tinyalign" / "__init__.py"
    assert version == tinyalign.__version__


def test_the_installed_command_says_its_version(installed: Path, tmp_path: Path):
    command = installed / "bin" / "tinyalign"
    if not command.is_file():
        pytest.skip("pip puts commands elsewhere on this system")
    said = run(command, "--version", cwd=tmp_path, path=installed)
    assert said.strip() == f"tinyalign {tinyalign.__version__}"


def test_the_installed_command_finds_its_recipes(installed: Path, tmp_path: Path):
    listed = run(sys.executable, "-m", "tinyalign", "recipes", "list", cwd=tmp_path, path=installed)
    for recipe in PACKAGE.glob("recipes/*.yaml"):
        assert recipe.stem in listed
