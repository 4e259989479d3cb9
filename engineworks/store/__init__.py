"""Artifacts by digest: on this host, and shared between hosts behind a URL."""
