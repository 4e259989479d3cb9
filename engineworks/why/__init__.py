"""Why two builds differ."""

from engineworks.why.why import Explanation, Side, explain

__all__ = ["Explanation", "Side", "explain"]
