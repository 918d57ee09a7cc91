# Sourced by the scripts of this directory.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=../../deploy/lib/common.sh
. "$root/deploy/lib/common.sh"

# Exit status of a script whose tools cannot be had; tests/deploy/files counts it separately.
skipped=77
skip() { printf 'skipped: %s\n' "$*"; exit "$skipped"; }

# Files of this run, deleted at its end.
work=$(mktemp -d "${TMPDIR:-/tmp}/chunkcache-deploy.XXXXXX")
cleanups=()
clean_up() {
  local index
  for ((index = ${#cleanups[@]} - 1; index >= 0; index--)); do eval "${cleanups[index]}"; done
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

failures=0
ok() { printf '  ok      %s\n' "$*"; }
bad() { printf '  FAILED  %s\n' "$*"; failures=$((failures + 1)); }
# expect WHAT COMMAND...  Shows the output only if the command fails.
expect() {
  local what=$1
  shift
  # In a subshell, so that `die` in it only fails this step.
  if ("$@") >"$work/output" 2>&1; then
    ok "$what"
  else
    bad "$what"
    sed 's/^/          /' "$work/output" | head -n 40
  fi
}
finish() {
  [ "$failures" = 0 ] || { echo "$failures failed"; exit 1; }
  exit 0
}

# binary NAME  Prints its path: in CHUNKCACHE_BIN_DIR, else release, else debug. Fails if it is not
# built.
binary() {
  local target=${CARGO_TARGET_DIR:-$root/target} directory
  for directory in "${CHUNKCACHE_BIN_DIR:-}" "$target/release" "$target/debug"; do
    [ -n "$directory" ] && [ -x "$directory/$1" ] && { echo "$directory/$1"; return 0; }
  done
  return 1
}
