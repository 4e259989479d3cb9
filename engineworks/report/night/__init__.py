"""The summary of a night of builds, its metrics, and where they are published."""
