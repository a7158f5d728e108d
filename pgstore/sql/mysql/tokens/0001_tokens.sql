-- Data under tokens of the application's. Of a token a hash is kept only. Times are in UTC.
CREATE TABLE {table} (
    token_hash BINARY(32)  NOT NULL PRIMARY KEY,
    data       LONGBLOB    NOT NULL,
    expires_on DATETIME(6) NOT NULL,
    INDEX {expiry_index} (expires_on)
) ENGINE = InnoDB;
