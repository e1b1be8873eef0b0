#!/bin/sh
# Sees to it that there is a Chromium, in which the tests look at the page of lockhttp.
# SKIP_SERVERS=browser does without: those tests are skipped then, and say so.
set -eu

case ",${SKIP_SERVERS:-}," in *,browser,*) exit 0 ;; esac
for browser in chromium chromium-browser google-chrome google-chrome-stable headless-shell chrome; do
	if command -v "$browser" >/dev/null; then exit 0; fi
done
mac="/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
if [ -x "$mac" ]; then exit 0; fi
if command -v apt-get >/dev/null; then
	sudo=
	[ "$(id -u)" = 0 ] || sudo=sudo
	if [ -z "$sudo" ] || command -v sudo >/dev/null; then
		echo "browser: the tests look at a page in a real browser; installing chromium" >&2
		$sudo apt-get -qq update
		DEBIAN_FRONTEND=noninteractive $sudo apt-get -qq -y --no-install-recommends install chromium >/dev/null
		exit 0
	fi
fi
echo "browser: the tests look at a page in a real browser, and there is no Chromium or Chrome in PATH: install one
    (as root: apt-get install chromium), or leave these tests out by SKIP_SERVERS=browser, then run the command again" >&2
exit 1
