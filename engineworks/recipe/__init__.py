"""What a recipe says: read from YAML, checked with places, and its shorthand spelled out."""

from engineworks.recipe.recipe import (
    AS_IS,
    CALIBRATED,
    FLOATS,
    FORMATS,
    PRECISIONS,
    Accuracy,
    Budget,
    DynamicBatching,
    Limits,
    Name,
    Part,
    Recipe,
    Regression,
    Triton,
    Waiver,
)

__all__ = [
    "AS_IS",
    "Accuracy",
    "Budget",
    "CALIBRATED",
    "DynamicBatching",
    "FLOATS",
    "FORMATS",
    "Limits",
    "Name",
    "PRECISIONS",
    "Part",
    "Recipe",
    "Regression",
    "Triton",
    "Waiver",
]
