"""The `postgres` scenario: running servers, each with the CRM's data, backed up by the program that it belongs to.

Every program has a server of its own (a copy of the same data folder), so that nobody pays for another's archiving. It runs only while its
program is measured. Every restored folder is started and its rows are counted and compared; a wrong restore voids the figure.
"""
import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import time

import crm_rows
import dataset
import tools
from measure import process_tree, pss_kib
from tools import PASSPHRASE, Command

HERE = pathlib.Path(__file__).resolve().parent
STEPS = ["full", "no change", "incremental", "restore", "delta", "drill"]
COUNTS = " union all ".join(f"select '{table}', count(*), sum(id) from {table}" for table in crm_rows.TABLES) + " order by 1"

# What a careful operator does by hand to prove a backup: restore, start, check the structure, count, stop, check the pages.
DRILL = r"""set -euo pipefail
bin=$1 data=$2 socket=$3 jobs=$4; shift 4
"$@"
"$bin/pg_ctl" -D "$data" -w -t 900 -s -l "$socket/drill.log" -o "-p 5433 -k $socket -c listen_addresses='' -c archive_mode=off" start
until [ "$("$bin/psql" -XAtq -h "$socket" -p 5433 -d crm -c 'select pg_is_in_recovery()' 2>/dev/null)" = f ]; do sleep 0.05; done
"$bin/pg_amcheck" -h "$socket" -p 5433 -d crm -j "$jobs" --install-missing
"$bin/psql" -XAtq -h "$socket" -p 5433 -d crm -c "$COUNTS"
"$bin/pg_ctl" -D "$data" -w -s -m fast stop
"$bin/pg_checksums" --check -D "$data"
rm -rf "$data"
"""


class LiveTool:
    """Drives one program against `cluster`, as the server's user."""
    steps = ("full", "incremental", "restore", "drill")
    reads = ""

    def __init__(self, name, tool, place, cluster):
        self.name, self.tool, self.place, self.cluster = name, tool, place, cluster

    def init(self):
        return []

    def archive_command(self):
        return "/bin/true"

    def after_start(self):
        return []

    def drill(self, target):
        restore = self.restore(target, "drill")
        return Command(["bash", "-c", DRILL, "drill", self.cluster.programs, target, self.cluster.socket, self.place.jobs, *restore.argv],
                       {**restore.env, "COUNTS": COUNTS, "PGUSER": "postgres"})


class Lifeboat(LiveTool):
    steps = tuple(STEPS)
    database = "crm"

    def command(self, *arguments):
        return Command([self.tool.program, "--plans", self.place.root / "plans", "--state", self.place.state, "--progress", "none", *arguments],
                       {"LIFEBOAT_PASSPHRASE": PASSPHRASE, "BENCH_SERVER": f"host={self.cluster.socket} user=postgres dbname={self.database}"})

    def init(self):
        folder = self.place.root / "plans"
        folder.mkdir()
        local = f'data_directory = "{self.cluster.data}"\n' if self.reads == "local" else ""
        (folder / "bench.toml").write_text(
            f'version = 1\n\n[repository.main]\nurl = "file://{self.place.repository}"\npassphrase = {{ env = "LIFEBOAT_PASSPHRASE" }}\n\n'
            f'[source.server]\nkind = "postgres"\nurl = {{ env = "BENCH_SERVER" }}\nbin_directory = "{self.cluster.programs}"\n'
            f'log = "stream"\n{local}\n[plan.bench]\nsource = "server"\nrepository = "main"\n', encoding="utf-8")
        return [self.command("repo", "init", "main")]

    def full(self):
        return self.command("backup", "bench")

    def incremental(self):
        return self.command("backup", "bench")

    def restore(self, target, step):
        point = ["--snapshot", self.first] if step == "before" else ["--latest"]
        delta = ["--delta", "--overwrite", target.name] if step == "delta" else []
        return self.command("restore", "bench", *point, *delta, "--to", target, "--yes")

    def drill(self, target):
        return self.command("drill", "run", "bench")

    def note_first(self, run):
        told = json.loads(run(self.command("snapshots", "bench", "--json")))
        self.first = told["snapshots"][0]["id"]


class LocalLifeboat(Lifeboat):
    reads = "local"


