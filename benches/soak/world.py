"""What is backed up, where to, and who is told: real servers, ledgers whose every row is known, plans with a slot each minute or so."""
import datetime
import encodings.idna  # noqa: F401: later it would be read by a user who may not
import hashlib
import http.client
import http.server
import json
import os
import pathlib
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time

MARK = "LIFEBOAT_SOAK"
ACCESS_KEY, SECRET_KEY, BUCKET = "TESTKEY0000000000", "TESTSECRET0000000000000000000000", "lifeboat"


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def moment(text):
    """RFC 3339 with up to nine digits of a second."""
    head, _, digits = text.rstrip("Z").partition(".")
    return datetime.datetime.fromisoformat(f"{head}.{(digits + '000000')[:6]}+00:00")


def free_port(taken=set()):
    """Below the ports that the system gives away by itself, and so that 10,000 above it is one too: SeaweedFS uses both."""
    while True:
        port = secrets.randbelow(9_000) + 12_000
        if taken & {port, port + 10_000}:
            continue
        try:
            for each in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
        except OSError:
            continue
        taken |= {port, port + 10_000}
        return port


def body(seed, name, n):
    return hashlib.sha256(f"{seed} {name} {n}".encode()).hexdigest()


class Ledger:
    """Rows 1, 2, 3, …, each with its body; when each was begun, and when it was known to be committed."""

    def __init__(self, seed, name):
        self.seed, self.name = seed, name
        self.began, self.acknowledged = [], []
        self.lock = threading.Lock()

    def body(self, n):
        return body(self.seed, self.name, n)

    def begin(self):
        """The next row: the same one until it is acknowledged."""
        with self.lock:
            if len(self.began) == len(self.acknowledged):
                self.began.append(now())
            return len(self.began)

    def acknowledge(self, n):
        with self.lock:
            assert n == len(self.acknowledged) + 1, (n, len(self.acknowledged))
            self.acknowledged.append(now())

    def bounds(self, start, end):
        """How many rows a moment somewhere in [start, end] has: at least, at most."""
        with self.lock:
            return sum(at < start for at in self.acknowledged), sum(at <= end for at in self.began)

    def compare(self, rows, start, end):
        """`rows`: (number, body). What is wrong with them as of a moment in [start, end]; `None`: nothing."""
        for place, (n, text) in enumerate(sorted(rows), 1):
            if n != place:
                return f"row {place} of {self.name} is missing (found {n})"
            if text != self.body(n):
                return f"row {n} of {self.name} is not what was written"
        least, most = self.bounds(start, end)
        if not least <= len(rows) <= most:
            return f"{self.name} has {len(rows)} rows, and between {start} and {end} there were {least} to {most}"
        return None


class Writer(threading.Thread):
    """Does one step after the other until it is told to stop."""

    def __init__(self, step, pause):
        super().__init__(daemon=True)
        self.step, self.pause, self.over, self.failed = step, pause, threading.Event(), None
        self.start()

    def run(self):
        while not self.over.wait(self.pause):
            try:
                self.step()
            except Exception as error:  # told at the end: a ledger that does not grow proves nothing
                self.failed = error
                return

    def stop(self):
        self.over.set()
        self.join(60)
        if self.failed or self.is_alive():
            raise RuntimeError(f"a writer of the soak itself failed: {self.failed!r}")


class Program:
    """A process that is started, killed and started again."""

    def __init__(self, argv, log, environment):
        self.argv, self.log, self.environment = [str(part) for part in argv], log, environment
        self.process = None

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment,
                                            start_new_session=True)

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, which):
        if self.alive():
            self.process.send_signal(which)

    def kill(self):
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()


class Webhook:
    """Hears the daemon's notices; now and then it hangs or refuses."""

    def __init__(self):
        self.events, self.sick_until, outer = [], 0.0, self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if time.monotonic() < outer.sick_until:
                    time.sleep(3)
                    self.send_response(503)
                else:
                    outer.events += [dict(event, heard=now()) for event in json.loads(content)["events"]]
                    self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"


