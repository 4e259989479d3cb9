"""Why two builds differ."""
