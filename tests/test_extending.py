"""Another package adds to every registry: the one that docs/extending.md shows, made from the page.

It is built and installed into a folder of its own, and processes use it that have it on their path.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinyalign
from tinyalign.data.formats import READERS
from tinyalign.data.readers import open_dataset
from tinyalign.data.templates import CHAT_TEMPLATES
from tinyalign.errors import ConfigError, TinyAlignError
from tinyalign.evaluation.benchmarks.registry import BENCHMARKS
from tinyalign.memory.keys.registry import KEY_FUNCTIONS
from tinyalign.model.forms import FUSIONS, IMAGE_CONNECTORS
from tinyalign.registry import Lazy, Registry

from .training.conftest import make_pairs

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
REGISTRIES = (FUSIONS, IMAGE_CONNECTORS, KEY_FUNCTIONS, READERS, BENCHMARKS, CHAT_TEMPLATES)
ADDED = {
    "tinyalign.fusions": "mean",
    "tinyalign.image_connectors": "one-token",
    "tinyalign.key_functions": "plain",
    "tinyalign.readers": "shelf",
    "tinyalign.benchmarks": "shelf",
    "tinyalign.chat_templates": "terse",
}


def write_package(folder: Path) -> None:
    """The files of the page's package: each block says in its first line which it is."""
    blocks = re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for name, text in blocks:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "shelf" / "__init__.py").touch()


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed into."""
    pytest.importorskip("hatchling", reason="builds the package; comes with the dev extra")
    source, target = tmp_path_factory.mktemp("shelf"), tmp_path_factory.mktemp("site")
    write_package(source)
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
        "--no-build-isolation", "--target", str(target), str(source),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=300)
    return target


def run(installed: Path, *words: object, folder: Path) -> str:
    """The output of `tinyalign WORDS` in a process that has the package."""
    source = Path(tinyalign.__file__).parents[1]
    path = os.pathsep.join((str(installed), str(source)))
    command = [sys.executable, "-m", "tinyalign", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda one: one.group)
def test_every_registry_is_on_the_page(registry: Registry) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert f"| `{registry.group}` |" in page
    assert f'[project.entry-points."{registry.group}"]\n{ADDED[registry.group]} = ' in page


@pytest.mark.slow  # builds a package, trains, evaluates
def test_a_model_of_another_packages_parts(
    installed: Path, tmp_path: Path, tiny_llm_dir: Path, tiny_vision_dir: Path
) -> None:
    pairs = json.loads(make_pairs(tmp_path, 12).read_text())
    lines = [f"{one['image']} | {one['conversations'][1]['value']}" for one in pairs]
    (tmp_path / "goods.shelf").write_text("\n".join(lines))
    asked = [
        {"id": one["id"], "image": one["image"], "question": "What is it?", "answer": "a dog"}
        for one in pairs[:4]
    ]
    (tmp_path / "shelf.json").write_text(json.dumps(asked))
    assert "12" in run(installed, "data", "validate", "goods.shelf", folder=tmp_path)
    (tmp_path / "recipe.yaml").write_text(f"""
model: {{language: {tiny_llm_dir}, vision: {tiny_vision_dir}, template: terse, dtype: float32,
  connector: one-token}}
data: {{pretrain: {{path: goods.shelf}}, cache_folder: cache, cache_dtype: float32}}
memory: {{k: 2, fusion: {{form: mean}}, key: {{kind: plain}},
  perceiver: {{min_steps: 1, max_steps: 2, batch_size: 4, vocab_size: 300, held_out: 0.2}}}}
