-- +goose Up

-- InnoDB, since a row is written in the transaction that it guards.
CREATE TABLE IF NOT EXISTS `lock_fences` (
  `name` varchar(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  `token` bigint NOT NULL,                      -- greatest fencing token admitted
  `seq` bigint NOT NULL DEFAULT 0,              -- number of guarded commits so far
  `commits` varbinary(512) NOT NULL DEFAULT '', -- ids (8 bytes each) of the last 64, newest first
  `session` bigint NOT NULL DEFAULT 0,          -- connection id of the last writer
  `updated` bigint NOT NULL DEFAULT 0,          -- seconds, by the server's clock
  PRIMARY KEY (`name`)
) ENGINE=InnoDB COMMENT='go-sqllock: fences';

-- +goose Down

-- A table that was there before is not ours to drop.
SET @go_sqllock = IF(
  (SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE()
    AND table_name = 'lock_fences' AND table_comment LIKE 'go-sqllock%') = 1,
  'DROP TABLE `lock_fences`',
  'DO 0');
PREPARE go_sqllock FROM @go_sqllock;
EXECUTE go_sqllock;
DEALLOCATE PREPARE go_sqllock;
