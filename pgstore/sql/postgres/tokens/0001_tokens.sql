-- Data under tokens of the application's. Of a token a hash is kept only; times are the database's own.
CREATE TABLE {table} (
    token_hash bytea       PRIMARY KEY,
    data       bytea       NOT NULL,
    expires_on timestamptz NOT NULL
);

CREATE INDEX {expiry_index} ON {table} (expires_on);
