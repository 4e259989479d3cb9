"""Numbers in, figures and verdicts out. Pure."""
