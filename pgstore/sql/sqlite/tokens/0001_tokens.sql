-- Data under tokens of the application's. Of a token a hash is kept only. Times are whole microseconds since
-- 1970-01-01 00:00 UTC.
CREATE TABLE {table} (
    token_hash BLOB    NOT NULL PRIMARY KEY,
    data       BLOB    NOT NULL,
    expires_on INTEGER NOT NULL
) STRICT;

CREATE INDEX {expiry_index} ON {table} (expires_on);
