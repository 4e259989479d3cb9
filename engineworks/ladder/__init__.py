"""`precisions: auto`: which rung of the ladder of precisions is chosen, and why."""

from engineworks.ladder.ladder import Rung, TargetLadder, climb, ladder_from_json, ladder_words

__all__ = ["Rung", "TargetLadder", "climb", "ladder_from_json", "ladder_words"]
