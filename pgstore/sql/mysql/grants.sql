-- What an application's account needs on the table, and no more: it can neither change a row's key nor its creation, nor the
-- schema, nor empty the table at once.
GRANT SELECT, INSERT, DELETE, UPDATE (
    name, generation, min_generation, secret_hash, data, version, max_age, user_key, ip, user_agent, meta, previous_hash,
    successor, modified_on, seen_on, expires_on, gc_after, authenticated_on, renewed_on
) ON {table} TO {role};
GRANT SELECT ON {log} TO {role};
