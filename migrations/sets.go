package migrations

// set is the migrations of one table, and what that has to be like.
type set struct {
	table   string // its name, unless WithTable gives another
	folder  string // of the embedded files
	comment string // of a table that they make
	row     string // what one row of it is
	engine  string // the only one that will do, "" if WithEngine may choose
	key     string // that it needs on the column name: unique or primary
	again   bool   // whether Up looks for what would spoil the table each time
	columns []need // of the first version, which an INSERT fills
	added   []need // by the later ones
}

// need is a column that a table must have.
type need struct {
	name   string
	types  []string
	length int64  // at least, of text
	holds  string // what of that length
}

// nameLength is what sqllock.Key needs.
const nameLength = 64

// locks are the migrations of the lock table. PHP may have made it, with types
// that are not quite these.
func locks() *set {
	text := []string{"char", "varchar", "binary", "varbinary"}
	number := []string{"tinyint", "smallint", "mediumint", "int", "bigint"}
	return &set{
		table:   "shared_locks",
		folder:  "mysql",
		comment: "go-sqllock: locks",
		row:     "lock",
		key:     "unique",
		columns: []need{
			{name: "name", types: text, length: nameLength, holds: "names"},
			{name: "connection_id", types: number},
			{name: "created", types: number},
			{name: "ttl", types: number},
			{name: "lock_acquired", types: number},
		},
		added: []need{
			{name: "token", types: number},
			{name: "holder", types: text},
		},
	}
}

// fences are the migrations of the fence table. Where its key or its transactions
// are missing, a fence admits everybody without a word, so Up looks again.
func fences() *set {
	number := []string{"bigint"}
	return &set{
		table:   "lock_fences",
		folder:  "mysql/fences",
		comment: "go-sqllock: fences",
		row:     "fence",
		engine:  "InnoDB",
		key:     "primary",
		again:   true,
		columns: []need{
			{name: "name", types: []string{"char", "varchar", "varbinary"}, length: nameLength, holds: "names"},
			{name: "token", types: number},
			{name: "seq", types: number},
			{name: "commits", types: []string{"varbinary"}, length: 64 * 8, holds: "the ids of commits"},
			{name: "session", types: number},
			{name: "updated", types: number},
		},
	}
}
