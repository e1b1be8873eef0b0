#!/bin/sh
# Puts the database servers that the tests need into a cache folder, and says
# what to do where that can't be done. It installs nothing on the system, needs
# no root, starts no service, and does nothing for what is there already.
#
#   usage: install.sh [mysql] [mariadb] [postgres] [pgbouncer]   (none named: all)
#
# A server is left out when its DSN is given (MYSQL_DSN, MARIADB_DSN,
# POSTGRES_DSN) or when SKIP_SERVERS names it. PgBouncer, which stands in front
# of PostgreSQL, private or of the DSN, is left out with postgres. The cache is
# SQLLOCK_CACHE, or go-sqllock in the user's cache folder. Afterwards $cache/KIND
# holds
#
#   server   runs the server: a script that takes the server's own arguments
#   data/    an initialised, empty data folder to copy (PgBouncer has none)
#   docker   instead of both, the image to run where only Docker is there
#
# PostgreSQL and PgBouncer refuse to run as root: for root, the script runs them as
# nobody.
set -eu

cache=${SQLLOCK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/go-sqllock}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

say() { echo "servers: $*" >&2; }
fail() { say "$*"; exit 1; }

# apt_in DIR COMMAND… runs an apt command on a state of its own, in which no
# package is installed: what it downloads is complete down to the C library.
apt_in() {
	_dir=$1 _command=$2
	shift 2
	"$_command" -qq -o "Dir::State=$_dir" -o "Dir::State::status=$_dir/status" -o "Dir::Cache=$_dir" \
		-o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none -o Acquire::PDiffs=false \
		-o Acquire::Retries=3 -o Debug::NoLocking=1 $apt_sources "$@"
}

# apt_package DIR PATTERN prints the newest package whose name matches.
apt_package() { apt_in "$1" apt-cache search --names-only "$2" | cut -d' ' -f1 | sort -V | tail -n 1; }

# assume DIR PACKAGE… makes apt take packages for installed that are only needed
# to set up a service, and those for what is not used here.
assume() {
	_dir=$1
	shift
	for _package in debconf locales lsb-base perl perl-base postgresql-client-common postgresql-common ssl-cert tzdata "$@"; do
		printf 'Package: %s\nStatus: install ok installed\nVersion: 9999\nArchitecture: %s\nMaintainer: none\nDescription: none\n\n' \
			"$_package" "$(dpkg --print-architecture)" >>"$_dir/status"
	done
}

# script FILE TEXT writes a script.
script() {
	printf '#!/bin/sh\n%s\n' "$2" >"$1"
	chmod +x "$1"
}

# as_nobody begins the script of a server that refuses root. Of root's rights it
# keeps the one to enter folders of root's, where the cache and the instances may
# be. PostgreSQL asks access(2) beforehand, which without no_setuid_fixup would
# disregard that.
as_nobody='[ "$(id -u)" != 0 ] || exec setpriv --reuid="$(id -u nobody)" --regid="$(id -g nobody)" --clear-groups \
	--securebits=+no_setuid_fixup --inh-caps=-all,+dac_override --ambient-caps=-all,+dac_override "$0" "$@"'

# loader_script FILE SETUP writes a script that runs what SETUP puts into "$@",
# a program below $root. The libraries are those of its release, so its loader
# is, too; the name for it that comes last may be a link to that of the system.
loader_script() {
	script "$1" "root=\$(cd \"\$(dirname \"\$0\")\" && pwd)/root
$2
"'libs=
for dir in "$root"/lib/*-linux-gnu "$root"/usr/lib/*-linux-gnu; do libs=$libs:$dir; done
for loader in "$root"/lib/*/ld-linux*.so.* "$root"/usr/lib/*/ld-linux*.so.* "$root"/lib*/ld-linux*.so.*; do
	[ ! -x "$loader" ] || exec "$loader" --library-path "${libs#:}" "$@"
done
echo "no loader below $root" >&2
exit 1'
}

