"""The version that is served now, which a candidate is held against."""

from engineworks.champion.champion import NONE, Champion, Champions, champion_from_json

__all__ = ["Champion", "Champions", "NONE", "champion_from_json"]
