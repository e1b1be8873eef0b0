package integration

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
)

// interopPeer is a process of another language, as the server sees it: the statements of its
// library in their order, each in a transaction of its own, on a session of its own.
type interopPeer interface {
	// acquire reports whether it was granted the lock, for that many seconds.
	acquire(ctx context.Context, name string, seconds int) (bool, error)
	release(ctx context.Context, name string) error
	session() *sql.Conn
}

// peerBase is what they have in common.
type peerBase struct {
	c    *interopCase
	conn *sql.Conn
}

func (p *peerBase) session() *sql.Conn { return p.conn }

// exec returns the number of rows, which PHP and Java have as rows that were changed.
func (p *peerBase) exec(ctx context.Context, query string, args ...any) (int64, error) {
	if p.c.pg() {
		for i := 1; strings.Contains(query, "?"); i++ {
			query = strings.Replace(query, "?", fmt.Sprintf("$%d", i), 1)
		}
	}
	res, err := p.conn.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (p *peerBase) exists(ctx context.Context, query string, args ...any) (bool, error) {
	if p.c.pg() {
		for i := 1; strings.Contains(query, "?"); i++ {
			query = strings.Replace(query, "?", fmt.Sprintf("$%d", i), 1)
		}
	}
	err := p.conn.QueryRowContext(ctx, query, args...).Scan(new(int))
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// peerConflict reports whether an error is a duplicate key, or a deadlock.
func peerConflict(err error) bool {
	var my *mysql.MySQLError
	var pg *pgconn.PgError
	return errors.As(err, &my) && (my.Number == 1062 || my.Number == 1213) || errors.As(err, &pg) && pg.Code == "23505"
}

// symfonyPeer is PdoStore of symfony/lock, with its 300 s.
type symfonyPeer struct {
	peerBase

	token string
	now   string
}

func newSymfonyPeer(c *interopCase, conn *sql.Conn) interopPeer {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return &symfonyPeer{peerBase{c, conn}, base64.StdEncoding.EncodeToString(b), c.pick("UNIX_TIMESTAMP()", "CAST(EXTRACT(epoch FROM NOW()) AS INT)")}
}

func symfonyID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// save makes the row, or puts off the end of the one that is there.
func (p *symfonyPeer) save(ctx context.Context, name string) (bool, error) {
	_, err := p.exec(ctx, "INSERT INTO lock_keys (key_id, key_token, key_expiration) VALUES (?, ?, "+p.now+" + 300)", symfonyID(name), p.token)
	if err == nil {
		return true, nil
	}
	if !peerConflict(err) {
		return false, err
	}
	return p.putOff(ctx, name, 300)
}

// putOff is putOffExpiration: it takes what is over.
func (p *symfonyPeer) putOff(ctx context.Context, name string, seconds int) (bool, error) {
	n, err := p.exec(ctx, fmt.Sprintf("UPDATE lock_keys SET key_expiration = %s + %d, key_token = ? WHERE key_id = ? AND (key_token = ? OR key_expiration <= %s)",
		p.now, seconds, p.now), p.token, symfonyID(name), p.token)
	if peerConflict(err) { // which PHP throws, and is tried again here
		return false, nil
	}
	if err != nil || n > 0 {
		return n > 0, err
	}
	return p.exists(ctx, "SELECT 1 FROM lock_keys WHERE key_id = ? AND key_token = ? AND key_expiration > "+p.now, symfonyID(name), p.token)
}

// acquire is Lock::acquire: save, and then refresh to the TTL of the lock.
func (p *symfonyPeer) acquire(ctx context.Context, name string, seconds int) (bool, error) {
	if ok, err := p.save(ctx, name); err != nil || !ok {
		return false, err
	}
	return p.putOff(ctx, name, seconds)
}

func (p *symfonyPeer) release(ctx context.Context, name string) error {
	_, err := p.exec(ctx, "DELETE FROM lock_keys WHERE key_id = ? AND key_token = ?", symfonyID(name), p.token)
	return err
}

// shedLockPeer is JdbcTemplateLockProvider with usingDbTime.
type shedLockPeer struct {
	peerBase

	host     string
	inserted map[string]bool // rows that it knows to be there, as StorageBasedLockProvider does
}

func newShedLockPeer(c *interopCase, conn *sql.Conn) interopPeer {
	return &shedLockPeer{peerBase{c, conn}, "java-" + rand.Text()[:8], make(map[string]bool)}
}

func (p *shedLockPeer) acquire(ctx context.Context, name string, seconds int) (bool, error) {
	now := p.c.pick("UTC_TIMESTAMP(3)", "timezone('utc', CURRENT_TIMESTAMP)")
	until := p.c.pick(fmt.Sprintf("TIMESTAMPADD(MICROSECOND, %d, %s)", seconds*1_000_000, now), fmt.Sprintf("%s + make_interval(secs => %d)", now, seconds))
	if !p.inserted[name] {
		p.inserted[name] = true
		insert := p.c.pick("INSERT IGNORE INTO shedlock(name, lock_until, locked_at, locked_by) VALUES(?, "+until+", "+now+", ?)",
			"INSERT INTO shedlock(name, lock_until, locked_at, locked_by) VALUES(?, "+until+", "+now+", ?) ON CONFLICT (name) DO UPDATE SET lock_until = "+
				until+", locked_at = "+now+", locked_by = '"+p.host+"' WHERE shedlock.name = '"+name+"' AND shedlock.lock_until <= "+now)
		if n, err := p.exec(ctx, insert, name, p.host); err != nil && !peerConflict(err) || n > 0 {
			return n > 0, err
		}
	}
	n, err := p.exec(ctx, "UPDATE shedlock SET lock_until = "+until+", locked_at = "+now+", locked_by = ? WHERE name = ? AND lock_until <= "+now, p.host, name)
	if peerConflict(err) {
		return false, nil
	}
	return n > 0, err
}

func (p *shedLockPeer) release(ctx context.Context, name string) error {
	now := p.c.pick("UTC_TIMESTAMP(3)", "timezone('utc', CURRENT_TIMESTAMP)")
	set := p.c.pick("IF (TIMESTAMPADD(MICROSECOND, 0, locked_at) > "+now+", TIMESTAMPADD(MICROSECOND, 0, locked_at), "+now+")",
		"CASE WHEN locked_at + make_interval(secs => 0) > "+now+" THEN locked_at + make_interval(secs => 0) ELSE "+now+" END")
	_, err := p.exec(ctx, "UPDATE shedlock SET lock_until = "+set+" WHERE name = ? AND locked_by = ?", name, p.host)
	return err
}

// laravelPeer is DatabaseLock.
type laravelPeer struct {
	peerBase

	owner string
	ahead time.Duration // of PHP's clock
}

func newLaravelPeer(c *interopCase, conn *sql.Conn) interopPeer {
	return &laravelPeer{peerBase: peerBase{c, conn}, owner: rand.Text()[:16]}
}

func (p *laravelPeer) quoted(query string) string {
	if p.c.pg() {
		return strings.ReplaceAll(query, "`", `"`)
	}
	return query
}

func (p *laravelPeer) acquire(ctx context.Context, name string, seconds int) (bool, error) {
	now := time.Now().Add(p.ahead).Unix()
	expires := now + int64(seconds)
	_, err := p.exec(ctx, p.quoted("insert into `cache_locks` (`key`, `owner`, `expiration`) values (?, ?, ?)"), name, p.owner, expires)
	if err == nil {
		return true, nil
	}
	if !peerConflict(err) {
		return false, err
	}
	n, err := p.exec(ctx, p.quoted("update `cache_locks` set `owner` = ?, `expiration` = ? where `key` = ? and (`owner` = ? or `expiration` <= ?)"),
		p.owner, expires, name, p.owner, now)
	if peerConflict(err) {
		return false, nil
	}
	return n > 0, err
}

func (p *laravelPeer) release(ctx context.Context, name string) error {
	mine, err := p.exists(ctx, p.quoted("select 1 from `cache_locks` where `key` = ? and `owner` = ? limit 1"), name, p.owner)
	if err != nil || !mine {
		return err
	}
	_, err = p.exec(ctx, p.quoted("delete from `cache_locks` where `key` = ? and `owner` = ?"), name, p.owner)
	return err
}

func (p *laravelPeer) forceRelease(ctx context.Context, name string) error {
	_, err := p.exec(ctx, p.quoted("delete from `cache_locks` where `key` = ?"), name)
	return err
}

// newPeer is a process with a session of its own.
func (c *interopCase) newPeer(t *testing.T) interopPeer {
	t.Helper()
	return c.peer(c, conn(t, c.db))
}
