"""The record of every build in MLflow: a parent run per build, a child run per engine, failures included.

    records      what is recorded (plain values), and how it is made to fit MLflow's limits
    owner        which process a running build belongs to, and whether that process is dead
    opening      no telemetry, a fresh database is made once, a dead server is reported in seconds
    sqlite       a fresh SQLite database, migrated once, in memory
    postgresql   MLflow's tables in PostgreSQL, made by one process at a time
    connection   what is written and searched once it is open
    runs         `Tracking` and `BuildRun`, in terms of the above
    spool        records that wait for MLflow; sending: how they get there; spooled: a build's record with both
    aliases      names in the model registry; registry_lock: one release at a time
    engine_model an engine as an MLflow model, and its loader: stored models name this module, so it keeps its name
    sources      models in MLflow that recipes are made of
    registry     versions, candidates, champions and their history

mlflow is imported inside functions. Only explicit run ids are used, never
MLflow's active run (which is thread-local), so any thread may record.
"""
