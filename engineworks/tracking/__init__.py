"""The record of every build in MLflow: a parent run per build, a child run per engine, failures included.

    records      what is recorded (plain values), and how it is made to fit MLflow's limits
    owner        which process a running build belongs to, and whether that process is dead
    opening      nobody is phoned, a fresh database is made once, a dead server is told in seconds
    sqlite       a fresh SQLite database, migrated once, in memory
    connection   what is written and searched once it is open
    runs         `Tracking` and `BuildRun`, in terms of the above

mlflow is imported by `opening`, `sqlite` and `connection`, inside functions. Only explicit run ids are used, never
MLflow's active run (which is thread-local), so any thread may record.
"""

from __future__ import annotations

from engineworks.tracking.records import EngineRecord, RunSummary, Status
from engineworks.tracking.runs import BuildRun, Tracking, open_tracking

__all__ = ["BuildRun", "EngineRecord", "RunSummary", "Status", "Tracking", "open_tracking"]
