-- +goose Up

-- What is there already stays as it is; it lacks our comment.
-- +goose StatementBegin
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'shared_locks') THEN
    CREATE TABLE "shared_locks" (
      name varchar(64) COLLATE "C" PRIMARY KEY,
      connection_id bigint NOT NULL,
      created bigint NOT NULL,
      ttl bigint NOT NULL,
      lock_acquired smallint NOT NULL,
      token bigint NOT NULL DEFAULT 0,
      holder varchar(255) NOT NULL DEFAULT ''
    );
    COMMENT ON TABLE "shared_locks" IS 'go-sqllock: locks';
  END IF;
  -- It starts with the clock in microseconds, which the tokens of MySQL are, and so
  -- goes on from those of a table there, or of a sequence that was dropped. If a column
  -- owned it, TRUNCATE with RESTART IDENTITY would have tokens repeat; with a cache,
  -- each session would have numbers of its own, out of order.
  IF NOT EXISTS (SELECT FROM pg_sequences WHERE schemaname = current_schema() AND sequencename = 'shared_locks_token') THEN
    EXECUTE format('CREATE SEQUENCE "shared_locks_token" START %s CACHE 1', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    COMMENT ON SEQUENCE "shared_locks_token" IS 'go-sqllock: tokens';
  END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down

-- What was there before is not ours to drop.
-- +goose StatementBegin
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = current_schema()
    AND relname = 'shared_locks' AND obj_description(c.oid, 'pg_class') LIKE 'go-sqllock%') THEN
    DROP TABLE "shared_locks";
  END IF;
  IF EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = current_schema()
    AND relname = 'shared_locks_token' AND obj_description(c.oid, 'pg_class') LIKE 'go-sqllock%') THEN
    DROP SEQUENCE "shared_locks_token";
  END IF;
END
$$;
-- +goose StatementEnd
