#!/usr/bin/env bash
# The tests drive a real Chromium and a real PostgreSQL, and build the C++ kernels. Without a browser or a compiler they
# fail, they do not skip.
set -euo pipefail

has_browser() { command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; }
has_compiler() { command -v "${CXX:-g++}" >/dev/null; }
has_cjk_font() { command -v fc-list >/dev/null && [ -n "$(fc-list :lang=zh)" ]; }
has_postgres() { command -v initdb >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null; }

missing=()
has_browser || missing+=(chromium)
has_compiler || missing+=(g++)
has_cjk_font || missing+=(fontconfig fonts-noto-cjk fonts-dejavu-core)
has_postgres || missing+=(postgresql)
[ "${#missing[@]}" -gt 0 ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    exit 0
fi

if has_browser && has_compiler && has_cjk_font; then exit 0; fi # without PostgreSQL its tests skip and say so
echo "The tests need the packages ${missing[*]}: install them, then run make test again." >&2
exit 1
