"""The reason in a message about MLflow is the cause, also where SQLAlchemy puts a note before it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, event, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from engineworks.tracking.connection import reason_of


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def test_a_full_disk_is_named_though_a_query_met_it(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'full.db'}")
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 4"))
    Base.metadata.create_all(engine)
    with Session(engine) as session, pytest.raises(OperationalError) as caught:
        session.add(Row(id=1, text="x" * 100_000))
        session.execute(select(Row)).all()
    assert str(caught.value).startswith("(raised as a result of Query-invoked autoflush")
    assert reason_of(caught.value) == "(sqlite3.OperationalError) database or disk is full"
