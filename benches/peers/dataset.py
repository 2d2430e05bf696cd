"""The data that is backed up, made once and kept under the scratch folder.

    data/pg-base           a stopped PostgreSQL data folder holding the generated CRM (checksums on, old log removed), 1.6 GB at scale 1
    data/pg-day1           the same after one day of work (`crm_day.sql`); files that the day left alone are hard links to pg-base's
    data/attachments-100k  100,000 files of 256 bytes to 16 KiB in 400 folders, half text and half incompressible

Scales other than 1 live in `data-SCALE`. Nothing here is ever started or written again: whoever wants a running server copies it first.
"""
import filecmp
import os
import pathlib
import pwd
import random
import re
import shutil
import subprocess
import tempfile

import crm_rows

HERE = pathlib.Path(__file__).resolve().parent
SERVER_SETTINGS = """
shared_buffers = 1GB
max_wal_size = 8GB
checkpoint_timeout = 60min
wal_level = replica
archive_mode = on
archive_command = '/bin/true'
autovacuum = off
maintenance_work_mem = 512MB
"""
WAL_SEGMENT = re.compile(r"[0-9A-F]{24}$")


def folder(work, scale):
    return work / ("data" if scale == 1 else f"data-{scale:g}")


def attachments_path(work, scale):
    return folder(work, scale) / f"attachments-{max(1, round(100 * scale))}k"