# from_apt KIND DIR unpacks the server and all that it links into DIR/root,
# from the sources that this machine's apt is set up with. Debian has MySQL in
# its unstable release only, so for that one the mirror is asked for sid.
from_apt() {
	_kind=$1 _root=$2/root
	command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
	_apt=$2/apt
	mkdir -p "$_apt/lists/partial" "$_apt/archives/partial" "$_root"
	: >"$_apt/status"
	apt_sources=
	apt_in "$_apt" apt-get update || say "apt-get update complained; going on with what it got"
	case $_kind in
	mariadb) _name=$(apt_package "$_apt" '^mariadb-server-core(-[0-9.]+)?$') ;;
	mysql)
		_name=$(apt_package "$_apt" '^mysql-server-core(-[0-9.]+)?$')
		if [ -z "$_name" ]; then
			_mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
			echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $_mirror sid main" >"$_apt/sid.list"
			apt_sources="-o Dir::Etc::sourcelist=$_apt/sid.list -o Dir::Etc::sourceparts=-"
			apt_in "$_apt" apt-get update
			_name=$(apt_package "$_apt" '^mysql-server-core(-[0-9.]+)?$')
		fi
		;;
	postgres)
		_name=$(apt_package "$_apt" '^postgresql-(1[5-9]|[2-9][0-9])$')
		[ -z "$_name" ] || assume "$_apt" $(apt_in "$_apt" apt-cache depends "$_name" | grep -o 'libllvm[0-9.]*$')
		;;
	pgbouncer)
		_name=$(apt_package "$_apt" '^pgbouncer$')
		assume "$_apt"
		;;
	esac
	[ -n "$_name" ] || return 1
	say "$_kind: downloading $_name and its libraries"
	if ! apt_in "$_apt" apt-get -y --no-install-recommends --download-only install "$_name" >/dev/null; then
		[ -s "$_apt/status" ] || return 1
		say "$_kind: once more, with all that it depends on"
		: >"$_apt/status"
		apt_in "$_apt" apt-get -y --no-install-recommends --download-only install "$_name" >/dev/null || return 1
	fi
	for _deb in "$_apt"/archives/*.deb; do
		case ${_deb##*/} in perl* | libperl*) continue ;; esac # for helper scripts that are not run here
		dpkg-deb --fsys-tarfile "$_deb" | tar -x -C "$_root" --exclude='./usr/share/doc*' --exclude='./usr/share/man*' \
			--exclude='./usr/share/locale*' --exclude='./usr/lib/*/gconv*' --exclude='./usr/lib/postgresql/*/lib/*llvm*' \
			--exclude='./usr/lib/postgresql/*/lib/bitcode'
	done
	rm -rf "$_apt"
	case $_kind in
	mysql | mariadb)
		_program=mysqld
		[ "$_kind" = mysql ] || _program=mariadbd
		loader_script "$2/server" "set -- \"\$root/usr/sbin/$_program\" --no-defaults --basedir=\"\$root/usr\" --lc-messages-dir=\"\$root/usr/share/mysql\" \"\$@\""
		ln -s root/usr/share/mysql "$2/share"
		;;
	postgres)
		# initdb runs the postgres beside it.
		_bin=usr/lib/postgresql/${_name#postgresql-}/bin
		mv "$_root/$_bin/postgres" "$_root/$_bin/postgres.elf"
		script "$_root/$_bin/postgres" 'exec "$(dirname "$0")/../../../../../../server" "$@"'
		loader_script "$2/server" "$as_nobody
set -- \"\$root/$_bin/postgres.elf\" \"\$@\""
		loader_script "$2/initdb" "$as_nobody
set -- \"\$root/$_bin/initdb\" \"\$@\""
		;;
	pgbouncer) loader_script "$2/server" "$as_nobody
set -- \"\$root/usr/sbin/pgbouncer\" \"\$@\"" ;;
	esac
}

# from_path KIND DIR uses a server that the user has installed.
from_path() {
	case $1 in
	postgres | pgbouncer) from_path_"$1" "$2"; return ;;
	esac
	for _dir in $(echo "$PATH" | tr : ' ') /usr/sbin /usr/libexec /usr/local/sbin /opt/homebrew/opt/"$1"/bin /usr/local/opt/"$1"/bin; do
		for _program in mariadbd mysqld; do
			_path=$_dir/$_program
			[ -x "$_path" ] || continue
			_is=mysql
			if "$_path" --no-defaults --version 2>/dev/null | grep -q MariaDB; then _is=mariadb; fi
			[ "$_is" = "$1" ] || continue
			printf '#!/bin/sh\nexec "%s" --no-defaults "$@"\n' "$_path" >"$2/server"
			for _share in "${_dir%/*}"/share/mysql "${_dir%/*}"/share/mariadb; do
				if [ -f "$_share/mysql_system_tables.sql" ] && [ ! -e "$2/share" ]; then ln -s "$_share" "$2/share"; fi
			done
			say "$1: using $_path"
			return 0
		done
	done
	return 1
}

# from_path_postgres DIR wants initdb beside it, which links of it in PATH need
# not have.
from_path_postgres() {
	for _dir in $(echo "$PATH" | tr : ' ') /usr/lib/postgresql/*/bin \
		/usr/pgsql-*/bin /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin; do
		[ -x "$_dir/postgres" ] && [ -x "$_dir/initdb" ] || continue
		"$_dir/postgres" --version 2>/dev/null | grep -qE ' (1[5-9]|[2-9][0-9])([^0-9]|$)' || continue
		script "$1/server" "$as_nobody
exec '$_dir/postgres' \"\$@\""
		script "$1/initdb" "$as_nobody
exec '$_dir/initdb' \"\$@\""
		say "postgres: using $_dir/postgres"
		return 0
	done
	return 1
}

from_path_pgbouncer() {
	for _dir in $(echo "$PATH" | tr : ' ') /usr/sbin /opt/homebrew/bin /usr/local/bin; do
		[ -x "$_dir/pgbouncer" ] || continue
		script "$1/server" "$as_nobody
exec '$_dir/pgbouncer' \"\$@\""
		say "pgbouncer: using $_dir/pgbouncer"
		return 0
	done
	return 1
}

