-- The steps of the schema, and the oldest code that may use the table after each.
CREATE TABLE IF NOT EXISTS {log} (
    version     integer     PRIMARY KEY,
    oldest_code integer     NOT NULL,
    applied_on  timestamptz NOT NULL DEFAULT now()
);