def postgres_bin():
    """The folder of the newest installed server's programs, or None."""
    if "PGBIN" in os.environ:
        return pathlib.Path(os.environ["PGBIN"])
    versions = [path.parent for path in pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(versions, key=lambda path: int(path.parent.name), default=None)


class Cluster:
    """A private server on a data folder: socket only, run as an unprivileged user (initdb refuses to run as root)."""

    def __init__(self, data, programs):
        self.data, self.programs = data, programs
        self.fixed_socket = None
        self.account = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.socket = None

    def run(self, *command, env=None, stdin=None):
        prefix = ["runuser", "-u", self.account, "--"] if os.geteuid() == 0 else []
        settings = {**os.environ, "LC_ALL": "C.UTF-8", "PGUSER": "postgres", "PGDATABASE": "crm", **(env or {})}
        if self.socket:
            settings["PGHOST"] = str(self.socket)
        done = subprocess.run(prefix + [str(part) for part in command], env=settings, stdin=stdin, text=True, cwd="/",
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed ({done.returncode}): {done.stdout[-2000:]}")
        return done.stdout

    def psql(self, *arguments, **options):
        return self.run(self.programs / "psql", "-qXAt", "-v", "ON_ERROR_STOP=1", *arguments, **options)

    def __enter__(self):
        self.socket = self.fixed_socket or pathlib.Path(tempfile.mkdtemp(prefix="lb-pg-"))
        if not self.fixed_socket:
            shutil.chown(self.socket, self.account)
        self.run(self.programs / "pg_ctl", "-D", self.data, "-w", "-t", "600", "-s", "-l", f"{self.socket}/log",
                 "-o", f"-k {self.socket} -c listen_addresses=''", "start")
        return self

    def __exit__(self, *failure):
        # A clean stop: the folder must be a consistent backup source by itself.
        self.run(self.programs / "pg_ctl", "-D", self.data, "-w", "-t", "600", "-s", "-m", "fast", "stop")
        if not self.fixed_socket:
            shutil.rmtree(self.socket)
            self.socket = None

    def remove_old_log(self):
        """Of a cleanly stopped server, removes every log segment but the one with the shutdown checkpoint."""
        told = self.run(self.programs / "pg_controldata", self.data)
        if not re.search(r"cluster state: +shut down$", told, re.M):
            raise RuntimeError(f"{self.data} was not cleanly stopped")
        needed = re.search(r"REDO WAL file: +(\S+)", told).group(1)
        for file in (self.data / "pg_wal").iterdir():
            if WAL_SEGMENT.match(file.name) and file.name != needed:
                file.unlink()
        for file in (self.data / "pg_wal/archive_status").iterdir():
            file.unlink()


def build_postgres(work, scale, say, day=True):
    """Makes pg-base and, with `day`, pg-day1 unless they are there. Returns both paths, or None where no server is installed."""
    programs = postgres_bin()
    base, day1 = folder(work, scale) / "pg-base", folder(work, scale) / "pg-day1"
    if base.is_dir() and (day1.is_dir() or not day):
        return base, day1
    if programs is None:
        return None
    rows, building = work / "rows", folder(work, scale) / "building"
    for leftover in (rows, building):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir(parents=True)
    if not base.is_dir():
        make_base(base, building / "base", rows, scale, programs, say)
    if day:
        make_day(base, day1, building / "day1", rows, scale, programs, say)
    shutil.rmtree(rows, ignore_errors=True)
    shutil.rmtree(building)
    return base, day1


def make_base(base, partial, rows, scale, programs, say):
    """A new server with the CRM's tables, stopped."""
    say("writing the CRM's rows")
    crm_rows.write_part(rows, scale, "base")
    say("loading them into PostgreSQL")
    cluster = Cluster(partial, programs)
    shutil.chown(partial.parent, cluster.account)
    cluster.run(programs / "initdb", "-D", partial, "--data-checksums", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
    with open(partial / "postgresql.conf", "a", encoding="utf-8") as settings:
        settings.write(SERVER_SETTINGS)
    with cluster:
        cluster.psql("-d", "postgres", "-c", "CREATE DATABASE crm")
        cluster.psql(stdin=open(HERE / "crm_schema.sql", encoding="utf-8"))
        for table in crm_rows.TABLES:
            cluster.psql("-c", f"COPY {table} FROM STDIN", stdin=open(rows / f"{table}.tsv", encoding="utf-8"))
        cluster.psql(stdin=open(HERE / "crm_indexes.sql", encoding="utf-8"))
        cluster.psql("-c", "VACUUM (FREEZE, ANALYZE)")
        cluster.psql("-c", "CHECKPOINT")
    cluster.remove_old_log()
    partial.rename(base)


def make_day(base, day1, partial, rows, scale, programs, say):
    """A day of work on a copy of the stopped `base`."""
    say("one day of work: 1 % of all rows updated, scattered, 1 % appended")
    crm_rows.write_part(rows, scale, "day1")
    subprocess.run(["cp", "-a", base, partial], check=True)
    cluster = Cluster(partial, programs)
    shutil.chown(partial.parent, cluster.account)
    with cluster:
        cluster.psql("-v", "day=1", stdin=open(HERE / "crm_day.sql", encoding="utf-8"), env={"CRM_ROWS": str(rows)})
    cluster.remove_old_log()
    link_unchanged(base, partial)
    partial.rename(day1)


def link_unchanged(old, new):
    """Replaces files of `new` that equal `old`'s by hard links to them: same inode and times, as if the one folder had changed in place.

    Without this every file would look new to a tool that skips unchanged files by inode and change time.
    """
    for path in sorted(new.rglob("*")):
        before = old / path.relative_to(new)
        if path.is_symlink() or not path.is_file() or not before.is_file():
            continue
        if filecmp.cmp(before, path, shallow=False):
            path.unlink()
            os.link(before, path)


def build_day_rows(work, scale, say):
    """The rows of a day, for servers that run."""
    rows = folder(work, scale) / "day-rows"
    if not rows.is_dir():
        say("writing the rows of a day")
        partial = rows.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        crm_rows.write_part(partial, scale, "day1")
        partial.rename(rows)
    return rows


def build_attachments(work, scale, say):
    """Makes the folder of small files unless it is there; returns its path."""
    target = attachments_path(work, scale)
    if target.is_dir():
        return target
    count = round(100_000 * scale)
    say(f"writing {count:,} small attachments")
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    rng = random.Random(crm_rows.SEED)
    text = crm_rows.Writer("attachments", "small").words(600_000).encode()
    for number in range(count):
        month = partial / f"{2020 + number % 400 // 80}" / f"customer-{number % 400:03d}"
        if number < 400:
            month.mkdir(parents=True)
        size = int(256 * 64 ** rng.random())
        if number % 2:
            name, content = f"scan-{number:06d}.jpg", rng.randbytes(size)
        else:
            name, parts = f"mail-{number:06d}.txt", []
            for _ in range(size // 200 + 1):
                start = rng.randrange(len(text) - 200)
                parts.append(text[start:start + 200])
            content = b"".join(parts)[:size]
        (month / name).write_bytes(content)
    partial.rename(target)
    return target
