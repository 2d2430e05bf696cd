"""The programs that are compared: how each is found, set up and driven. Every one encrypts and compresses with zstd 3 (but the floor)."""
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess

PASSPHRASE = "benchmark-only-passphrase"


@dataclasses.dataclass
class Command:
    argv: list
    env: dict = dataclasses.field(default_factory=dict)
    cwd: str = "/"


@dataclasses.dataclass
class Place:
    """Where one tool works in one repetition; a fresh repository each."""
    root: pathlib.Path
    jobs: int
    page_size: int = 0  # 0: not page-structured

    @property
    def repository(self):
        return self.root / "repo"

    @property
    def state(self):
        return self.root / "state"


def newest(name, variable, bin_folder, version_arguments):
    """The newest program of that name: named by an environment variable, in the scratch folder's `bin`, or in PATH."""
    if variable in os.environ:
        candidates = [os.environ[variable]]
    else:
        candidates = [str(path) for path in sorted(bin_folder.glob(f"{name}*")) if os.access(path, os.X_OK)]
        candidates += [found] if (found := shutil.which(name)) else []
    best = (None, "", ())
    for program in candidates:
        try:
            done = subprocess.run([program, *version_arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            continue
        told = re.search(r"\d+(\.\d+)+", done.stdout)
        if done.returncode == 0 and told:
            number = tuple(int(part) for part in told.group().split("."))
            if number > best[2]:
                best = (program, told.group(), number)
    return best


class Tool:
    """`steps` is what it takes part in; `ignored` are patterns of paths that it leaves out or adds by design."""
    name = variable = ""
    version_arguments = ["--version"]
    minimum = ()
    steps = ("first", "second", "no change", "verify", "restore")
    ignored = ()
    strict = False

    def __init__(self, bin_folder):
        self.program, self.version, self.number = newest(self.name, self.variable, bin_folder, self.version_arguments)

    @property
    def missing(self):
        """Why it cannot be used, or None."""
        if self.program is None:
            return "not installed"
        if self.number < self.minimum:
            return f"{self.version} is older than {'.'.join(map(str, self.minimum))}"
        return None


class Lifeboat(Tool):
    name, variable, strict = "lifeboat", "LIFEBOAT", True

    def command(self, place, *arguments):
        return Command([self.program, "--plans", place.root / "plans", "--state", place.state, "--progress", "none", *arguments],
                       {"LIFEBOAT_PASSPHRASE": PASSPHRASE})

    def write_plan(self, place, source):
        page_size = f"page_size = {place.page_size}\n" if place.page_size else ""
        (place.root / "plans").mkdir(exist_ok=True)
        (place.root / "plans/bench.toml").write_text(
            f'version = 1\n\n[repository.main]\nurl = "file://{place.repository}"\npassphrase = {{ env = "LIFEBOAT_PASSPHRASE" }}\n\n'
            f'[source.data]\nkind = "files"\npath = "{source}"\n{page_size}\n[plan.bench]\nsource = "data"\nrepository = "main"\n',
            encoding="utf-8")

    def init(self, place, source):
        self.write_plan(place, source)
        return [self.command(place, "repo", "init", "main")]

    def backup(self, place, source, first):
        self.write_plan(place, source)
        return self.command(place, "backup", "bench")

    def verify(self, place):
        return self.command(place, "verify", "bench", "--data")

    def restore(self, place, target):
        return self.command(place, "restore", "bench", "--latest", "--to", target, "--yes")


class Rustic(Tool):
    name, variable = "rustic", "RUSTIC"

    def command(self, place, *arguments, cwd="/"):
        return Command([self.program, *arguments], {
            "RAYON_NUM_THREADS": place.jobs, "TOKIO_WORKER_THREADS": place.jobs, "RUSTIC_REPOSITORY": place.repository,
            "RUSTIC_PASSWORD": PASSPHRASE, "RUSTIC_CACHE_DIR": place.state / "cache", "RUSTIC_NO_PROGRESS": "true",
            "RUSTIC_LOG_LEVEL": "warn", "HOME": place.state}, cwd)

    def init(self, place, source):
        return [self.command(place, "init", "--set-compression", "3")]

    def backup(self, place, source, first):
        return self.command(place, "backup", "--as-path", "/data", ".", cwd=source)

    def verify(self, place):
        return self.command(place, "check", "--read-data")

    def restore(self, place, target):
        return self.command(place, "restore", "latest:/data", target)


class Restic(Tool):
    name, variable, version_arguments, minimum = "restic", "RESTIC", ["version"], (0, 14)

    def command(self, place, *arguments, cwd="/"):
        return Command([self.program, *arguments], {
            "GOMAXPROCS": place.jobs, "RESTIC_REPOSITORY": place.repository, "RESTIC_PASSWORD": PASSPHRASE,
            "RESTIC_CACHE_DIR": place.state / "cache", "RESTIC_COMPRESSION": "auto"}, cwd)

    def init(self, place, source):
        return [self.command(place, "init", "-q")]

    def backup(self, place, source, first):
        # The previous snapshot was taken of another path, so the parent must be looked for by host alone.
        grouping = ["--group-by", "host"] if self.number >= (0, 16) else []
        return self.command(place, "backup", "-q", *grouping, ".", cwd=source)

    def verify(self, place):
        return self.command(place, "check", "-q", "--read-data")

    def restore(self, place, target):
        return self.command(place, "restore", "-q", "latest", "--target", target)


class PgBackRest(Tool):
    """Block-incremental mode, on the stopped folder (`--no-online`), so that all tools read the very same bytes."""
    name, variable, version_arguments, minimum = "pgbackrest", "PGBACKREST", ["version"], (2, 46)
    # An incremental backup refuses to run when no file has changed.
    steps = ("first", "second", "verify", "restore")
    # What a server makes anew is left out, and the restore adds its own settings.
    ignored = ("backup_label", "postgresql.auto.conf", "recovery.signal", "tablespace_map", "postmaster.opts", "*/pg_internal.init",
               "base/pgsql_tmp", "pg_dynshmem/*", "pg_notify/*", "pg_replslot/*", "pg_serial/*", "pg_snapshots/*", "pg_stat_tmp/*",
               "pg_subtrans/*")

    def command(self, place, *arguments):
        return Command([self.program, f"--config={place.state}/pgbackrest.conf", "--stanza=bench", *arguments])

    def write_settings(self, place, source):
        for folder in ("lock", "log", "spool"):
            (place.state / folder).mkdir(exist_ok=True)
        # Versions that do not know `allow-root` warn about it and go on.
        allow_root = "allow-root=y\n" if os.geteuid() == 0 else ""
        (place.state / "pgbackrest.conf").write_text(
            f"[global]\n{allow_root}repo1-path={place.repository}\nlock-path={place.state}/lock\nlog-path={place.state}/log\n"
            f"spool-path={place.state}/spool\nlog-level-console=warn\nlog-level-file=off\nprocess-max={place.jobs}\n"
            "compress-type=zst\ncompress-level=3\nrepo1-retention-full=9\nrepo1-cipher-type=aes-256-cbc\n"
            f"repo1-cipher-pass={PASSPHRASE}\nrepo1-bundle=y\nrepo1-block=y\n[bench]\npg1-path={source}\n", encoding="utf-8")

    def init(self, place, source):
        self.write_settings(place, source)
        return [self.command(place, "--no-online", "stanza-create")]

    def backup(self, place, source, first):
        self.write_settings(place, source)
        return self.command(place, "--no-online", "--type=full" if first else "--type=incr", "backup")

    def verify(self, place):
        return self.command(place, "--output=text", "verify")

    def restore(self, place, target):
        return self.command(place, f"--pg1-path={target}", "--type=none", "restore")


class Copy(Tool):
    """The floor: `cp -a` and `sync` of the same files; neither compressed nor encrypted."""
    name, variable = "cp", "CP"
    steps = ("first", "restore")

    def init(self, place, source):
        return []

    def backup(self, place, source, first):
        return Command(["bash", "-c", 'mkdir -p "$1" && cp -a "$0"/. "$1" && sync', source, place.repository])

    def restore_from(self, source, target):
        return Command(["bash", "-c", 'cp -a "$0"/. "$1" && sync', source, target])


ALL = [Lifeboat, Rustic, PgBackRest, Restic, Copy]
