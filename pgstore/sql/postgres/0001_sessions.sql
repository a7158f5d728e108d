-- The sessions of one store. The key is public: it finds a row and proves nothing. The browser's secret is kept as
-- a hash only. Times are the database's own.
CREATE TABLE {table} (
    key              bytea       PRIMARY KEY,
    name             text        NOT NULL,
    generation       integer     NOT NULL,
    min_generation   integer     NOT NULL,
    secret_hash      bytea       NOT NULL,
    data             bytea       NOT NULL,
    version          bigint      NOT NULL,
    max_age          integer     NOT NULL,
    user_key         text        COLLATE "C",
    ip               text,
    user_agent       text,
    meta             jsonb,
    previous_hash    bytea,
    successor        bytea,
    created_on       timestamptz NOT NULL,
    modified_on      timestamptz NOT NULL,
    seen_on          timestamptz NOT NULL,
    expires_on       timestamptz NOT NULL,
    gc_after         timestamptz NOT NULL,
    authenticated_on timestamptz,
    renewed_on       timestamptz
) WITH (fillfactor = 80);

-- A touch changes seen_on and expires_on, which no index covers, and gc_after only now and then: PostgreSQL then
-- updates in place (HOT). Do not index expires_on.
CREATE INDEX {gc_index} ON {table} (gc_after);

CREATE INDEX {user_index} ON {table} (user_key) WHERE user_key IS NOT NULL;
