package txguard

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sqllock/go-sqllock/sqllock"
)

// Option configures a guarded transaction.
type Option interface{ apply(*config) error }

type option func(*config) error

func (o option) apply(c *config) error { return o(c) }

// config is what the options say.
type config struct {
	tx      *sql.TxOptions
	minTTL  time.Duration
	fence   *Fence
	retries int
	lock    []sqllock.LockOption
}

func configure(opts []Option) (*config, error) {
	c := &config{}
	for _, o := range opts {
		if err := o.apply(c); err != nil {
			return nil, err
		}
	}
	if c.fence != nil && c.tx != nil && c.tx.ReadOnly {
		return nil, errors.New("a read-only transaction can't write evidence, and needs none: it has nothing to commit")
	}
	return c, nil
}

// WithTxOptions sets isolation level and access mode, as for
// [database/sql.DB.BeginTx].
func WithTxOptions(opts sql.TxOptions) Option {
	return option(func(c *config) error {
		c.tx = &opts
		return nil
	})
}

// MinTTL demands that at least d of the lock's time is left when the work is about to
// be committed; less is [sqllock.ErrTTLTooShort]. The time is that of
// [sqllock.Lock.Remaining] or, in the fenced form, [sqllock.Lock.AssertTTL]. It is an
// error for a lock without a TTL, and if d is not positive.
func MinTTL(d time.Duration) Option {
	return option(func(c *config) error {
		if d <= 0 {
			return fmt.Errorf("MinTTL(%v): it must be positive", d)
		}
		c.minTTL = d
		return nil
	})
}

// Retries has the function run again in a new transaction, up to n times more,
// after a deadlock or a serialization failure that has rolled the transaction back
// (errors 1213 and 1020 of MySQL and MariaDB, SQLSTATE 40P01 and 40001 of PostgreSQL,
// also as its answer to COMMIT), if the lock is still held, after a short pause. The
// function has to return the error of the statement, wrapped or not. What it does outside of
// the transaction happens again. It is not for functions with statements that commit
// implicitly. n must not be negative.
func Retries(n int) Option {
	return option(func(c *config) error {
		if n < 0 {
			return fmt.Errorf("Retries(%d): it must not be negative", n)
		}
		c.retries = n
		return nil
	})
}

// WithEvidence has the transaction of [Run], [Do] and [TryDo] write its id into the
// fence table f, which must be in the database that the lock's session works on. If
// the answer to COMMIT is lost, it is looked up there, over the pool of f, whether
// it was committed; if that is another server or database, the outcome stays unknown. It
// costs one round trip more. Fenced transactions always do so.
func WithEvidence(f *Fence) Option {
	return option(func(c *config) error {
		if f == nil {
			return errors.New("WithEvidence(nil): it needs a fence, made by NewFence")
		}
		c.fence = f
		return nil
	})
}

// WithLockOptions sets how [Do] and [TryDo] acquire, for example by [sqllock.TTL].
func WithLockOptions(opts ...sqllock.LockOption) Option {
	return option(func(c *config) error {
		c.lock = append(c.lock, opts...)
		return nil
	})
}
