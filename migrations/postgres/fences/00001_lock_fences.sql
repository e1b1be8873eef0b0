-- +goose Up

-- A table that is there already stays as it is; it lacks our comment.
-- +goose StatementBegin
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'lock_fences') THEN
    CREATE TABLE "lock_fences" (
      name varchar(64) COLLATE "C" PRIMARY KEY,
      token bigint NOT NULL,             -- greatest fencing token admitted
      seq bigint NOT NULL DEFAULT 0,     -- number of guarded commits so far
      commits bytea NOT NULL DEFAULT '', -- ids (8 bytes each) of the last 64, newest first
      session bigint NOT NULL DEFAULT 0, -- process id of the session of the last writer
      updated bigint NOT NULL DEFAULT 0  -- seconds, by the server's clock
    );
    COMMENT ON TABLE "lock_fences" IS 'go-sqllock: fences';
  END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down

-- A table that was there before is not ours to drop.
-- +goose StatementBegin
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = current_schema()
    AND relname = 'lock_fences' AND obj_description(c.oid, 'pg_class') LIKE 'go-sqllock%') THEN
    DROP TABLE "lock_fences";
  END IF;
END
$$;
-- +goose StatementEnd
