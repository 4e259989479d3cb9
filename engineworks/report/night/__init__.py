"""What a night of builds came to: chosen recipes, summary, metrics."""
