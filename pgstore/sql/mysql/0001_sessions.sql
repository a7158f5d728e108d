-- The sessions of one store. The key is public: it finds a row and proves nothing. The browser's secret is kept as
-- a hash only. Texts are in UTF-8, as bytes, so that neither a collation nor a connection's character set can change
-- them or take two users for one. Times are in UTC.
CREATE TABLE {table} (
    `key`            BINARY(16)      NOT NULL PRIMARY KEY,
    name             VARBINARY(1024) NOT NULL,
    generation       INTEGER         NOT NULL,
    min_generation   INTEGER         NOT NULL,
    secret_hash      VARBINARY(255)  NOT NULL,
    data             LONGBLOB        NOT NULL,
    version          BIGINT          NOT NULL,
    max_age          INTEGER         NOT NULL,
    user_key         VARBINARY(255),
    ip               VARBINARY(2048),
    user_agent       VARBINARY(2048),
    meta             LONGBLOB,
    previous_hash    VARBINARY(255),
    successor        VARBINARY(255),
    created_on       DATETIME(6)     NOT NULL,
    modified_on      DATETIME(6)     NOT NULL,
    seen_on          DATETIME(6)     NOT NULL,
    expires_on       DATETIME(6)     NOT NULL,
    gc_after         DATETIME(6)     NOT NULL,
    authenticated_on DATETIME(6),
    renewed_on       DATETIME(6),
    INDEX {gc_index} (gc_after),
    INDEX {user_index} (user_key)
) ENGINE = InnoDB;
