#!/bin/sh
# Sees to it that there is a C compiler, which the race detector needs on Linux.
set -eu

cc=$(go env CC)
if command -v "${cc%% *}" >/dev/null; then exit 0; fi
if command -v apt-get >/dev/null; then
	sudo=
	[ "$(id -u)" = 0 ] || sudo=sudo
	if [ -z "$sudo" ] || command -v sudo >/dev/null; then
		echo "cc: the race detector needs a C compiler; installing gcc" >&2
		$sudo apt-get -qq update
		DEBIAN_FRONTEND=noninteractive $sudo apt-get -qq -y --no-install-recommends install gcc libc6-dev >/dev/null
		exit 0
	fi
fi
echo "cc: the race detector needs a C compiler, and there is no ${cc%% *}: install gcc (as root: apt-get install gcc libc6-dev;
    macOS: xcode-select --install), then run the command again" >&2
exit 1
