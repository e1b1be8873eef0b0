#!/bin/sh
# Puts the database servers that the tests need into a cache folder, and says
# what to do where that can't be done. It installs nothing on the system, needs
# no root, starts no service, and does nothing for what is there already.
#
#   usage: install.sh [mysql] [mariadb]      (none named: both)
#
# A server is left out when its DSN is given (MYSQL_DSN, MARIADB_DSN) or when
# SKIP_SERVERS names it. The cache is SQLLOCK_CACHE, or go-sqllock in the user's
# cache folder. Afterwards $cache/KIND holds
#
#   server   runs the server: a script that takes the server's own arguments
#   data/    an initialised, empty data folder to copy
#   docker   instead of both, the image to run where only Docker is there
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
	esac
	[ -n "$_name" ] || return 1
	say "$_kind: downloading $_name and its libraries"
	apt_in "$_apt" apt-get -y --no-install-recommends --download-only install "$_name" >/dev/null || return 1
	for _deb in "$_apt"/archives/*.deb; do
		case ${_deb##*/} in perl* | libperl*) continue ;; esac # for helper scripts that are not run here
		dpkg-deb --fsys-tarfile "$_deb" | tar -x -C "$_root" --exclude='./usr/share/doc*' --exclude='./usr/share/man*' \
			--exclude='./usr/share/locale*' --exclude='./usr/lib/*/gconv*'
	done
	rm -rf "$_apt"
	_program=mysqld
	[ "$_kind" = mysql ] || _program=mariadbd
	cat >"$2/server" <<EOF
#!/bin/sh
# The libraries are those of the server's release, so its loader is, too.
root=\$(cd "\$(dirname "\$0")" && pwd)/root
set -- "\$root/usr/sbin/$_program" --no-defaults --basedir="\$root/usr" --lc-messages-dir="\$root/usr/share/mysql" "\$@"
libs=
for dir in "\$root"/lib/*-linux-gnu "\$root"/usr/lib/*-linux-gnu; do libs=\$libs:\$dir; done
for loader in "\$root"/lib*/ld-linux*.so.* "\$root"/lib/*/ld-linux*.so.* "\$root"/usr/lib/*/ld-linux*.so.*; do
	[ ! -x "\$loader" ] || exec "\$loader" --library-path "\${libs#:}" "\$@"
done
echo "no loader below \$root" >&2
exit 1
EOF
	ln -s root/usr/share/mysql "$2/share"
}

# from_path KIND DIR uses a server that the user has installed.
from_path() {
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

# from_docker KIND DIR notes the image to run.
from_docker() {
	docker version >/dev/null 2>&1 || return 1
	case $1 in
	mysql) echo mysql:8.4 >"$2/docker" ;;
	mariadb) echo mariadb:10.11 >"$2/docker" ;;
	esac
	say "$1: using Docker with $(cat "$2/docker")"
}

# initialise KIND DIR makes the data folder that the instances are copied from.
initialise() {
	mkdir "$2/data"
	chmod +x "$2/server"
	case $1 in
	mysql)
		"$2/server" --user="$(id -un)" --initialize-insecure --datadir="$2/data" \
			--secure-file-priv=NULL --innodb-redo-log-capacity=8M >"$2/init.log" 2>&1
		;;
	mariadb)
		[ -e "$2/share" ] || { echo "no mysql_system_tables.sql was found beside the server" >"$2/init.log"; return 1; }
		{
			printf 'CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket=NULL;\n'
			cat "$2/share/mysql_system_tables.sql" "$2/share/mysql_performance_tables.sql" "$2/share/mysql_system_tables_data.sql"
		} | "$2/server" --user="$(id -un)" --bootstrap --datadir="$2/data" --innodb-log-file-size=4M \
			--innodb-data-file-path=ibdata1:1M:autoextend --innodb-autoextend-increment=1 --innodb-undo-tablespaces=0 \
			>"$2/init.log" 2>&1
		;;
	esac || { cat "$2/init.log" >&2; return 1; }
}

install() {
	_to=$cache/$1
	if [ -e "$_to/server" ] || [ -e "$_to/docker" ]; then return 0; fi
	_work=$(mktemp -d "$cache/.$1.XXXXXX")
	trap 'rm -rf "$_work"' EXIT
	trap 'exit 1' HUP INT TERM
	if from_apt "$1" "$_work" || from_path "$1" "$_work"; then
		initialise "$1" "$_work" || fail "$1: the server did not initialise a data folder; see above"
	elif ! from_docker "$1" "$_work"; then
		fail "$1 could not be had: this machine has no apt with a $1-server-core package, no $1 server in PATH and no Docker engine.
Do one of these, then run the command again:
  - install the server: brew install $1 (macOS), or your system's package; it need not be started
  - start Docker
  - name a server that is running, whose user may create databases and kill sessions:
      $(echo "$1" | tr a-z A-Z)_DSN='user:password@tcp(127.0.0.1:3306)/'
  - go on without it: SKIP_SERVERS=$1"
	fi
	# Another run may have been faster.
	[ -e "$_to" ] || mv "$_work" "$_to"
	rm -rf "$_work"
	trap - EXIT
	say "$1: ready in $_to"
}

[ $# -gt 0 ] || set -- mysql mariadb
for kind in "$@"; do
	case ",${SKIP_SERVERS:-}," in *",$kind,"*) say "$kind: left out by SKIP_SERVERS"; continue ;; esac
	case $kind in
	mysql) dsn=${MYSQL_DSN:-} ;;
	mariadb) dsn=${MARIADB_DSN:-} ;;
	*) fail "there is no server called $kind; known are mysql and mariadb" ;;
	esac
	if [ -n "$dsn" ]; then
		say "$kind: the DSN from the environment is used"
	else
		install "$kind"
	fi
done