# from_docker KIND DIR notes the image to run.
from_docker() {
	[ "$1" != pgbouncer ] || return 1
	docker version >/dev/null 2>&1 || return 1
	case $1 in
	mysql) echo mysql:8.4 >"$2/docker" ;;
	mariadb) echo mariadb:10.11 >"$2/docker" ;;
	postgres) echo postgres:17 >"$2/docker" ;;
	esac
	say "$1: using Docker with $(cat "$2/docker")"
}

# may_run is for the servers that refuse to run as root.
may_run() {
	[ "$(id -u)" != 0 ] || command -v setpriv >/dev/null || {
		echo "it refuses to run as root, and there is no setpriv (of util-linux) to run it as nobody: run this as another user"
		return 1
	}
}

# initialise KIND DIR makes the data folder that the instances are copied from.
initialise() {
	[ "$1" = pgbouncer ] || mkdir "$2/data"
	chmod +x "$2/server"
	case $1 in
	mysql)
		"$2/server" --user="$(id -un)" --initialize-insecure --datadir="$2/data" \
			--secure-file-priv=NULL --innodb-redo-log-capacity=8M
		;;
	mariadb)
		[ -e "$2/share" ] || { echo "no mysql_system_tables.sql was found beside the server"; false; } &&
		{
			printf 'CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket=NULL;\n'
			cat "$2/share/mysql_system_tables.sql" "$2/share/mysql_performance_tables.sql" "$2/share/mysql_system_tables_data.sql"
		} | "$2/server" --user="$(id -un)" --bootstrap --datadir="$2/data" --innodb-log-file-size=4M \
			--innodb-data-file-path=ibdata1:1M:autoextend --innodb-autoextend-increment=1 --innodb-undo-tablespaces=0
		;;
	postgres)
		[ "$(id -u)" != 0 ] || chown "$(id -u nobody):$(id -g nobody)" "$2/data"
		may_run && TZ=GMT "$2/initdb" -D "$2/data" -U postgres -A trust -N --locale=C -E UTF8 --wal-segsize=1
		;;
	pgbouncer) may_run && "$2/server" --version ;;
	esac >"$2/init.log" 2>&1 || { cat "$2/init.log" >&2; return 1; }
}

# fail_without KIND says what to do.
fail_without() {
	_package=$1-server-core _brew=$1 _url='user:password@tcp(127.0.0.1:3306)/' _skip=$1
	_docker='
  - start Docker'
	case $1 in
	postgres) _package='postgresql-15 (or newer)' _brew=postgresql@17 _url='postgres://user:password@127.0.0.1:5432/postgres' ;;
	pgbouncer) _package=pgbouncer _docker= _url= _skip='pgbouncer (or postgres: neither of the two)' ;;
	esac
	fail "$1 could not be had: this machine has no apt with a $_package package, no $1 server in PATH${_docker:+ and no Docker engine}.
Do one of these, then run the command again:
  - install the server: brew install $_brew (macOS), or your system's package; it need not be started$_docker${_url:+
  - name a server that is running, whose user may create databases and kill sessions:
      $(echo "$1" | tr a-z A-Z)_DSN='$_url'}
  - go on without it: SKIP_SERVERS=$_skip"
}

install() {
	_to=$cache/$1
	if [ -e "$_to/server" ] || [ -e "$_to/docker" ]; then return 0; fi
	_work=$(mktemp -d "$cache/.$1.XXXXXX")
	trap 'rm -rf "$_work"' EXIT
	trap 'exit 1' HUP INT TERM
	if from_apt "$1" "$_work" || from_path "$1" "$_work"; then
		initialise "$1" "$_work" || fail "$1: the server that was found does not work here; see above"
	elif ! from_docker "$1" "$_work"; then
		fail_without "$1"
	fi
	# Another run may have been faster.
	[ -e "$_to" ] || mv "$_work" "$_to"
	rm -rf "$_work"
	trap - EXIT
	say "$1: ready in $_to"
}

[ $# -gt 0 ] || set -- mysql mariadb postgres pgbouncer
for kind in "$@"; do
	case $kind:,${SKIP_SERVERS:-}, in *",$kind,"* | pgbouncer:*,postgres,*) say "$kind: left out by SKIP_SERVERS"; continue ;; esac
	case $kind in
	mysql) dsn=${MYSQL_DSN:-} ;;
	mariadb) dsn=${MARIADB_DSN:-} ;;
	postgres) dsn=${POSTGRES_DSN:-} ;;
	pgbouncer) dsn= ;;
	*) fail "there is no server called $kind; known are mysql, mariadb, postgres and pgbouncer" ;;
	esac
	if [ -n "$dsn" ]; then
		say "$kind: the DSN from the environment is used"
	else
		install "$kind"
	fi
done
