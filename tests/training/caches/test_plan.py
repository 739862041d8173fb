"""What "auto" chooses, and that a run keeps to it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyalign.data.readers import open_dataset
from tinyalign.data.sample import ImageRef
from tinyalign.errors import ConfigError, DataError
from tinyalign.model.backbones.vision import VisionEncoder
from tinyalign.training.caches.choice import choose_source, plan_run
from tinyalign.training.caches.features import FeatureCache, LiveFeatures
from tinyalign.training.caches.pixels import PixelCache
from tinyalign.training.caches.plan import CacheNeed, CacheProbe, free_bytes, measure, plan_cache
from tinyalign.training.recipe.recipe import Recipe
from tinyalign.training.recipe.stage import StageArgs
from tinyalign.training.run import train
from tinyalign.training.run_folder import CACHE_NOTE, RunFolder

GB = 10**9
NEED = CacheNeed(
    images=10_000,
    passes=3,
    trains_vision=False,
    feature_bytes=64_000,
    pixel_bytes=150_000,
    free_bytes=100 * GB,
)
PROBE = CacheProbe(decode=0.005, tower=0.02)


def test_features_are_kept_where_they_fit() -> None:
    plan = plan_cache(NEED, PROBE)
    features, pixels, none = plan.options
    assert plan.chosen == "features"
    assert none.total_seconds == pytest.approx(3 * 10_000 * 0.025)
    assert features.new_bytes == 10_000 * 64_000
    assert features.build_seconds == pytest.approx(10_000 * 0.025)
    assert features.total_seconds == pytest.approx(250 + 3 * 10_000 * 64_000 / 0.5e9)
    assert pixels.build_seconds == pytest.approx(10_000 * 0.005)
    assert "saves about" in plan.reason


def test_pixels_where_features_do_not_fit_or_the_tower_is_trained() -> None:
    large = replace(NEED, feature_bytes=8_000_000)
    assert plan_cache(large, PROBE).chosen == "pixels"
    trained = plan_cache(replace(NEED, trains_vision=True), PROBE)
    assert trained.chosen == "pixels"
    assert "change at every step" in trained.options[0].refused


def test_none_where_nothing_fits_or_one_pass_would_not_pay() -> None:
    full = plan_cache(replace(NEED, free_bytes=GB), PROBE)
    assert full.chosen == "none"
    assert "50% of the 1.0 GB free" in full.reason
    assert plan_cache(replace(NEED, trains_vision=True, passes=1), PROBE).chosen == "none"


def test_one_pass_keeps_features_for_later_runs_where_reading_is_cheap() -> None:
    assert plan_cache(replace(NEED, passes=1), PROBE).chosen == "features"
    slow_to_read = replace(NEED, passes=1, feature_bytes=4_000_000, free_bytes=1000 * GB)
    assert plan_cache(slow_to_read, PROBE).chosen != "features"


def test_what_is_there_already_costs_nothing_to_build() -> None:
    plan = plan_cache(replace(NEED, features_there=1.0, free_bytes=0), PROBE)
    assert plan.chosen == "features"
    assert plan.options[0].new_bytes == 0


@given(
    st.builds(
        CacheNeed,
        images=st.integers(1, 10**6),
        passes=st.floats(0.1, 20),
        trains_vision=st.booleans(),
        feature_bytes=st.integers(1, 10**7),
        pixel_bytes=st.integers(1, 10**7),
        free_bytes=st.integers(0, 10**13),
        features_there=st.floats(0, 1),
        pixels_there=st.floats(0, 1),
    ),
    st.builds(CacheProbe, decode=st.floats(1e-5, 1), tower=st.floats(1e-5, 1)),
)
def test_what_is_chosen_fits_and_is_never_much_dearer_than_nothing(need, probe) -> None:
    plan = plan_cache(need, probe)
    chosen = next(option for option in plan.options if option.kind == plan.chosen)
    assert not chosen.refused
    assert chosen.new_bytes <= need.free_bytes
    assert chosen.total_seconds <= 1.05 * plan.options[-1].total_seconds * (1 + 1e-9)
    assert len(plan.lines()) == 4


def test_free_room_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") > 0


def test_a_probe_times_what_can_be_read(tiny_vision_dir: Path, pairs: Path) -> None:
    encoder = VisionEncoder.load(tiny_vision_dir)
    images = [sample.images[0] for sample in open_dataset(pairs)]
    gone = ImageRef(path="gone.png")
    probe = measure(encoder, [gone, *images])
    assert probe.decode > 0
    assert probe.tower > 0
    with pytest.raises(DataError, match="none of 1 images"):
        measure(encoder, [gone])


# --------------------------------------------------------------------------------------- in a run


def source(recipe: Recipe, folder: Path, encoder: VisionEncoder):
    return choose_source(recipe, folder / CACHE_NOTE, Path(recipe.data.cache_folder), encoder)


def test_a_recipe_is_counted_with_its_memory_and_epochs(recipe, tiny_vision_dir, tmp_path):
    encoder = VisionEncoder.load(tiny_vision_dir)
    plan = plan_run(recipe, tmp_path, encoder)
    features = plan.options[0]
    row = FeatureCache(tmp_path, encoder, "float32").row_bytes
    assert features.new_bytes == (24 + 6) * row  # held-out images too
    FeatureCache(tmp_path, encoder, "float32").cover(open_dataset(recipe.data.pretrain.path))
    FeatureCache(tmp_path, encoder, "float32").cover(open_dataset(recipe.data.pretrain_eval.path))
    again = plan_run(recipe, tmp_path, encoder)
    assert again.chosen == "features"
    assert again.options[0].new_bytes == 0


def test_auto_is_decided_once_and_noted(recipe, tiny_vision_dir, tmp_path):
    encoder = VisionEncoder.load(tiny_vision_dir)
    assert recipe.data.cache == "auto"
    assert isinstance(source(recipe, tmp_path, encoder), FeatureCache)
    note = tmp_path / CACHE_NOTE
    assert json.loads(note.read_text())["chosen"] == "features"
    note.write_text(json.dumps({"chosen": "pixels"}))
    assert isinstance(source(recipe, tmp_path, encoder), PixelCache)
    named = replace(recipe, data=replace(recipe.data, cache="none"))
    assert isinstance(source(named, tmp_path, encoder), LiveFeatures)


@pytest.mark.slow
def test_auto_gives_the_model_that_features_give(recipe: Recipe, tmp_path: Path) -> None:
    chosen = train(recipe)
    named = replace(
        recipe, data=replace(recipe.data, cache="features"), output=str(tmp_path / "named")
    )
    expected = train(named)
    weights = [next(run.model.glob("*.safetensors")).read_bytes() for run in (chosen, expected)]
    assert weights[0] == weights[1]


def reopened(recipe: Recipe, cache: str) -> None:
    RunFolder(replace(recipe, data=replace(recipe.data, cache=cache))).open_stage("pretrain", True)


@pytest.mark.parametrize("began", ["auto", "features"])
def test_a_run_goes_on_with_the_cache_it_began_with(recipe: Recipe, began: str) -> None:
    reopened(recipe, began)
    note = RunFolder(recipe).path / CACHE_NOTE
    if began == "auto":
        note.write_text(json.dumps({"chosen": "features"}))  # as the run would
    (RunFolder(recipe).stage("pretrain") / "metrics.jsonl").write_text('{"step": 1}\n')
    for again in ("features", "auto", "features"):
        reopened(recipe, again)
        with pytest.raises(ConfigError, match=r"data\.cache features -> none"):
            reopened(recipe, "none")
    assert json.loads(note.read_text())["chosen"] == "features"


def test_starting_over_decides_anew(two_stage_recipe: Recipe) -> None:
    folder = RunFolder(two_stage_recipe)
    folder.open_stage("pretrain", resume=True)
    note = folder.path / CACHE_NOTE
    note.write_text(json.dumps({"chosen": "features"}))
    folder.open_stage("pretrain", resume=True)
    folder.open_stage("finetune", resume=False)
    assert note.is_file()
    folder.open_stage("pretrain", resume=False)
    assert not note.is_file()


def test_a_trained_tower_takes_pixels_but_no_features(recipe: Recipe) -> None:
    trained = replace(
        recipe,
        memory=replace(recipe.memory, k=0),
        pretrain=StageArgs(vision="full"),
    )
    with pytest.raises(ConfigError, match="pixels or none"):
        replace(trained, data=replace(trained.data, cache="features"))
