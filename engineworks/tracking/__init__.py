"""The record of every build in MLflow: a parent run per build, a child run per engine, failures included.

    records      what is recorded (plain values), and how it fits MLflow's limits
    owner        the process that a running build belongs to, and whether it is dead
    opening      disables telemetry, creates a fresh database once (PostgreSQL's tables too), reports a dead server
    sqlite       a fresh SQLite database, migrated once, in memory
    connection   writes and searches once it is open
    existing     opens a record for gc, and creates nothing: the store keys that it refers to
    runs         `Tracking` and `BuildRun`, built on the above
    spool        records that wait for MLflow; sending: sends them; spooled: a build's record with both
    aliases      names in the model registry; registry_lock: one release at a time
    engine_model an engine as an MLflow model, and its loader: stored models name this module, so it keeps its name
    sources      models in MLflow as sources of recipes
    registry     versions, candidates, champions and their history

Functions import mlflow. Any thread may record, because only explicit run ids are used, never MLflow's active run (which
is thread-local).
"""
