"""What a recipe says: read from YAML, checked with places, and its shorthand spelled out."""
