"""The parts of docs/ that are generated: from the schemas of recipes and targets, and the table of capabilities."""