class PgBackRest(LiveTool):
    steps = ("full", "incremental", "restore", "delta", "drill")

    def command(self, *arguments):
        return Command([self.tool.program, f"--config={self.place.state}/pgbackrest.conf", "--stanza=bench", *arguments])

    def init(self):
        for folder in ("lock", "log", "spool"):
            (self.place.state / folder).mkdir()
        (self.place.state / "pgbackrest.conf").write_text(
            f"[global]\nrepo1-path={self.place.repository}\nlock-path={self.place.state}/lock\nlog-path={self.place.state}/log\n"
            f"spool-path={self.place.state}/spool\nlog-level-console=warn\nlog-level-file=off\nprocess-max={self.place.jobs}\n"
            f"compress-type=zst\ncompress-level=3\nstart-fast=y\nrepo1-retention-full=9\nrepo1-cipher-type=aes-256-cbc\n"
            f"repo1-cipher-pass={PASSPHRASE}\nrepo1-bundle=y\nrepo1-block=y\n[bench]\npg1-path={self.cluster.data}\n"
            f"pg1-socket-path={self.cluster.socket}\npg1-user=postgres\n", encoding="utf-8")
        return []

    def archive_command(self):
        return " ".join(map(str, self.command("archive-push").argv)) + " %p"

    def after_start(self):
        return [self.command("stanza-create")]

    def full(self):
        return self.command("backup", "--type=full")

    def incremental(self):
        return self.command("backup", "--type=incr")

    def restore(self, target, step):
        which = [f"--set={self.first}"] if step == "before" else []
        delta = ["--delta"] if step == "delta" else []
        return self.command("restore", f"--pg1-path={target}", "--type=immediate", "--target-action=promote", *which, *delta)

    def note_first(self, run):
        self.first = json.loads(run(self.command("info", "--output=json")))[0]["backup"][0]["label"]


class PgBaseBackup(LiveTool):
    """Compressed by the server, not encrypted."""
    steps = ("full", "restore", "drill")

    def full(self):
        return Command([self.cluster.programs / "pg_basebackup", "-D", self.place.repository / "full", "-Ft", "-X", "stream", "-c", "fast",
                        f"--compress=server-zstd:level=3,workers={self.place.jobs}"], {"PGHOST": self.cluster.socket, "PGUSER": "postgres"})

    def restore(self, target, step):
        return Command(["bash", "-c", 'set -e; mkdir -p "$1"; chmod 700 "$1"; zstd -dc "$0/full/base.tar.zst" | tar -xf - -C "$1"; '
                        'tar -xf "$0/full/pg_wal.tar" -C "$1/pg_wal"', self.place.repository, target])


def cpu_s(pid):
    """Processor seconds of a process, its children that live and those that ended."""
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        try:
            fields = open(f"/proc/{one}/stat").read().rsplit(")", 1)[1].split()
            total += sum(map(int, fields[11:15]))
            todo += map(int, open(f"/proc/{one}/task/{one}/children").read().split())
        except OSError:
            pass
    return total / os.sysconf("SC_CLK_TCK")


