"""One small site, with each kind of session, and without.

Every kind is set up as its documentation says, with its defaults; what differs is said where it is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from _common import KEYS, PAYLOAD

if TYPE_CHECKING:
    from flask import Flask

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True)
class Servers:
    """The ports of a run's servers; 0 for one that is not there."""

    postgres: int
    redis: int = 0

    def url(self, driver: str = "postgresql") -> str:
        return f"{driver}://postgres@127.0.0.1:{self.postgres}/postgres"


@dataclass(frozen=True)
class Kind:
    """One kind of session: how to make its site, and what that takes.

    ``base`` is the kind without sessions beside which it is measured.
    """

    make: Callable[[Servers], App]
    packages: tuple[str, ...] = ()
    redis: bool = False
    base: str = "Flask alone"

    def missing(self, servers: Servers) -> str | None:
        """Return what is not there of what it takes, in one line."""
        lacking = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if lacking:
            return f"{', '.join(lacking)} not installed (pgstore[bench])"
        return "redis-server is not installed" if self.redis and not servers.redis else None


def make(kind: str, postgres: int, redis: int = 0) -> App:
    """Return the site with that kind of session, as a WSGI application."""
    return KINDS[kind].make(Servers(postgres, redis))


# -- on Flask


def _flask(data: Any = None) -> Flask:
    from flask import Flask, session

    app = Flask("site")
    if data is None:
        data = session

    @app.get("/new")
    def new() -> str:
        data.update(PAYLOAD)
        return "welcome"

    @app.get("/read")
    def read() -> str:
        return f"{data['user_id']} {data['csrf_token']}"

    @app.get("/write")
    def write() -> str:
        data["n"] = data["n"] + 1
        return f"{data['user_id']} {data['n']}"

    return app


def _flask_alone(servers: Servers) -> App:
    return _flask(dict(PAYLOAD))  # without a secret key, Flask loads and saves no session


def _flask_signed_cookie(servers: Servers) -> App:
    app = _flask()
    app.secret_key = KEYS[0]
    return app


def _flask_pgstore(servers: Servers) -> App:
    from pgstore import PGStore
    from pgstore.ext.flask import FlaskSessions

    app = _flask()
    FlaskSessions(app, PGStore(servers.url(), *KEYS))
    return app


def _flask_session_redis(servers: Servers, *, refresh: bool = True) -> App:
    from flask_session import Session
    from redis import Redis

    app = _flask()
    app.config["SESSION_TYPE"] = "redis"
    app.config["SESSION_REDIS"] = Redis(port=servers.redis)
    app.config["SESSION_REFRESH_EACH_REQUEST"] = refresh
    Session(app)
    return app


def _flask_session_redis_no_refresh(servers: Servers) -> App:
    return _flask_session_redis(servers, refresh=False)


def _flask_session_sqlalchemy(servers: Servers) -> App:
    from flask_session import Session
    from flask_sqlalchemy import SQLAlchemy

    app = _flask()
    app.config["SQLALCHEMY_DATABASE_URI"] = servers.url("postgresql+psycopg")
    app.config["SESSION_TYPE"] = "sqlalchemy"
    app.config["SESSION_SQLALCHEMY"] = SQLAlchemy(app)
    Session(app)
    return app


# -- on Django


def _django(servers: Servers, engine: str | None) -> App:
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.core.management import call_command

    middleware = ["django.contrib.sessions.middleware.SessionMiddleware"]
    if not settings.configured:
        settings.configure(
            SECRET_KEY=KEYS[0].decode("ascii"),
            ALLOWED_HOSTS=["localhost"],
            ROOT_URLCONF="_django_urls",
            INSTALLED_APPS=["django.contrib.sessions"],
            USE_TZ=True,
            DATABASES={
                "default": {
                    "ENGINE": "django.db.backends.postgresql",
                    "HOST": "127.0.0.1",
                    "PORT": servers.postgres,
                    "USER": "postgres",
                    "NAME": "postgres",
                    "CONN_MAX_AGE": None,  # by default, it connects anew for each request
                }
            },
            CACHES={
                "default": {
                    "BACKEND": "django.core.cache.backends.redis.RedisCache",
                    "LOCATION": f"redis://127.0.0.1:{servers.redis}",
                }
            },
        )
        django.setup()
        call_command("migrate", verbosity=0)
    # A handler reads its middleware when it is made, and a session its engine when it is used.
    settings.MIDDLEWARE = middleware if engine else []
    if engine:
        settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    return WSGIHandler()


def _django_alone(servers: Servers) -> App:
    return _django(servers, None)


def _django_db(servers: Servers) -> App:
    return _django(servers, "db")


def _django_cached_db(servers: Servers) -> App:
    return _django(servers, "cached_db")


_FLASK_SESSION = ("flask_session", "redis")
_FLASK_SQLALCHEMY = ("flask_session", "flask_sqlalchemy")
_DJANGO = "Django alone"

KINDS = {
    "Flask alone": Kind(_flask_alone),
    "signed cookie": Kind(_flask_signed_cookie),
    "pgstore": Kind(_flask_pgstore),
    "Flask-Session, Redis": Kind(_flask_session_redis, _FLASK_SESSION, redis=True),
    "Flask-Session, Redis, no refresh": Kind(
        _flask_session_redis_no_refresh, _FLASK_SESSION, redis=True
    ),
    "Flask-Session, SQLAlchemy": Kind(_flask_session_sqlalchemy, _FLASK_SQLALCHEMY),
    _DJANGO: Kind(_django_alone, ("django",)),
    "Django db": Kind(_django_db, ("django",), base=_DJANGO),
    "Django cached_db": Kind(_django_cached_db, ("django", "redis"), redis=True, base=_DJANGO),
}
