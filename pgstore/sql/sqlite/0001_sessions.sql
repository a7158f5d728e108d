-- The sessions of one store. The key is public: it finds a row and proves nothing. The browser's
-- secret is kept as a hash only. Times are whole microseconds since 1970-01-01 00:00 UTC.
CREATE TABLE {table} (
    key              BLOB    NOT NULL PRIMARY KEY,
    name             TEXT    NOT NULL,
    generation       INTEGER NOT NULL,
    min_generation   INTEGER NOT NULL,
    secret_hash      BLOB    NOT NULL,
    data             BLOB    NOT NULL,
    version          INTEGER NOT NULL,
    max_age          INTEGER NOT NULL,
    user_key         TEXT    COLLATE BINARY,
    ip               TEXT,
    user_agent       TEXT,
    meta             TEXT,  -- a JSON object, NULL when empty
    previous_hash    BLOB,
    successor        BLOB,
    created_on       INTEGER NOT NULL,
    modified_on      INTEGER NOT NULL,
    seen_on          INTEGER NOT NULL,
    expires_on       INTEGER NOT NULL,
    gc_after         INTEGER NOT NULL,
    authenticated_on INTEGER,
    renewed_on       INTEGER
) STRICT;

CREATE INDEX {gc_index} ON {table} (gc_after);

CREATE INDEX {user_index} ON {table} (user_key) WHERE user_key IS NOT NULL;
