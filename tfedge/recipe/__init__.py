"""Recipes: say what you have and what may be lost; leave with files and a report.

The way through::

    recipe = load_recipe("recipe.yaml")          # or Recipe(model=…, data=…, stages="prune80_w8a8")
    report = run(recipe, "runs/first")           # recipe.yaml report.html model_*.tflite

A recipe is a model, data, stages with their settings, modes of conversion, a metric and a budget.
`run` is the only loop: propose, apply, evaluate, accept or roll back. Importing this package loads
no TensorFlow; `run` does.
"""

from typing import TYPE_CHECKING, Any

from tfedge.recipe.reading import as_recipe, json_schema, load_recipe, to_yaml
from tfedge.recipe.settings import DataSource, Limits, Recipe, Training
from tfedge.recipe.steps import Plan, Step, named

if TYPE_CHECKING:
    from tfedge.recipe.loop import run

__all__ = [
    "DataSource",
    "Limits",
    "Plan",
    "Recipe",
    "Step",
    "Training",
    "as_recipe",
    "json_schema",
    "load_recipe",
    "named",
    "run",
    "to_yaml",
]


def __getattr__(name: str) -> Any:
    if name != "run":
        raise AttributeError(f"module 'tfedge.recipe' has no attribute {name!r}")
    from tfedge.recipe.loop import run

    return run
