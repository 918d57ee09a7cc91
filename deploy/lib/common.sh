# Sourced by deploy/quickstart and tests/run: installs the packages that a fresh Debian 12 lacks.
# shellcheck shell=bash

say() {
  printf '\n\033[1m%s\033[0m\n' "$*" | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9;]*m//g'; fi
}
note() { printf '  %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "'$*' needs root: run as root, or install sudo"
  fi
}

# Directory of the newest PostgreSQL's programs (Debian keeps them out of PATH); fails if there is
# none.
postgres_bin() {
  local found
  found=$(find /usr/lib/postgresql -maxdepth 3 -path '*/bin/postgres' 2>/dev/null |
    sort -V | tail -n 1)
  if [ -n "$found" ]; then dirname "$found"
  elif command -v postgres >/dev/null; then dirname "$(command -v postgres)"
  else return 1
  fi
}

# install_missing PACKAGE:COMMAND...  Installs the packages whose command is missing, in one go.
install_missing() {
  local pair package program missing=()
  for pair in "$@"; do
    package=${pair%%:*} program=${pair#*:}
    if [ "$program" = postgres ]; then postgres_bin >/dev/null || missing+=("$package")
    else PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing+=("$package")
    fi
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "install these first (this is not Debian): ${missing[*]}"
  note "installing with apt-get: ${missing[*]}"
  keep_services_down
  if ! as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1; then
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  fi
  allow_services_again
}

# Debian starts a cluster when PostgreSQL is installed. Ours is private, so prevent that.
keep_services_down() {
  if [ -d /etc/postgresql-common ] || [ -e /etc/postgresql-common/createcluster.conf ]; then
    return 0
  fi
  as_root mkdir -p /etc/postgresql-common
  echo 'create_main_cluster = false' |
    as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
  made_cluster_conf=1
}
allow_services_again() {
  [ "${made_cluster_conf:-0}" = 1 ] || return 0
  as_root rm -f /etc/postgresql-common/createcluster.conf
  made_cluster_conf=0
}

require_toolchain() {
  command -v cargo >/dev/null || { [ -r "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"; }
  command -v cargo >/dev/null || die "the Rust toolchain is missing: see https://rustup.rs"
}

# free_port PREFERRED  Prints the port, or the next one without a listener.
free_port() {
  local port=$1
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null ||
    [[ " ${taken_ports:-} " == *" $port "* ]]; do
    port=$((port + 1))
    [ "$port" -lt $(($1 + 2000)) ] || die "no free port from $1"
  done
  echo "$port"
}

# wait_for SECONDS WHAT COMMAND...  Waits until the command succeeds; otherwise dies and names WHAT.
wait_for() {
  local seconds=$1 what=$2 until
  shift 2
  until=$((SECONDS + seconds))
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$until" ] || die "not within $seconds s: $what"
    sleep 0.1
  done
}

now_ms() { date +%s%3N; }
