-- What is asked of an org's own database, beside the model's question.

-- name: danger
-- Why this role is no role for strangers' questions, or NULL.
SELECT CASE
    WHEN r.rolsuper THEN 'is a superuser'
    WHEN r.rolreplication THEN 'may replicate'
    WHEN r.rolcreaterole THEN 'may make roles'
    WHEN EXISTS (SELECT FROM pg_catalog.pg_roles g
                 WHERE g.rolname IN ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program',
                                     'pg_signal_backend', 'pg_write_all_data', 'pg_checkpoint', 'pg_maintain')
                   AND pg_catalog.pg_has_role(r.oid, g.oid, 'MEMBER'))
        THEN 'may do more on the server than read'
    WHEN current_setting('transaction_read_only') <> 'on' THEN 'can write'
    END
FROM pg_catalog.pg_roles r WHERE r.rolname = session_user;

-- name: describe
SELECT pg_catalog.json_build_object('table', found.name, 'about', found.about, 'columns', found.columns)::text AS described
FROM (SELECT CASE c.relnamespace::regnamespace::text WHEN 'public' THEN pg_catalog.quote_ident(c.relname)
                  ELSE c.relnamespace::regnamespace::text || '.' || pg_catalog.quote_ident(c.relname) END AS name,
             left(pg_catalog.obj_description(c.oid, 'pg_class'), 500) AS about,
             (SELECT pg_catalog.json_agg(pg_catalog.quote_ident(a.attname) || ' '
                                         || pg_catalog.format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum)
              FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum BETWEEN 1 AND 200 AND NOT a.attisdropped
                AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')) AS columns
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
        AND n.nspname !~ '^pg_' AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
        AND pg_catalog.has_any_column_privilege(c.oid, 'SELECT')
      ORDER BY 1 LIMIT 200) AS found;
