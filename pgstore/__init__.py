"""Server-side sessions for Python web applications, in the database that you already run.

from pgstore import PGStore

store = PGStore("postgresql://…", hash_key)
session = store.get(request, "session")
session["cart"] = ["tea"]
store.save(request, response, session)
"""

from . import errors, merge
from .agents import Agent
from .codecs import Codec, Sealer, SecureCookie, codecs_from_pairs, decode_multi, encode_multi
from .devices import StoredSession, UserSession
from .errors import (
    BackendError,
    ClientError,
    ConfigurationError,
    ConflictError,
    CookieError,
    NotOwner,
    PGStoreError,
    RowError,
    SaveErrors,
    SchemaError,
    SerializationError,
    SessionGone,
    SessionNotFound,
    SessionTooLong,
)
from .ids import generate_random_key
from .options import Options
from .rows import Backend, PGSession, Stats, UserStats
from .serializers import TypedSerializer
from .session import Registry, Session
from .store import MemoryStore, PGStore, SQLAlchemyStore, SQLiteStore, Store
from .tokens import TokenBackend, TokenStore
from .urls import open_store, parse_keys

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Backend",
    "BackendError",
    "ClientError",
    "Codec",
    "ConfigurationError",
    "ConflictError",
    "CookieError",
    "MemoryStore",
    "NotOwner",
    "Options",
    "PGSession",
    "PGStore",
    "PGStoreError",
    "Registry",
    "RowError",
    "SQLAlchemyStore",
    "SQLiteStore",
    "SaveErrors",
    "SchemaError",
    "Sealer",
    "SecureCookie",
    "SerializationError",
    "Session",
    "SessionGone",
    "SessionNotFound",
    "SessionTooLong",
    "Stats",
    "Store",
    "StoredSession",
    "TokenBackend",
    "TokenStore",
    "TypedSerializer",
    "UserSession",
    "UserStats",
    "codecs_from_pairs",
    "decode_multi",
    "encode_multi",
    "errors",
    "generate_random_key",
    "merge",
    "open_store",
    "parse_keys",
]
