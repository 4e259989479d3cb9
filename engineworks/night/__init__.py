"""What a night of builds came to: chosen recipes, summary, metrics."""

from engineworks.night.night import (
    Chosen,
    RecipeNight,
    choose_recipes,
    count_words,
    lines_of,
    night_of_result,
    night_without_result,
)

__all__ = [
    "Chosen",
    "RecipeNight",
    "choose_recipes",
    "count_words",
    "lines_of",
    "night_of_result",
    "night_without_result",
]
