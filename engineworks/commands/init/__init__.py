"""A first recipe for a model without one: the model is read, its dimensions guessed and tried, every guess marked."""
