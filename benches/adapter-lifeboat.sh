#!/usr/bin/env bash
# Drives lifeboat for a harness that speaks in verbs: adapter-lifeboat.sh VERB. Cold: the server is stopped, its data folder is read by the
# `files` source. Unsupported verbs exit 3.
#
#   info mode kind init archive_command after_start backup_full backup_incr verify restore
#
# In the environment: PGDATA (what is backed up), BENCH_REPO and BENCH_STATE (folders of the tool's own), BENCH_DEST (an empty folder),
# BENCH_PASS; LIFEBOAT names the program (default: the release build beside this script, else PATH).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
program=${LIFEBOAT:-$here/../target/release/lifeboat}
[ -x "$program" ] || program=lifeboat
export LIFEBOAT_PASSPHRASE=${BENCH_PASS:-benchmark-only-passphrase}

lifeboat() { "$program" --plans "$BENCH_STATE/plans" --state "$BENCH_STATE/state" --progress none "$@"; }

write_plan() {
  mkdir -p "$BENCH_STATE/plans" "$BENCH_STATE/state"
  cat >"$BENCH_STATE/plans/bench.toml" <<PLAN
version = 1

[repository.main]
url = "file://$BENCH_REPO/repo"
passphrase = { env = "LIFEBOAT_PASSPHRASE" }

[source.pgdata]
kind = "files"
path = "$PGDATA"
page_size = 8192

[plan.bench]
source = "pgdata"
repository = "main"
PLAN
}

case "${1:-}" in
  info)
    "$program" --version
    echo "files source, page_size = 8192, zstd 3, AES-256-GCM"
    ;;
  mode) echo cold ;;
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
    mkdir -p "$BENCH_DEST"
    lifeboat restore bench --latest --to "$BENCH_DEST" --yes
    chmod 700 "$BENCH_DEST"
    ;;
  *) exit 3 ;;
esac
