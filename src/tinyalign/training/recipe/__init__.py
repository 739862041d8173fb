"""Everything that decides a run: settings, their checks, YAML, and the data they name."""

from __future__ import annotations

from tinyalign.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "DataArgs": "tinyalign.training.recipe.data",
        "DataSource": "tinyalign.training.recipe.data",
        "MemoryArgs": "tinyalign.training.recipe.memory",
        "MixturePart": "tinyalign.training.recipe.data",
        "ModelArgs": "tinyalign.training.recipe.model",
        "RECIPE_ONLY": "tinyalign.training.recipe.data",
        "Recipe": "tinyalign.training.recipe.recipe",
        "Tracker": "tinyalign.training.recipe.recipe",
    },
    old={
        "DataFormat": "tinyalign.vocabulary:DataFormat",
        "KeyKind": "tinyalign.vocabulary:KeyKind",
        "CompressArgs": "tinyalign.training.recipe.memory:PerceiverTraining",
        "Control": "tinyalign.vocabulary:Control",
    },
)
