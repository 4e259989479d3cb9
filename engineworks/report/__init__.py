"""A build as pages: one self-contained HTML file, and a Markdown twin for pull requests."""
