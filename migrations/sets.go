package migrations

// set is the migrations of one table, and what that has to be like.
type set struct {
	table    string // its name, unless WithTable gives another
	folder   string // of the embedded files
	comment  string // of a table that they make
	row      string // what one row of it is
	form     string // what the next is
	engine   string // the only one that will do, "" if WithEngine may choose
	key      string // that it needs on the column name: unique or primary
	again    bool   // whether Up looks for what would spoil the table each time
	sequence bool   // whether there is one beside it
	columns  []need // of the first version, which an INSERT fills
	added    []need // by the later ones
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
