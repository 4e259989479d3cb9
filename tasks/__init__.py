"""Thin Prefect tasks: each calls one function of the library."""
