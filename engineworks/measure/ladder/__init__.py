"""`precisions: auto`: which candidate of the precision ladder is chosen, and why."""
