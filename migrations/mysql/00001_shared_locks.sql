-- +goose Up

-- The table that the PHP package its-mieger/mysql-shared-locks documents. One
-- that is there already is adopted, with its rows; it lacks our comment.
CREATE TABLE IF NOT EXISTS `shared_locks` (
  `name` varchar(64) NOT NULL,
  `connection_id` bigint NOT NULL,
  `created` bigint NOT NULL,
  `ttl` bigint NOT NULL,
  `lock_acquired` tinyint(1) NOT NULL,
  UNIQUE KEY `shared_locks_ix1` (`name`)
) ENGINE=MyISAM DEFAULT CHARSET=latin1 COMMENT='go-sqllock: locks';

-- +goose Down

-- An adopted table is not ours to drop.
SET @go_sqllock = IF(
  (SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE()
    AND table_name = 'shared_locks' AND table_comment LIKE 'go-sqllock%') = 1,
  'DROP TABLE `shared_locks`',
  'DO 0');
PREPARE go_sqllock FROM @go_sqllock;
EXECUTE go_sqllock;
DEALLOCATE PREPARE go_sqllock;
