"""`engineworks sensitivity`: the cost of quantizing each part of a model."""
