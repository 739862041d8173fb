"""What an import brings in: little by itself, our models once transformers has its Auto classes,
and old module paths with the new one named."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import warnings

import pytest

from tinyalign.cli.front.app import VERBS
from tinyalign.old_paths import MOVED, RENAMED

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "pandas",
    "datasets",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "accelerate",
    "PIL",
    "matplotlib",
    "faiss",
    "pymilvus",
    "starlette",
    "uvicorn",
    "jinja2",
    "tensorboard",
)
"""What no help page needs; each takes a tenth of a second or far more."""


def run(code: str, *words: str) -> str:
    """The output of Python code in a process of its own."""
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------ a fast start

HELP = """
import io, json, sys
from contextlib import redirect_stdout
heavy = json.loads(sys.argv[1])
found = {}
from tinyalign.cli import main
for verb in json.loads(sys.argv[2]):
    with redirect_stdout(io.StringIO()):
        assert main([*verb.split(), "--help"]) == 0, verb
    if loaded := sorted(set(heavy) & sys.modules.keys()):
        print(json.dumps([verb, loaded]))
        break
"""


@pytest.mark.slow  # a process of its own
def test_no_help_page_imports_a_heavy_module() -> None:
    verbs = ["", *sorted({verb.split()[0] for verb in VERBS if " " in verb}), *VERBS]
    assert run(HELP, json.dumps(HEAVY), json.dumps(verbs)) == ""


@pytest.mark.slow  # a process of its own
def test_importing_tinyalign_imports_no_heavy_module_and_no_argument_parser() -> None:
    code = "import sys, tinyalign\nprint(sorted(set(sys.argv[1:]) & sys.modules.keys()))"
    assert run(code, *HEAVY, "jsonargparse", "rich", "yaml") == "[]\n"


@pytest.mark.slow  # a process of its own
def test_the_check_of_help_pages_would_see_a_heavy_module() -> None:
    assert json.loads(run("import numpy\n" + HELP, json.dumps(HEAVY), '["ask"]')) == [
        "ask",
        ["numpy"],
    ]


@pytest.mark.slow  # a process of its own
def test_answering_a_question_imports_no_trainer() -> None:
    code = (
        "import sys, tinyalign.serving.load, tinyalign.serving.ask\n"
        "print([n for n in sys.modules if n.startswith('tinyalign.training')])\n"
        "print('transformers.trainer' in sys.modules)"
    )
    assert run(code) == "[]\nFalse\n"


# ------------------------------------------------------------------------- transformers finds ours

ORDERS = {
    "ours first": "import tinyalign",
    "ours last": "from transformers import AutoModelForImageTextToText\nimport tinyalign",
    "theirs half": "import transformers\nimport tinyalign",
    "a pipeline after": "import tinyalign\nfrom transformers import pipeline",
    "a pipeline before": "from transformers import pipeline\nimport tinyalign",
    "a tokenizer between": "import tinyalign\nfrom transformers import AutoTokenizer",
    "their processor": "import tinyalign\nfrom transformers import AutoProcessor",
    "our model itself": "from tinyalign.model.modeling import TinyAlignModel",
    "our tower": "from tinyalign.model.backbones.vision import VisionEncoder",
    "our processor": "from tinyalign.model.processing import TinyAlignProcessor",
    "our trainer": "from tinyalign.training.loop.trainer import TinyAlignTrainer",
}
FOUND = """
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
config = AutoConfig.for_model("tinyalign")
assert type(config) in AutoModelForImageTextToText._model_mapping
assert type(config) in AutoModel._model_mapping
assert PROCESSOR_MAPPING[type(config)].__name__ == "TinyAlignProcessor"
for name in ("tinyalign_perceiver", "efficientnet_lite"):
    assert type(AutoConfig.for_model(name)) in AutoModel._model_mapping
"""


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.slow  # processes of their own
def test_transformers_finds_our_models_whatever_is_imported_first(order: str) -> None:
    run(ORDERS[order] + FOUND)


# --------------------------------------------------------------------------------------- old paths


@pytest.mark.parametrize("old", MOVED)
def test_an_old_module_path_names_the_new_one_and_is_it(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"^{old} is now called {MOVED[old]};"):
        module = importlib.import_module(old)
    new = importlib.import_module(MOVED[old])
    public = [name for name in vars(new) if not name.startswith("_")]
    assert public
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all(getattr(module, name) is getattr(new, name) for name in public)


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_names_the_new_one_and_is_it(old: str) -> None:
    path, _, name = old.rpartition(".")
    module, _, now = RENAMED[old].partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        holder = importlib.import_module(path)
    with pytest.warns(DeprecationWarning, match=f"^{old} is now called {module}.{now};"):
        assert getattr(holder, name) is getattr(importlib.import_module(module), now)


PACKAGES = {
    "tinyalign.training.recipe": ("Recipe", "CompressArgs"),
    "tinyalign.training.estimate": ("estimate", None),
    "tinyalign.memory.bank": ("MemoryBank", "COMPRESSOR"),
    "tinyalign.memory.keys": ("NOISE_FLOOR", "KeyFunction"),
    "tinyalign.memory.search": ("ExactSearch", None),
    "tinyalign.memory.milvus": ("MilvusIndex", None),
    "tinyalign.data.readers.shards": ("find_shards", None),
    "tinyalign.evaluation.controls": ("ShuffledBank", None),
    "tinyalign.training.batches": ("EvaluationBatches", None),
    "tinyalign.model.connectors": ("MLPConnector", "CONNECTORS"),
    "tinyalign.model.perceiver": ("PerceiverNetwork", "PerceiverCompressor"),
}


@pytest.mark.parametrize("path", PACKAGES)
def test_what_was_a_module_and_is_a_package_hands_on_what_it_had(path: str) -> None:
    module, (kept, renamed) = importlib.import_module(path), PACKAGES[path]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert getattr(module, kept) is not None
    if renamed is not None:
        with pytest.warns(DeprecationWarning, match=f"^{path}.{renamed} is now called"):
            assert getattr(module, renamed) is not None
    with pytest.raises(AttributeError, match="no attribute 'never_was'"):
        _ = module.never_was


def test_a_module_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("tinyalign.training.never_was")


def test_an_old_path_has_no_more_than_the_new_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = importlib.import_module("tinyalign.training.workshop")
    with pytest.raises(AttributeError, match="nothing"):
        _ = old.nothing


def test_the_door_hands_on_what_it_names() -> None:
    import tinyalign

    assert all(getattr(tinyalign, name) is not None for name in tinyalign.__all__)
    assert "MemoryBank" in dir(tinyalign)
