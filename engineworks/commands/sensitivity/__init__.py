"""`engineworks sensitivity`: what quantizing each part of a model costs."""
