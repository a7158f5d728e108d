"""The public API as applications write it, for mypy in strict mode. Never run.

A ``type: ignore`` marks what must be an error: mypy complains of one that is not needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, assert_type

import flask
import psycopg
import sqlalchemy
from psycopg_pool import ConnectionPool
from werkzeug.datastructures import Headers
from werkzeug.wrappers import Request, Response

import pgstore
from pgstore import (
    Agent,
    Backend,
    Codec,
    MemoryStore,
    Options,
    PGSession,
    PGStore,
    Registry,
    Sealer,
    SecureCookie,
    Session,
    SQLAlchemyStore,
    SQLiteStore,
    Store,
    StoredSession,
    TokenBackend,
    TokenStore,
    TypedSerializer,
    UserSession,
    codecs_from_pairs,
    decode_multi,
    encode_multi,
    errors,
    generate_random_key,
    merge,
)
from pgstore.backends.memory import MemoryBackend
from pgstore.backends.memory_tokens import MemoryTokens
from pgstore.backends.sqlalchemy import sessions_table
from pgstore.cleanup import SweepResult
from pgstore.ext.flask import FlaskSession, FlaskSessions, login_required
from pgstore.ext.flask import session as flask_session
from pgstore.ext.wsgi import SessionMiddleware
from pgstore.ext.wsgi import login_required as login_required_wsgi
from pgstore.merge import MISSING, MergeFunction
from pgstore.options import SessionOptions
from pgstore.rows import Loaded
from pgstore.serializers import Serializer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HASH_KEY, BLOCK_KEY = generate_random_key(), generate_random_key(32)


# -- stores ----------------------------------------------------------------------------------------


def keep_the_larger(base: int, theirs: int, ours: int) -> int:
    return max(theirs, ours)


def make_stores(pool: ConnectionPool[psycopg.Connection[Any]]) -> Sequence[Store]:
    serializer = TypedSerializer()
    serializer.register(Fraction, "fraction", dump=str, load=Fraction)
    with PGStore("dbname=app", HASH_KEY, BLOCK_KEY, HASH_KEY, None) as store:
        assert_type(store, PGStore)
    borrowed = PGStore.from_pool(pool, HASH_KEY, table="sessions", db_schema="web")
    assert_type(borrowed, PGStore)
    return [
        store,
        borrowed,
        PGStore("dbname=app", HASH_KEY, pool_size=4, statement_timeout=2.5, pooler="transaction"),
        SQLiteStore(Path("sessions.db"), HASH_KEY, busy_timeout=1),
        SQLiteStore("sessions.db", HASH_KEY),
        MemoryStore(HASH_KEY, max_length=0),
        Store(
            MemoryBackend("sessions"),
            HASH_KEY,
            options=Options(path="/app", secure=True, same_site="Strict", max_age=3600),
            max_length=65536,
            idle_timeout=timedelta(minutes=30),
            lifetime=12 * 3600,
            touch_interval=60.0,
            merge={"hits": merge.add, ("seen", 1): merge.union, "record": keep_the_larger},
            serializer=serializer,
            codecs=codecs_from_pairs(HASH_KEY, max_age=0),
            schema="check",
            save_deadline=timedelta(seconds=5),
            max_sessions_per_user=3,
            bind=("ip", "agent"),
        ),
    ]


def settings(store: Store) -> None:
    store.max_age(timedelta(days=7))
    store.max_age(3600)
    store.max_length(0)
    assert_type(store.options, Options)
    assert_type(store.serializer, TypedSerializer)
    assert_type(store.codecs, Sequence[Codec])
    assert_type(store.backend, Backend)
    store.options = Options()  # type: ignore[misc]
    store.options.path = "/app"  # type: ignore[misc]


def mistakes() -> None:
    Options(same_site="lax")  # type: ignore[arg-type]
    Options(secure="yes")  # type: ignore[arg-type]
    Options("/app")  # type: ignore[call-arg]
    PGStore("dbname=app", "a key is bytes")  # type: ignore[arg-type]
    PGStore("dbname=app", HASH_KEY, pooler="session")  # type: ignore[arg-type]
    Store(MemoryBackend(), HASH_KEY, schema="create")  # type: ignore[arg-type]
    Store(MemoryBackend(), HASH_KEY, merge={"hits": sum})  # type: ignore[dict-item]
    Store(MemoryBackend(), HASH_KEY, bind=("host",))  # type: ignore[arg-type]
    Store("dbname=app", HASH_KEY)  # type: ignore[arg-type]
    SecureCookie(None)  # type: ignore[arg-type]


# -- a request -------------------------------------------------------------------------------------


def handler(store: Store, request: Request) -> Response:
    session = store.get(request, "session")
    assert_type(session, Session)
    response = Response("hello")
    if session.error is not None:
        assert_type(session.error, errors.PGStoreError)
    session["visits"] = session.get("visits", 0) + 1
    session.add_flash("welcome back")
    for message in session.flashes():
        response.set_data(str(message))
    store.save(request, response, session)
    session.save(request, response.headers)
    return response


def devices(store: Store, request: Request) -> str:
    session = store.get(request, "session")
    if session.user_key is None or not session.fresh(within=timedelta(minutes=5)):
        return ""
    assert_type(store.fetch(session.handle, owner=session.user_key), UserSession | None)
    listed = store.sessions_of(session.user_key, current=session)
    assert_type(listed, list[UserSession])
    for one in listed:
        assert_type(one.seen_on, datetime)
        assert_type(one.agent, Agent)
        assert_type(one.agent.browser, str | None)
        one.current = True  # type: ignore[misc]
    return ", ".join(f"{one.agent} {one.ip}" for one in listed)


def change_password(
    store: PGStore, connection: psycopg.Connection[Any], session: Session, response: Response
) -> None:
    with store.using(connection) as inside, connection.transaction():
        assert_type(inside, PGStore)
        inside.revoke_user("user-7", keep=session)
        inside.save({}, response, session)


def wsgi_app(
    store: Store, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    session, headers = store.new(environ, "session"), Headers()
    if "user" not in session:
        session.login("user-7")
        session.options.max_age = 8 * 3600
    registry = Registry.of(environ)
    assert_type(registry, Registry)
    registry.save(headers)
    start_response("200 OK", headers.to_wsgi_list())
    return [session.pop("greeting", b"")]


def what_a_session_says(session: Session) -> None:
    assert_type(session.id, str)
    assert_type(session.handle, str)
    assert_type(session.is_new, bool)
    assert_type(session.user_key, str | None)
    assert_type(session.created_on, datetime | None)
    assert_type(session.expires_on, datetime | None)
    assert_type(session.authenticated_on, datetime | None)
    assert_type(session.options, SessionOptions)
    assert_type(session.meta, dict[str, str])
    assert_type(session.values, dict[Any, Any])
    assert_type(list(session), list[Any])
    assert_type(len(session), int)
    del session["visits"]
    session.regenerate()
    session.options.persistent = False
    session.send_cookie()
    session.logout()
    session.delete()
    session.id = "mine"  # type: ignore[misc]
    session.meta = {"device": 7}  # type: ignore[dict-item]
    session.options.same_site = "lax"  # type: ignore[assignment]


def saving(store: Store, request: Request, response: Response, session: Session) -> None:
    try:
        store.save(request, response, session)
    except errors.SessionGone as gone:
        assert_type(gone.handle, str)
    except errors.SessionTooLong as long:
        assert_type((long.size, long.limit), tuple[int, int])
    except errors.SerializationError as refused:
        assert_type(refused.path, str)
        assert_type(refused.type, type)
    except errors.BackendError as down:
        assert_type(down.outcome_unknown, bool)
    try:
        Registry.of(request).save(response)
    except* errors.PGStoreError as group:
        assert_type(group, ExceptionGroup[errors.PGStoreError])


# -- Flask -----------------------------------------------------------------------------------------


def flask_app(app: flask.Flask, store: Store) -> Sequence[FlaskSessions]:
    sessions = FlaskSessions(app, store)
    FlaskSessions().init_app(app)

    @app.get("/")
    @login_required(sessions)
    def view(number: int) -> str:
        return str(number)

    @app.get("/async")
    @login_required(store, reject=lambda: flask.redirect("/sign-in"))
    async def async_view() -> flask.Response:
        return flask.Response()

    view("seven")  # type: ignore[arg-type]
    assert_type(view(7), str)
    assert_type(sessions.store, Store)
    return [sessions, FlaskSessions(app), FlaskSessions(store)]


def what_flask_session_says() -> None:
    assert_type(flask_session, FlaskSession)
    assert_type(flask_session["x"], Any)
    assert_type(flask_session.new, bool)
    assert_type(flask_session.permanent, bool)
    assert_type(flask_session.user_key, str | None)
    assert_type(flask_session.handle, str)
    assert_type(flask_session.meta, dict[str, str])
    assert_type(flask_session.options, SessionOptions)
    assert_type(flask_session.pgstore, Session)
    assert_type(flask_session.fresh(within=timedelta(minutes=5)), bool)
    flask_session.login("alice")
    flask_session.regenerate()
    flask_session.logout()


# -- cleanup ---------------------------------------------------------------------------------------


def cleaning(store: Store) -> None:
    quit, done = store.cleanup()
    assert_type(quit, Event)
    store.stop_cleanup(quit, done)
    store.cleanup(timedelta(minutes=1))
    results = store.run_cleanup(quit, 60)
    assert_type(results, Iterator[SweepResult])
    for result in results:
        assert_type(result.deleted, int)
        assert_type(result.error, Exception | None)
    assert_type(store.delete_expired(), int)
    assert_type(store.reseal(check=True), Mapping[str, int])
    store.stop_cleanup(*store.cleanup(0))
    store.close()


# -- parts of one's own ----------------------------------------------------------------------------


class JsonSerializer:
    def dumps(self, value: object) -> bytes:
        return json.dumps(value).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


class HexCodec:
    def encode(self, name: str, value: Any) -> str:
        return bytes(value).hex()

    def decode(self, name: str, value: str) -> Any:
        return bytes.fromhex(value)


class NoSealer:
    def seal(self, data: bytes, context: bytes) -> bytes:
        return data

    def open(self, sealed: bytes, context: bytes) -> bytes:
        return sealed


class CountingBackend(MemoryBackend):
    loads = 0

    def load(self, key: bytes) -> Loaded | None:
        self.loads += 1
        return super().load(key)


def keep_theirs(base: Any, theirs: Any, ours: Any) -> Any:
    return ours if theirs is MISSING else theirs


def parts() -> None:
    serializer: Serializer = JsonSerializer()
    codecs: list[Codec] = [HexCodec(), SecureCookie(HASH_KEY, serializer=serializer)]
    sealers: list[Sealer] = [NoSealer()]
    backend: Backend = CountingBackend()
    function: MergeFunction = keep_theirs
    Store(backend, codecs=codecs, sealers=sealers, merge={("a", 1): function})


def stand_alone_cookies() -> None:
    cookie = SecureCookie(
        HASH_KEY,
        BLOCK_KEY,
        max_age=timedelta(hours=1),
        min_age=0.5,
        max_length=0,
        digest_method=hashlib.sha512,
        clock=lambda: 0,
    )
    assert_type(cookie.encode("token", {"user": 7}), str)
    codecs = codecs_from_pairs(HASH_KEY, None, BLOCK_KEY, max_age=60)
    assert_type(codecs, list[SecureCookie])
    try:
        decode_multi("token", encode_multi("token", (1, 2), codecs), codecs)
    except errors.CookieExpired as expired:
        assert_type(expired.date, datetime)
    except errors.CookieError as refused:
        assert_type(refused.causes, tuple[errors.CookieError, ...])


def rows(row: PGSession) -> tuple[bytes, str | None, datetime | None]:
    row.version = 7  # type: ignore[misc]
    return row.key, row.user_key, row.expires_on


def wrapped(app: WSGIApplication, reject: WSGIApplication, store: Store) -> WSGIApplication:
    guard = login_required_wsgi(store, "sid", reject=reject)

    @login_required_wsgi(store)
    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return app(environ, start_response)

    SessionMiddleware(app, store, save_on_error=1)  # type: ignore[arg-type]
    return SessionMiddleware(guard(guarded), store, "sid", save_on_error=True)


assert_type(pgstore.__version__, str)


# -- other databases and tokens --------------------------------------------------------------------


def other_databases(engine: sqlalchemy.Engine, metadata: sqlalchemy.MetaData) -> None:
    store = SQLAlchemyStore(engine, HASH_KEY, table="sessions", lifetime=timedelta(days=1))
    SQLAlchemyStore("mysql+pymysql://host/db", HASH_KEY, pool_size=5, statement_timeout=2.5)
    SQLAlchemyStore("other://host", HASH_KEY, clock=sqlalchemy.func.sysutcdatetime())
    sessions_table(metadata, name="sessions", schema="web")
    with engine.connect() as connection, store.using(connection) as inside:
        assert_type(inside, SQLAlchemyStore)
    for one in store.iterate(batch=100):
        assert_type(one, StoredSession)
        assert_type(one.user_key, str | None)
        assert_type(one.values, Mapping[Any, Any])


def tokens(
    store: Store,
    pool: ConnectionPool[psycopg.Connection[Any]],
    engine: sqlalchemy.Engine,
    backend: TokenBackend,
) -> None:
    TokenStore("postgresql://host/db", cleanup_interval=0, pool_size=3)
    for where in (store, pool, engine, backend):
        TokenStore(where, table="other", cleanup_interval=timedelta(minutes=5))
    with TokenStore(MemoryTokens(), schema="check") as tokens:
        assert_type(tokens, TokenStore)
        assert_type(tokens.find("token"), bytes | None)
        tokens.commit(b"token", b"data", 60)
        tokens.commit("token", b"data", timedelta(hours=1))
        tokens.commit("token", b"data", datetime.now(UTC))
        tokens.delete("token")
        assert_type(tokens.all(batch=10), Iterator[tuple[str, bytes]])
        assert_type(TokenStore.handle("token"), str)
        assert_type(tokens.delete_expired(), int)
        tokens.stop_cleanup()
    tokens.commit("token", "text", 60)  # type: ignore[arg-type]
