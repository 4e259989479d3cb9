"""docs/recipe-reference.md: every key of a recipe with its type, default, meaning and an example. From the schema."""

from __future__ import annotations

from collections.abc import Iterator

from engineworks.commands.manual.schema_tables import key_rows, markdown_table
from engineworks.recipe.metric import METRIC_KINDS
from engineworks.recipe.schema import recipe_schema

SECTIONS = {
    "Recipe": "A recipe",
    "Model": "model",
    "Decoder": "model.decoder",
    "Source": "model.source",
    "Input": "inputs.NAME",
    "Data": "data",
    "Evaluation": "data.evaluation",
    "Samples": "data.calibration",
    "Mixture": "mixtures.NAME",
    "Calibration": "calibration",
    "Accuracy": "accuracy",
    **{kind.__name__: f"accuracy.metric: {key}" for key, kind in METRIC_KINDS.items()},
    "Limits": "accuracy.limits.PRECISION",
    "Performance": "performance",
    "Budget": "performance.budget.SHAPE",
    "Sweep": "performance.sweep",
    "ServingOptions": "performance.serving",
    "ServedLoad": "performance.serving.load",
    "Regression": "performance.regression",
    "Release": "release",
    "Triton": "release.triton",
    "DynamicBatching": "release.triton.dynamic_batching",
    "Waiver": "waivers",
    "TimeLimits": "time_limits",
}
"""Parts of the schema, in the order of a recipe, and their places in one."""

HEADINGS = ("key", "type", "default", "meaning", "example")

ABOUT = """\
# Recipe reference

Generated from `recipes/recipe.schema.json`; `engineworks manual` writes it anew. With the
first line `# yaml-language-server: $schema=recipe.schema.json` an editor says the same while you type.

- Unknown keys are refused. Mappings of `_defaults.yaml` beside the recipe lie underneath: they merge key by key, and
  everything else is replaced as a whole.
- Files are relative to the recipe and lie in the repository or in a folder of `ENGINEWORKS_DATA_ROOTS`.
- *name*: `a-z 0-9 . _ -`, beginning with a letter or digit. *dimension*: a word like `batch`. *by name*: a mapping
  whose keys are names of your own. *list of*: `[a, b]`.
- Of `accuracy.limits` and `performance.budget` every key that is given is one check: [gates.md](gates.md).
"""


def recipe_reference() -> str:
    """Return the page. A part of the schema without a section would be missing here; a test counts them."""
    schema = recipe_schema()
    parts = {"Recipe": schema, **schema["$defs"]}
    return "\n".join((ABOUT, *_sections(parts)))


def _sections(parts: dict[str, dict[str, object]]) -> Iterator[str]:
    for name, heading in SECTIONS.items():
        part = parts[name]
        description = "" if name == "Recipe" else str(part.get("description", ""))
        rows = key_rows(part, SECTIONS)
        yield f"## {heading}\n\n{description + chr(10) * 2 if description else ''}{markdown_table(HEADINGS, rows)}\n"
