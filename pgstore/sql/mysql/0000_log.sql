-- The steps of the schema, and the oldest code that may use the table after each.
CREATE TABLE IF NOT EXISTS {log} (
    version     INTEGER     NOT NULL PRIMARY KEY,
    oldest_code INTEGER     NOT NULL,
    applied_on  DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)
) ENGINE = InnoDB;
