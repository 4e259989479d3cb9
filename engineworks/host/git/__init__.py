"""What git knows of a file and of a revision."""
