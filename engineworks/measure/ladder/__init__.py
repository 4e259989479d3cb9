"""`precisions: auto`: which rung of the ladder of precisions is chosen, and why."""
