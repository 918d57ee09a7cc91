# Sourced by deploy/quickstart: starts the processes and ends them in order.
# shellcheck shell=bash

pids=() names=()
postgres_pid=''

# start NAME COMMAND...  Runs the command in the background, with its output in $logs/NAME.log.
start() {
  local name=$1
  shift
  # In its own session, so that Ctrl-C reaches only this script, which stops all in order.
  setsid "$@" >"$logs/$name.log" 2>&1 </dev/null 9>&- &
  pids+=($!) names+=("$name")
}

# Stops all started processes, newest first: edges, coordinator, origin, then PostgreSQL.
stop_everything() {
  local index pid
  trap - EXIT INT TERM HUP
  for ((index = ${#pids[@]} - 1; index >= 0; index--)); do
    kill -TERM "${pids[index]}" 2>/dev/null
  done
  for ((index = ${#pids[@]} - 1; index >= 0; index--)); do
    pid=${pids[index]}
    wait_or_kill "$pid" 15
  done
  if [ -n "$postgres_pid" ]; then
    # Fast shutdown: sessions are cut, but commits are kept.
    as_database_owner kill -INT "$postgres_pid" 2>/dev/null
    wait_or_kill "$postgres_pid" 20
  fi
}

wait_or_kill() {
  local pid=$1 until=$((SECONDS + $2))
  while kill -0 "$pid" 2>/dev/null; do
    if [ "$SECONDS" -ge "$until" ]; then kill -KILL "$pid" 2>/dev/null; fi
    # A child that ended stays a zombie until it is waited for.
    case $(ps -o stat= -p "$pid" 2>/dev/null) in Z* | '') break ;; esac
    sleep 0.1
  done
  wait "$pid" 2>/dev/null
}

# PostgreSQL refuses to run as root; then it runs as the user of its package.
as_database_owner() {
  if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"
  else "$@"
  fi
}

# start_postgres DATA_DIR PORT  Starts a private cluster on 127.0.0.1 and a socket in its directory.
start_postgres() {
  local data=$1 port=$2 bin
  bin=$(postgres_bin)
  if [ ! -s "$data/PG_VERSION" ]; then
    note "making a private PostgreSQL cluster in $data"
    mkdir -p "$data"
    [ "$(id -u)" != 0 ] || chown postgres:postgres "$data"
    (cd / && as_database_owner "$bin/initdb" -D "$data" -U postgres -A trust -E UTF8 --locale=C \
      >"$logs/initdb.log" 2>&1) ||
      { cat "$logs/initdb.log"; die "initdb failed"; }
  fi
  local as=()
  [ "$(id -u)" != 0 ] || as=(setpriv --reuid=postgres --regid=postgres --clear-groups --)
  (cd / && exec setsid "${as[@]}" "$bin/postgres" -D "$data" -c listen_addresses=127.0.0.1 \
    -c "port=$port" -c "unix_socket_directories=$data" \
    >"$logs/postgres.log" 2>&1 </dev/null 9>&-) &
  postgres_pid=$!
  wait_for 60 "PostgreSQL accepts connections (log: $logs/postgres.log)" \
    "$bin/psql" -X -q -h 127.0.0.1 -p "$port" -U postgres -c 'SELECT 1' postgres
}

# wait_ready NAME PID URL  Waits until readyz answers 200; dies if the process ends before.
wait_ready() {
  local name=$1 pid=$2 url=$3 until=$((SECONDS + 60))
  until curl -sf -o /dev/null --max-time 2 "$url"; do
    if ! kill -0 "$pid" 2>/dev/null || [ "$SECONDS" -ge "$until" ]; then
      tail -n 30 "$logs/$name.log" >&2
      die "$name is not ready (its log is above): $(curl -s --max-time 2 "$url")"
    fi
    sleep 0.1
  done
}