class LiveScenario:
    """As run.Scenario, with servers that run."""
    name = "postgres"

    def __init__(self, base, rows, entrants, options, scratch, measured, markdown, say):
        self.base, self.rows, self.options, self.scratch = base, rows, options, scratch
        self.measured, self.markdown, self.say = measured, markdown, say
        self.programs = dataset.postgres_bin()
        found = {tool.name: tool for tool in entrants}
        self.kinds = [(name, kind, found[tool]) for name, kind, tool in (
            ("lifeboat", LocalLifeboat, "lifeboat"), ("lifeboat (streamed)", Lifeboat, "lifeboat"),
            ("pgbackrest", PgBackRest, "pgbackrest")) if tool in found]
        self.kinds.append(("pg_basebackup", PgBaseBackup, None))
        self.figures, self.failures, self.entrants = {}, [], [kind[0] for kind in self.kinds]

    def log(self, name):
        return self.scratch / f"postgres-{name.split()[0]}.log"

    def run(self):
        for repetition in range(self.options.reps):
            out, here = set(), []
            for name, kind, tool in self.kinds:
                place = tools.Place(self.scratch / ("postgres-" + re.sub(r"\W+", "-", name).strip("-")), self.options.jobs)
                here.append(self.prepare(name, kind, tool, place))
            order = here if repetition % 2 == 0 else here[::-1]
            for step in STEPS:
                if step == "incremental":
                    for one in here:
                        self.day(one)
                for one in order:
                    if step in one.steps and one.name not in out:
                        self.step(one, step, out)
            for one in here:
                shutil.rmtree(one.place.root, ignore_errors=True)

    def prepare(self, name, kind, tool, place):
        shutil.rmtree(place.root, ignore_errors=True)
        for folder in (place.root, place.state, place.repository):
            folder.mkdir(parents=True)
        data = place.root / "data"
        subprocess.run(["cp", "-a", self.base, data], check=True)
        cluster = dataset.Cluster(data, self.programs)
        for folder in (place.root, place.state, place.repository):
            shutil.chown(folder, cluster.account)
        one = kind(name, tool, place, cluster)
        # Known before the server starts: every start has the same folder for its socket.
        cluster.fixed_socket = place.root / "socket"
        cluster.fixed_socket.mkdir()
        shutil.chown(cluster.fixed_socket, cluster.account)
        cluster.socket = cluster.fixed_socket
        for command in one.init():
            self.plain(one, command)
        for path in place.root.rglob("*"):
            if not path.is_relative_to(data):
                shutil.chown(path, cluster.account)
        with open(data / "postgresql.auto.conf", "a", encoding="utf-8") as settings:
            settings.write(f"archive_command = '{one.archive_command()}'\nmax_wal_senders = 10\n")
        with cluster:
            for command in one.after_start():
                self.plain(one, command)
        return one

    def plain(self, one, command):
        """Runs a command that is not measured; its output."""
        return one.cluster.run(*command.argv, env={key: str(value) for key, value in command.env.items()})

    def day(self, one):
        with one.cluster:
            one.cluster.psql("-v", "day=1", stdin=open(HERE / "crm_day.sql", encoding="utf-8"), env={"CRM_ROWS": str(self.rows)})
            one.cluster.psql("-c", "SELECT pg_switch_wal()")
            self.quiet(one)

    def quiet(self, one):
        """Waits until the archiver has nothing left to do."""
        status = one.cluster.data / "pg_wal/archive_status"
        for _ in range(1200):
            if not any(path.suffix == ".ready" for path in status.iterdir()):
                return
            time.sleep(0.1)
        raise RuntimeError("the server does not archive")

    def as_account(self, one, command):
        prefix = ["runuser", "-u", one.cluster.account, "--preserve-environment", "--"] if os.geteuid() == 0 else []
        return Command([*prefix, *command.argv], {**command.env, "HOME": one.place.state})

    def make_room(self, one):
        """As many free pages for everybody: whoever writes first into a full page cache pays for what is thrown out of it (up to twice the processor time)."""
        filler = one.place.root / "filler"
        with open(filler, "wb") as file:
            for _ in range(size(one.cluster.data) >> 20):
                file.write(bytes(1 << 20))
        filler.unlink()

    def step(self, one, step, out):
        target = one.place.root / "restored"
        if step in ("full", "no change", "incremental"):
            command = one.full() if step == "full" else one.incremental()
            before = size(one.place.repository)
            with one.cluster:
                if step != "full":
                    self.quiet(one)
                    before = size(one.place.repository)
                server = int((one.cluster.data / "postmaster.pid").read_text().split("\n")[0])
                used = cpu_s(server)
                figures = self.measured(self.as_account(one, command), self.log(one.name))
                figures["server_cpu_s"] = round(cpu_s(server) - used, 2)
            after = size(one.place.repository)
            figures.update(added_bytes=after - before, repository_bytes=after)
            if step == "full" and hasattr(one, "note_first") and not figures["exit"]:
                one.note_first(lambda command: self.plain(one, command))
        elif step == "drill":
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(mode=0o700)
            shutil.chown(target, one.cluster.account)
            self.make_room(one)
            figures = self.measured(self.as_account(one, one.drill(target)), self.log(one.name))
            shutil.rmtree(target, ignore_errors=True)
        else:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(mode=0o700)
            shutil.chown(target, one.cluster.account)
            if step == "delta":
                self.plain(one, one.restore(target, "before"))
            self.make_room(one)
            figures = self.measured(self.as_account(one, one.restore(target, step)), self.log(one.name))
            if not figures["exit"] and (wrong := self.compare(one, target)):
                self.failures.append(f"postgres, {one.name}, {step}: WRONG RESTORE: {wrong}")
                out.add(one.name)
                return
            shutil.rmtree(target, ignore_errors=True)
        if figures["exit"]:
            self.failures.append(f"postgres, {one.name}, {step}: exit status {figures['exit']} (see {self.log(one.name)})")
            self.say(f"FAILED {self.failures[-1]}")
            out.add(one.name)
            return
        self.figures.setdefault((step, one.name), []).append(figures)
        server = f", the server's {figures['server_cpu_s']:.1f} s" if "server_cpu_s" in figures else ""
        added = f", + {figures['added_bytes'] / 1e6:.1f} MB" if "added_bytes" in figures else ""
        self.say(f"postgres: {step}: {one.name}: {figures['wall_s']:.2f} s, CPU {figures['user_s'] + figures['sys_s']:.1f} s{server}, "
                 f"{figures['peak_pss_mib']:.0f} MiB{added}")

    def compare(self, one, target):
        """What the restored server has otherwise than the one that was backed up, or None."""
        with one.cluster as _:
            expected = one.cluster.psql("-c", COUNTS) if "incremental" in one.steps else None
        restored = dataset.Cluster(target, self.programs)
        # The settings of the source are in the folder: its archive must not get anything from here.
        with open(target / "postgresql.auto.conf", "a", encoding="utf-8") as settings:
            settings.write("archive_mode = off\n")
        with restored:
            for _ in range(1200):
                if restored.psql("-c", "SELECT pg_is_in_recovery()").strip() == "f":
                    break
                time.sleep(0.1)
            found = restored.psql("-c", COUNTS)
        if expected is not None and found != expected:
            return f"{found!r} instead of {expected!r}"
        return None

    def middle(self, step, name):
        runs = sorted(self.figures.get((step, name), []), key=lambda run: run["wall_s"])
        return runs[(len(runs) - 1) // 2] if runs else None

    def best(self, step, name):
        return min((run["wall_s"] for run in self.figures.get((step, name), [])), default=None)

    def table(self):
        rows = [["step", "program", "wall s", "÷ lifeboat", "of the bests", "CPU s", "server CPU s", "peak PSS MiB", "repository + MB", "all walls s"]]
        for step in STEPS:
            ours = self.middle(step, "lifeboat")
            for name in self.entrants:
                run = self.middle(step, name)
                if run is None:
                    continue
                ratio = best = ""
                if ours is not None and name != "lifeboat":
                    ratio = f"{run['wall_s'] / ours['wall_s']:.2f}"
                    best = f"{self.best(step, name) / self.best(step, 'lifeboat'):.2f}"
                added = f"{run['added_bytes'] / 1e6:.1f}" if "added_bytes" in run else ""
                server = f"{run['server_cpu_s']:.1f}" if "server_cpu_s" in run else ""
                walls = " ".join(f"{each['wall_s']:.2f}" for each in self.figures[(step, name)])
                rows.append([step, name, f"{run['wall_s']:.2f}", ratio, best, f"{run['user_s'] + run['sys_s']:.1f}", server,
                             f"{run['peak_pss_mib']:.0f}", added, walls])
        return f"### PostgreSQL, running\nEach program with a server of its own; median of {self.options.reps}.\n\n{self.markdown(rows)}"

    def records(self):
        return [{"scenario": self.name, "step": step, "tool": name, "runs": runs} for (step, name), runs in self.figures.items()]


class StreamScenario:
    """The continuous log beside pgbench at full load: what it costs, and how far behind the newest recoverable moment is."""
    name = "stream"

    def __init__(self, lifeboat, options, scratch, markdown, say):
        self.lifeboat, self.options, self.scratch = lifeboat, options, scratch
        self.markdown, self.say = markdown, say
        self.programs = dataset.postgres_bin()
        self.rows, self.failures, self.found = [], [], []

    def run(self):
        for repetition in range(self.options.reps):
            for kind in ("alone", "lifeboat", "pg_receivewal") if repetition % 2 == 0 else ("pg_receivewal", "lifeboat", "alone"):
                self.one(kind)

    def one(self, kind):
        root = self.scratch / "stream"
        shutil.rmtree(root, ignore_errors=True)
        place = tools.Place(root, self.options.jobs)
        for folder in (root, place.state, place.repository, root / "socket", root / "wal"):
            folder.mkdir(parents=True)
        cluster = dataset.Cluster(root / "data", self.programs)
        for folder in (root, place.state, place.repository, root / "socket", root / "wal"):
            shutil.chown(folder, cluster.account)
        cluster.fixed_socket = cluster.socket = root / "socket"
        cluster.run(self.programs / "initdb", "-D", cluster.data, "--data-checksums", "-U", "postgres", "-A", "trust")
        with open(cluster.data / "postgresql.conf", "a", encoding="utf-8") as settings:
            settings.write("shared_buffers = 1GB\nmax_wal_size = 4GB\n")
        one = Lifeboat("lifeboat", self.lifeboat, place, cluster)
        one.database = "postgres"
        scale = max(1, round(50 * self.options.scale))
        with cluster:
            cluster.run(self.programs / "pgbench", "-i", "-q", "-s", scale, "-d", "postgres", "-U", "postgres")
            child = None
            if kind == "lifeboat":
                command = one.init()[0]
                for path in root.rglob("*"):
                    if not path.is_relative_to(cluster.data):
                        shutil.chown(path, cluster.account)
                cluster.run(*command.argv, env={key: str(value) for key, value in command.env.items()})
                child = self.spawn(cluster, one.command("log", "stream", "bench"))
            elif kind == "pg_receivewal":
                child = self.spawn(cluster, Command([self.programs / "pg_receivewal", "-D", root / "wal", "-h", cluster.socket, "-U", "postgres"]))
            note = place.state / "work/bench/log-server.json"
            time.sleep(3)
            server = int((cluster.data / "postmaster.pid").read_text().split("\n")[0])
            used, started = self.used(child), cluster.psql("-d", "postgres", "-c", "SELECT pg_current_wal_lsn()").strip()
            load = subprocess.Popen([*self.prefix(cluster), self.programs / "pgbench", "-h", cluster.socket, "-U", "postgres", "-n", "-c", "8", "-j", "2",
                                     "-T", str(self.options.seconds), "postgres"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            begun, lags, bytes_behind, peak = time.monotonic(), [], [], 0
            while load.poll() is None:
                time.sleep(0.2)
                if kind == "lifeboat" and note.exists():
                    try:
                        told = json.loads(note.read_text())
                    except ValueError:
                        continue
                    peak = max(peak, pss(child.pid))
                    bytes_behind.append(told["lag_bytes"])
                    if told["server_clock"]:
                        moment = told["server_clock"].replace("Z", "+00:00")
                        lags.append(time.time() - parse(moment))
            seconds = time.monotonic() - begun
            spent = self.used(child) - used
            if child and child.poll() is not None:
                self.failures.append(f"stream, {kind}: it ended by itself with exit status {child.returncode} (see {self.scratch}/stream.log)")
                child = None
            written = int(float(cluster.psql("-d", "postgres", "-c", f"SELECT pg_current_wal_lsn() - '{started}'").strip()))
            output = load.communicate()[0]
            rate = float(re.search(r"tps = ([\d.]+)", output).group(1))
            if child:
                os.killpg(child.pid, signal.SIGINT)
                code = child.wait()
                if code not in (0, 130):
                    self.failures.append(f"stream, {kind}: exit status {code}")
        settled = lags[len(lags) // 10:]
        found = {"scenario": "stream", "tool": kind, "tps": rate, "wal_mb_s": written / 1e6 / seconds, "cpu_percent": 100 * spent / seconds,
                 "peak_pss_mib": peak / 1024, "lag_median_s": statistics.median(settled) if settled else None,
                 "lag_greatest_s": max(settled) if settled else None, "stored_bytes": size(place.repository), "wal_bytes": written}
        self.found.append(found)
        self.say(f"stream: {kind}: {rate:.0f} transactions a second, {found['cpu_percent']:.1f} % of a core")
        shutil.rmtree(root, ignore_errors=True)

    def prefix(self, cluster):
        return ["runuser", "-u", cluster.account, "--preserve-environment", "--"] if os.geteuid() == 0 else []

    def spawn(self, cluster, command):
        environment = {**os.environ, **{key: str(value) for key, value in command.env.items()}}
        log = open(self.scratch / "stream.log", "ab")
        argv = [*self.prefix(cluster), *map(str, command.argv)]
        return subprocess.Popen(argv, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd="/")

    def used(self, child):
        return cpu_s(child.pid) if child else 0.0

    def table(self):
        rows = [["beside pgbench", "transactions/s", "log MB/s", "% of a core", "peak PSS MiB", "newest moment behind s (median, greatest)", "stored MB"]]
        for found in self.found:
            lag = f"{found['lag_median_s']:.2f}, {found['lag_greatest_s']:.2f}" if found["lag_median_s"] is not None else ""
            rows.append([found["tool"], f"{found['tps']:.0f}", f"{found['wal_mb_s']:.1f}", f"{found['cpu_percent']:.1f}" if found["tool"] != "alone" else "",
                         f"{found['peak_pss_mib']:.0f}" if found["tool"] == "lifeboat" else "", lag,
                         f"{found['stored_bytes'] / 1e6:.0f} of {found['wal_bytes'] / 1e6:.0f}" if found["tool"] == "lifeboat" else ""])
        return f"### The continuous log beside pgbench at full load\n{self.options.seconds} s, 8 clients.\n\n{self.markdown(rows)}"

    def records(self):
        return self.found


def parse(moment):
    return datetime.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", moment)).timestamp()


def pss(root):
    return sum(map(pss_kib, process_tree(root)))


def size(folder):
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
