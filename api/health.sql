-- name: applied
SELECT name, checksum FROM schema_migrations;

-- name: workers
SELECT count(*) FROM workers WHERE seen_at > now() - interval '15 seconds';