pretrain: {{max_steps: 2, batch_size: 4}}
device: cpu
output: run
track: []
""")
    run(installed, "train", "--config", "recipe.yaml", folder=tmp_path)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (config["memory_fusion"], config["connector"]) == ("mean", "one-token")
    assert config["image_seq_length"] == 1
    info = json.loads(run(installed, "bank", "info", "run", "--json", folder=tmp_path))
    assert (info["key_kind"], info["key_dim"]) == ("plain", 32)
    judged = json.loads(
        run(
            installed, "evaluate", "--model", "run", "--bank", "run", "--benchmark", "shelf",
            "--data", "shelf.json", "--protocol", "plain", "--out", "judged", "--json",
            folder=tmp_path,
        )
    )  # fmt: skip
    assert judged["task"] == "shelf"
    assert judged["n"] == 4
    assert "accuracy" in judged["metrics"]


@pytest.mark.slow  # builds a package
def test_the_command_of_the_page_fits_its_parts(installed: Path, tmp_path: Path) -> None:
    """The recipe, the settings and the options that the page's last block uses go together."""
    block = PAGE.read_text(encoding="utf-8").rpartition("```bash")[2].partition("```")[0]
    [words] = re.findall(r"^tinyalign train (.*?)$", block.replace("\\\n", " "), re.MULTILINE)
    code = (
        "import shlex, sys\n"
        "from tinyalign.training.recipe.files import load_recipe\n"
        "from tinyalign.model.forms import FUSIONS\n"
        "words = shlex.split(sys.argv[1])\n"
        "words = ['--output' if word == '--out' else word for word in words]\n"
        "recipe = load_recipe(words[words.index('--config') + 1], words[2:])\n"
        "memory = recipe.memory\n"
        "print(memory.fusion.form, memory.fusion.args, memory.key.kind, recipe.model.connector)\n"
        "print(recipe.output, recipe.data.pretrain_eval, FUSIONS[memory.fusion.form].__name__)\n"
    )
    source = Path(tinyalign.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(installed), str(source)))}
    done = subprocess.run(
        [sys.executable, "-c", code, words], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["mean {} plain one-token", "runs/mine None Mean"]


@pytest.mark.slow  # builds a package
def test_without_the_package_the_error_says_what_is_missing(installed: Path) -> None:
    with pytest.raises(ConfigError, match=r"fusion form: expected one of width, sequence.*'mean'"):
        FUSIONS.check("mean")


# -------------------------------------------------------------------------------- by a call alone


@pytest.fixture
def registry() -> Registry[object]:
    """A registry with one thing of ours, that lives in the standard library."""
    return Registry("thing", "tinyalign.no-such-group", {"ours": Lazy("json:dumps")})


def test_ours_are_imported_when_they_are_asked_for(registry: Registry) -> None:
    assert list(registry) == ["ours"]
    assert registry["ours"] is json.dumps


def test_what_is_registered_is_found_and_may_be_replaced(registry: Registry) -> None:
    registry.register("theirs", 1)
    registry.register("theirs", 2)
    assert (registry["theirs"], list(registry)) == (2, ["ours", "theirs"])


@pytest.mark.parametrize("name", ["ours", ""])
def test_our_names_and_no_name_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(ConfigError, match="expected a name of its own"):
        registry.register(name, 1)


def test_hyphens_and_underscores_are_one(registry: Registry) -> None:
    registry.register("two-words", 1)
    assert registry["two_words"] == 1
    assert registry.check("two_words") == "two-words"


def test_a_name_that_is_no_text_is_refused_and_get_has_a_default(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="thing: expected one of ours, found None"):
        registry.check(None)
    assert registry.get("nobody's", 7) == 7
    assert registry.get("ours") is json.dumps


def test_an_unknown_name_lists_what_there_is_and_what_is_like_it(registry: Registry) -> None:
    with pytest.raises(
        ConfigError, match=r"thing: expected one of ours, found 'our'; did you mean 'ours'\?"
    ):
        registry["our"]


@pytest.fixture
def left_as_it_was():
    """What a test registers is gone after it."""
    before = [dict(registry._found) for registry in REGISTRIES]
    yield
    for registry, found in zip(REGISTRIES, before):
        registry._found.clear()
        registry._found.update(found)


@pytest.mark.usefixtures("left_as_it_was")
def test_the_calls_of_the_page(tmp_path: Path) -> None:
    tinyalign.register_fusion("mine", object)
    tinyalign.register_image_connector("mine", object)
    tinyalign.register_key_function("mine", len, len)
    tinyalign.register_reader("mine", lambda path, **options: [path], [".mine"])
    tinyalign.register_benchmark("mine", object)
    tinyalign.register_template("mine", "{{ messages }}")
    assert all("mine" in registry for registry in REGISTRIES)
    (tmp_path / "x.mine").touch()
    assert open_dataset(tmp_path / "x.mine") == [tmp_path / "x.mine"]


def test_an_entry_point_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    broken = EntryPoint("broken", "no_such_module_of_anyone:Thing", "tinyalign.things")
    monkeypatch.setattr("tinyalign.registry.entry_points", lambda group: [broken])
    registry: Registry[object] = Registry("thing", "tinyalign.things", {})
    assert list(registry) == ["broken"]
    with pytest.raises(TinyAlignError, match=r"announces it as no_such_module_of_anyone:Thing"):
        registry["broken"]
