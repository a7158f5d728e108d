"""The session layer of a read-only request, in Flask and in Django."""

from __future__ import annotations

from _common import Effort, Report, main
from _layers import compare


def run(effort: Effort) -> Report:
    return compare(
        effort,
        "Session layer of a read-only request",
        "/read",
        {
            "Flask-Session, Redis": 0.5,
            "Flask-Session, Redis, no refresh": None,
            "Flask-Session, SQLAlchemy": 0.1,
            "Django db": 0.4,
            "Django cached_db": 0.4,
        },
    )


if __name__ == "__main__":
    main(run)
