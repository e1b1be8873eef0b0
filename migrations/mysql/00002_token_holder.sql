-- +goose Up

-- The defaults let the PHP package go on to insert its five columns. MySQL has
-- no ADD COLUMN IF NOT EXISTS, and this may have to run again, after a crash.
SET @go_sqllock = IF(
  (SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = DATABASE()
    AND table_name = 'shared_locks' AND column_name IN ('token', 'holder')) = 2,
  'DO 0',
  'ALTER TABLE `shared_locks`
    ADD COLUMN `token` bigint NOT NULL DEFAULT 0 AFTER `lock_acquired`,
    ADD COLUMN `holder` varchar(255) CHARACTER SET utf8mb4 NOT NULL DEFAULT '''' AFTER `token`');
PREPARE go_sqllock FROM @go_sqllock;
EXECUTE go_sqllock;
DEALLOCATE PREPARE go_sqllock;

-- +goose Down

SET @go_sqllock = IF(
  (SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = DATABASE()
    AND table_name = 'shared_locks' AND column_name IN ('token', 'holder')) = 2,
  'ALTER TABLE `shared_locks` DROP COLUMN `token`, DROP COLUMN `holder`',
  'DO 0');
PREPARE go_sqllock FROM @go_sqllock;
EXECUTE go_sqllock;
DEALLOCATE PREPARE go_sqllock;