class World:
    def __init__(self, folder, seed, lifeboat, tools, say):
        self.folder, self.seed, self.tools, self.say = folder, seed, tools, say
        self.lifeboat = folder / "lifeboat"
        shutil.copy(lifeboat, self.lifeboat)
        self.state, self.plans, self.restored = folder / "state", folder / "plans", folder / "restored"
        self.environment = dict(os.environ, **{
            MARK: str(folder), "LIFEBOAT_PASSPHRASE": "soak passphrase of four words", "SOAK_ACCESS_KEY": ACCESS_KEY,
            "SOAK_SECRET_KEY": SECRET_KEY, "LC_ALL": "C.UTF-8", "TMPDIR": str(folder / "tmp"), "HOME": str(folder)})
        for name in ("plans", "restored", "tmp", "attachments", "sock", "weed", "logs"):
            (folder / name).mkdir()
        self.ledgers = {name: Ledger(seed, name) for name in ("crm", "attachments", "pg", "dump")}
        self.webhook, self.writers, self.psql = Webhook(), [], None
        self.weed, self.has_bucket = self.seaweed(), False
        self.make_postgres()
        self.make_sqlite()
        self.write_plans()
        self.daemon = Program([self.lifeboat, "--plans", self.plans, "--state", self.state, "--log-format", "json", "serve"],
                              folder / "logs/daemon", self.environment)

    # Servers

    def seaweed(self):
        folder, ports = self.folder / "weed", {name: free_port() for name in ("master", "volume", "filer", "s3")}
        self.ports = ports
        (folder / "s3.json").write_text(json.dumps({"identities": [{
            "name": "soak", "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}))
        argv = [self.tools / "bin/weed", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.port.iceberg=0",
                "-s3.port.lance=0", "-volume.max=40", "-master.volumeSizeLimitMB=256", "-master.electionTimeout=1s",
                "-master.heartbeatInterval=200ms", f"-dir={folder}", f"-s3.config={folder / 's3.json'}"]
        argv += [f"-{name}.port={port}" for name, port in ports.items()]
        environment = {key: value for key, value in self.environment.items() if key != MARK}
        return Program(argv, self.folder / "logs/weed", environment)

    def start_weed(self):
        self.weed.start()
        def bucket():
            filer = http.client.HTTPConnection("127.0.0.1", self.ports["filer"], timeout=5)
            # A bucket is a folder of the filer.
            filer.request("GET" if self.has_bucket else "POST", f"/buckets/{BUCKET}/", headers={"Accept": "application/json"})
            status = filer.getresponse().status
            filer.close()
            self.has_bucket = self.has_bucket or status < 300
            return status < 300

        def ready():
            s3 = http.client.HTTPConnection("127.0.0.1", self.ports["s3"], timeout=5)
            s3.request("GET", "/")
            s3.getresponse().read()
            s3.close()
            return True

        self.until("the S3 server's bucket", 300, bucket)
        self.until("the S3 server", 300, ready)

    def until(self, what, seconds, condition):
        end = time.monotonic() + seconds
        while True:
            why = None
            try:
                if condition():
                    return
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                why = error
            if time.monotonic() > end:
                raise RuntimeError(f"waited {seconds} s for {what}: {why}")
            time.sleep(0.3)

    def make_postgres(self):
        versions = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        if not versions:
            raise RuntimeError("the soak needs an installed PostgreSQL server: apt-get install --no-install-recommends postgresql-15")
        self.bin, self.data, self.port = versions[-1].parent, self.folder / "pg", free_port()
        self.run([self.bin / "initdb", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres", "--auth=trust",
                  "--data-checksums", f"--pgdata={self.data}"])
        with open(self.data / "postgresql.conf", "a") as file:
            file.write(f"port = {self.port}\nlisten_addresses = ''\nunix_socket_directories = '{self.folder / 'sock'}'\nwal_level = replica\n"
                       "max_wal_senders = 10\nfsync = off\nshared_buffers = 32MB\ntrack_commit_timestamp = on\nmax_wal_size = 256MB\n")
        self.start_postgres()
        self.run([self.bin / "createdb", *self.at_postgres(), "crm"])
        self.run([self.bin / "pgbench", *self.at_postgres(), "-q", "-i", "-s", "2", "crm"])
        self.sql("create table ledger (n bigint primary key, body text not null)")
        self.environment["SOAK_PG"] = f"host={self.folder / 'sock'} port={self.port} user=postgres dbname=crm"

    def at_postgres(self):
        return ["-h", self.folder / "sock", "-p", str(self.port), "-U", "postgres"]

    def sql(self, text):
        return self.run([self.bin / "psql", *self.at_postgres(), "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", text, "crm"])

    def start_postgres(self):
        """Its own processes do not bear the mark: what lifeboat leaves does."""
        environment = {key: value for key, value in self.environment.items() if key != MARK}

        def start():
            command = [self.bin / "pg_ctl", "start", "-w", "-t", "60", "-D", self.data, "-l", self.folder / "logs/postgres"]
            return subprocess.run([str(part) for part in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  start_new_session=True).returncode == 0
        # After a kill the others of its processes must be gone first.
        self.until("PostgreSQL", 300, start)

    def postmaster(self):
        try:
            return int((self.data / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def run(self, argv, **more):
        done = subprocess.run([str(part) for part in argv], env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, **more)
        if done.returncode:
            raise RuntimeError(f"{argv[0]} {argv[1:3]}: exit {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def call(self, *arguments, expect=(0,)):
        """Runs lifeboat; yields its document."""
        argv = [self.lifeboat, "--plans", self.plans, "--state", self.state, "--json", "--progress", "none", *arguments]
        done = subprocess.run([str(part) for part in argv], env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=900)
        if done.returncode not in expect:
            raise RuntimeError(f"lifeboat {' '.join(map(str, arguments))}: exit {done.returncode}: {done.stdout[-3000:]}{done.stderr[-2000:]}")
        return json.loads(done.stdout) if done.stdout.strip() else {}

    # Load

    def make_sqlite(self):
        self.database = self.folder / "crm.sqlite"
        with sqlite3.connect(self.database) as db:
            db.execute("pragma journal_mode = wal")
            db.execute("create table ledger (n integer primary key, body text not null)")
            db.execute("create table noise (n integer primary key, body text not null)")
            db.executemany("insert into noise values (?, ?)", ((n, body(self.seed, "noise", n) * 8) for n in range(20_000)))

    def start_load(self):
        dump, lines = self.ledgers["dump"], self.folder / "dump.txt"
        lines.touch()
        crm = {}

        def sqlite_step():
            ledger = self.ledgers["crm"]
            if not crm:
                crm["db"] = sqlite3.connect(self.database, timeout=60)
            n = ledger.begin()
            with crm["db"] as db:
                db.execute("insert into ledger values (?, ?)", (n, ledger.body(n)))
                db.execute("update noise set body = ? where n % 499 = ?", (body(self.seed, "changed", n) * 8, n % 499))
            ledger.acknowledge(n)

        def attachment_step():
            ledger = self.ledgers["attachments"]
            n = ledger.begin()
            path = self.folder / "tmp" / f"a{n}"
            path.write_text(ledger.body(n))
            path.rename(self.folder / "attachments" / f"{n}.txt")
            ledger.acknowledge(n)

        def dump_step():
            n = dump.begin()
            with open(lines, "a") as file:
                file.write(f"{n} {dump.body(n)}\n")
            dump.acknowledge(n)

        def postgres_step():
            ledger = self.ledgers["pg"]
            n = ledger.begin()
            try:
                if self.psql is None or self.psql.poll() is not None:
                    argv = [self.bin / "psql", *self.at_postgres(), "-XqAt", "-v", "ON_ERROR_STOP=1", "crm"]
                    environment = {key: value for key, value in self.environment.items() if key != MARK}
                    self.psql = subprocess.Popen([str(part) for part in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                                 stderr=subprocess.DEVNULL, text=True, bufsize=1, env=environment)
                self.psql.stdin.write(f"insert into ledger values ({n}, '{ledger.body(n)}') on conflict do nothing;\nselect {n};\n")
                if self.psql.stdout.readline().strip() == str(n):
                    ledger.acknowledge(n)
                    return
            except OSError:
                pass
            # The server is away: the same row again.
            if self.psql.poll() is None:
                self.psql.kill()
            self.psql.wait()
            time.sleep(0.5)

        def pgbench_step():
            argv = [self.bin / "pgbench", *self.at_postgres(), "-n", "-c", "2", "-R", "40", "-T", "10", "crm"]
            environment = {key: value for key, value in self.environment.items() if key != MARK}
            subprocess.run([str(part) for part in argv], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        self.writers = [Writer(sqlite_step, 0.2), Writer(attachment_step, 1.0), Writer(dump_step, 0.5), Writer(postgres_step, 0.1),
                        Writer(pgbench_step, 0.5)]

    def stop_load(self):
        for writer in self.writers:
            writer.stop()
        if self.psql is not None and self.psql.poll() is None:
            self.psql.kill()
            self.psql.wait()

    # Plans

    def write_plans(self):
        self.environment["SOAK_WEBHOOK"] = self.webhook.url
        main = {"url": f"s3://{BUCKET}/main"}
        self.schedules = {
            ("crm", "backup"): "* * * * *", ("crm", "drill"): "*/3 * * * *", ("crm", "verify"): "*/5 * * * *", ("crm", "copy"): "*/4 * * * *",
            ("pg", "backup"): "*/2 * * * *", ("pg", "drill"): "1-59/4 * * * *", ("pg", "copy"): "*/5 * * * *",
            ("dump", "backup"): "* * * * *", ("dump", "drill"): "*/4 * * * *", ("dump", "verify"): "*/6 * * * *",
        }
        keep, prune = {"crm": "", "pg": "", "dump": ""}, {"crm": "", "pg": "", "dump": ""}
        # One plan of each repository.
        for plan, slots in (("crm", "2-59/6 * * * *"), ("dump", "3-59/6 * * * *")):
            keep[plan] = "keep = { last = 12 }\n"
            prune[plan] = f'[plan.{plan}.prune]\nschedule = "{slots}"\n'
            self.schedules[plan, "prune"] = slots
        s = self.schedules
        common = 'timezone = "UTC"\nretry = { attempts = 3, delay = "5s" }\nobjectives = { data_loss = "4m", recovery_time = "15m" }\n'
        # Slow enough to be killed in the middle; without its last line it is no dump.
        dump = json.dumps(["sh", "-c", f"cat {self.folder / 'dump.txt'} && sleep 2 && echo end"])
        text = f"""version = 1
[repository.main]
url = "{main['url']}"
endpoint = "http://127.0.0.1:{self.ports['s3']}"
region = "us-east-1"
access_key = {{ env = "SOAK_ACCESS_KEY" }}
secret_key = {{ env = "SOAK_SECRET_KEY" }}
passphrase = {{ env = "LIFEBOAT_PASSPHRASE" }}

[repository.second]
url = "file://{self.folder / 'second'}"
passphrase = {{ env = "LIFEBOAT_PASSPHRASE" }}

[source.crm]
kind = "sqlite"
path = "{self.database}"

[source.attachments]
kind = "files"
path = "{self.folder / 'attachments'}"

[source.pg]
kind = "postgres"
url = {{ env = "SOAK_PG" }}
data_directory = "{self.data}"
log = "stream"
canary = "5s"

[source.dump]
kind = "command"
dump = {dump}

[plan.crm]
sources = ["crm", "attachments"]
repository = "main"
schedule = "{s['crm', 'backup']}"
{common}{keep['crm']}
{prune['crm']}
[plan.crm.drill]
schedule = "{s['crm', 'drill']}"
at = "random"
[plan.crm.verify]
schedule = "{s['crm', 'verify']}"
data = "50%"
[[plan.crm.copy]]
to = "second"
schedule = "{s['crm', 'copy']}"

[plan.pg]
source = "pg"
repository = "main"
schedule = "{s['pg', 'backup']}"
{common}{keep['pg']}
[plan.pg.drill]
schedule = "{s['pg', 'drill']}"
at = "random"
[[plan.pg.copy]]
to = "second"
schedule = "{s['pg', 'copy']}"

[plan.dump]
source = "dump"
repository = "second"
schedule = "{s['dump', 'backup']}"
{common}{keep['dump']}
{prune['dump']}
[plan.dump.drill]
schedule = "{s['dump', 'drill']}"
[plan.dump.verify]
schedule = "{s['dump', 'verify']}"
data = "all"

[notify.ear]
kind = "webhook"
url = {{ env = "SOAK_WEBHOOK" }}
on = ["failure", "incomplete", "recovered", "objective-missed", "drill-failed", "damaged", "overdue", "log-gap", "log-not-streamed", "retention-blocked"]
timeout = "2s"

[serve]
drain = "5s"
"""
        (self.plans / "soak.toml").write_text(text)


def processes():
    """All there are: pid → (parent, command line)."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found[int(entry.name)] = parent, (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (OSError, IndexError, ValueError):
                pass
    return found


def below(root, everybody):
    """The processes under `root`."""
    known, grown = {root}, True
    while grown:
        more = {pid for pid, (parent, _) in everybody.items() if parent in known} - known
        known |= more
        grown = bool(more)
    return known - {root}


def of_lifeboat(world):
    """What lifeboat has started and is there, however far from its parent: pid → command line."""
    everybody = processes()
    postmaster = world.postmaster()
    servers = {pid for pid in (postmaster, world.weed.process and world.weed.process.pid) if pid}
    servers |= {pid for server in servers for pid in below(server, everybody)} | {os.getpid()}
    mark, roots = f"{MARK}={world.folder}".encode(), set()
    for pid, (_, line) in everybody.items():
        try:
            marked = mark in pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            marked = False
        # Programs of sources and servers of drills get an environment of their own, and say where they work.
        load = line.startswith((f"{world.bin}/psql", f"{world.bin}/pgbench", f"{world.bin}/pg_ctl"))
        if pid not in servers and (marked or str(world.folder) in line and not load):
            roots.add(pid)
    all_of_them = roots | {pid for root in roots for pid in below(root, everybody)} - servers
    return {pid: everybody[pid][1] for pid in all_of_them}
