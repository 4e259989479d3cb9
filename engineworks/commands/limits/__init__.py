"""`engineworks limits`: what limits a recipe's own measurements suggest."""
