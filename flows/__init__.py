"""Prefect flows: order, fan-out, retries and where a step runs; what a step does is in `engineworks`."""
