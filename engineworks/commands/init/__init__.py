"""A first recipe for a model that nobody wrote one for: read, guessed, tried, written with every guess marked."""
