#!/usr/bin/env bash
# Drives a postgres source of lifeboat for a harness that speaks in verbs: adapter-lifeboat-postgres.sh VERB, run as the server's user. The
# server runs meanwhile. Unsupported verbs exit 3.
#
#   info mode kind init archive_command after_start backup_full backup_incr verify restore drill
#
# In the environment: PGDATA, PGHOST (socket folder), PGPORT, PGBIN, BENCH_REPO and BENCH_STATE (folders of the tool's own), BENCH_DEST (an
# empty folder), BENCH_PASS; LIFEBOAT names the program (default: the release build beside this script, else PATH); LIFEBOAT_READS=remote
# takes the backup through the replication protocol instead of reading the files.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
program=${LIFEBOAT:-$here/../target/release/lifeboat}
[ -x "$program" ] || program=lifeboat
export LIFEBOAT_PASSPHRASE=${BENCH_PASS:-benchmark-only-passphrase}
export BENCH_SERVER="host=${PGHOST:-} port=${PGPORT:-} user=postgres dbname=postgres"

lifeboat() { "$program" --plans "$BENCH_STATE/plans" --state "$BENCH_STATE/state" --progress none "$@"; }

write_plan() {
  mkdir -p "$BENCH_STATE/plans" "$BENCH_STATE/state"
  local data_directory="data_directory = \"$PGDATA\""
  [ "${LIFEBOAT_READS:-local}" = local ] || data_directory=
  cat >"$BENCH_STATE/plans/bench.toml" <<PLAN
version = 1

[repository.main]
url = "file://$BENCH_REPO/repo"
passphrase = { env = "LIFEBOAT_PASSPHRASE" }

[source.server]
kind = "postgres"
url = { env = "BENCH_SERVER" }
bin_directory = "$PGBIN"
$data_directory

[plan.bench]
source = "server"
repository = "main"
PLAN
}

case "${1:-}" in
  info)
    "$program" --version
    echo "postgres source, ${LIFEBOAT_READS:-local} reading, zstd 3, AES-256-GCM"
    ;;
  mode) echo online ;;
  kind) echo pgdata ;;
  init)
    write_plan
    lifeboat repo init main
    ;;
  archive_command) echo /bin/true ;;
  after_start) ;;
  backup_full | backup_incr) lifeboat backup bench ;;
  verify) lifeboat verify bench --data ;;
  restore)
    # The backup's own moment, as the others restore it.
    lifeboat restore bench --latest --to "$BENCH_DEST" --yes
    ;;
  drill) lifeboat drill run bench ;;
  *) exit 3 ;;
esac
