"""Git's data about a file and a revision."""
