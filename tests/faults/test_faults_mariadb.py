"""MariaDB goes away and comes back: by SIGKILL under load, and by killed connections."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pgstore import merge
from support.mariadb import MariaDBServer, fresh_database
from support.sqlalchemy_labs import MariaDBLab
from support.writers import Writers


@pytest.fixture
def lab() -> Iterator[MariaDBLab]:
    """Return a database on a server of the test's own, to be killed."""
    with MariaDBServer() as server, fresh_database(server) as name, MariaDBLab(server, name) as lab:
        yield lab


def test_killed_under_load(lab: MariaDBLab, record_property: pytest.RecordProperty) -> None:
    """No acknowledged save is lost by a SIGKILL, requests fail fast while the server is down, and
    get through within a second of its return.
    """
    store = lab.store(pool_size=4, merge={"hits": merge.add})
    with Writers(store, 6) as writers:
        acknowledged = writers.acknowledged
        lab.server.kill()
        down = time.monotonic()
        writers.wait_for_errors()
        still_down = time.monotonic()
        lab.server.start()
        ready = time.monotonic()
        writers.wait_for_turns()
        back = writers.back(down) - ready
        before = writers.acknowledged
        writers.wait_for_turns()
    meanwhile = writers.turns(down, still_down)
    for name, value in (("back_after", back), ("refused", len(meanwhile))):
        record_property(name, value)
    writers.check_all_is_there()
    assert before > acknowledged > 0
    assert [turn for turn in meanwhile if turn.error is None] == []
    assert max(turn.took for turn in meanwhile) < 2.0
    assert back < 1.0


def test_connections_killed_under_load(lab: MariaDBLab) -> None:
    """Whatever an administrator kills, nothing that was acknowledged is lost or counted twice."""
    store = lab.store(pool_size=4, merge={"hits": merge.add})
    with Writers(store, 6) as writers:
        for _ in range(20):
            assert lab.kill_connections() > 0
            writers.check()
            writers.wait_for_turns()
    writers.check_all_is_there()
    assert writers.acknowledged > 100
