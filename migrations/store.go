package migrations

import (
	"context"

	"github.com/pressly/goose/v3/database"
)

// store is goose's store of versions, save that a table that is
// missing holds version 0. goose asks for pending migrations before it takes the
// lock, and would create the table then, in two statements that others can come
// between, with a second's sleep where they do. Here create does so under the
// lock, and goose is told that the table exists.
type store struct{ database.Store }

// newStore takes the quoted name of the table.
func newStore(d database.Dialect, table string) (store, error) {
	s, err := database.NewStore(d, table)
	return store{s}, err
}

// create makes the table, or completes one that a crash has left empty. Only for
// the holder of the lock.
func (s store) create(ctx context.Context, db database.DBTxConn) error {
	found, err := s.Store.ListMigrations(ctx, db)
	if noSuchTable(err) {
		err = s.CreateVersionTable(ctx, db)
	}
	if err != nil || len(found) > 0 {
		return err
	}
	return s.Insert(ctx, db, database.InsertRequest{Version: 0})
}

// TableExists keeps goose from creating the table.
func (s store) TableExists(context.Context, database.DBTxConn) (bool, error) { return true, nil }

// ListMigrations has goose find version 0 where there is no table.
func (s store) ListMigrations(ctx context.Context, db database.DBTxConn) ([]*database.ListMigrationsResult, error) {
	found, err := s.Store.ListMigrations(ctx, db)
	if noSuchTable(err) {
		return []*database.ListMigrationsResult{{Version: 0, IsApplied: true}}, nil
	}
	return found, err
}

// GetLatestVersion does the same.
func (s store) GetLatestVersion(ctx context.Context, db database.DBTxConn) (int64, error) {
	latest, err := s.Store.GetLatestVersion(ctx, db)
	if noSuchTable(err) {
		return 0, nil
	}
	return latest, err
}

// Delete drops the table with the first version, which is the last to go.
func (s store) Delete(ctx context.Context, db database.DBTxConn, version int64) error {
	if version > 1 {
		return s.Store.Delete(ctx, db, version)
	}
	_, err := db.ExecContext(ctx, "DROP TABLE IF EXISTS "+s.Tablename())
	return err
}
