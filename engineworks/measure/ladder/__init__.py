"""`precisions: auto`: which candidate of the ladder of precisions is chosen, and why."""
