-- The steps of the schema, and the oldest code that may use the table after each.
CREATE TABLE IF NOT EXISTS {log} (
    version     INTEGER NOT NULL PRIMARY KEY,
    oldest_code INTEGER NOT NULL,
    applied_on  INTEGER NOT NULL DEFAULT (unixepoch() * 1000000)
) STRICT;
