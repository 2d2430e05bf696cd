"""The `listing` scenario: how long it takes to list many snapshots that are in S3, far away.

The snapshots are made in a local folder (each a backup of one small file), kept for the next run, and put into a SeaweedFS server of this machine,
which `scripts/install-test-tools` installs. Between it and lifeboat stands a proxy that delays: what either side sends arrives half of the latency
later, in order and as fast as before, and a new connection waits for a whole one. Listed are they from a machine that never saw the repository (`cold`),
then from the same again (`warm`), as JSON, whose length is checked.
"""
import asyncio
import http.client
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time

import tools
from years import Measured, identity

HERE = pathlib.Path(__file__).resolve().parent
ACCESS, SECRET, BUCKET = "BENCHKEY00000000", "BENCHSECRET00000000000000000000", "lifeboat"


def weed():
    """The server's program, or None."""
    folder = pathlib.Path(os.environ.get("LIFEBOAT_TEST_TOOLS", HERE.parents[1] / ".cache/tools"))
    return found if (found := folder / "bin/weed").exists() else None


def free_ports(count):
    """Ports that nobody listens on, nor on those 10,000 above them, which the server takes too."""
    found = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port + 10_000 < 65_536 and port not in found:
                try:
                    other.bind(("127.0.0.1", port + 10_000))
                    found.append(port)
                except OSError:
                    pass
    return found


class Server:
    """SeaweedFS with one bucket. Its filer takes files without a signature."""

    def __init__(self, program):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lb-weed-"))
        (self.folder / "data").mkdir()
        rights = {"identities": [{"name": "bench", "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
                                  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
        (self.folder / "s3.json").write_text(json.dumps(rights), encoding="utf-8")
        master, volume, self.filer, self.port = free_ports(4)
        self.child = subprocess.Popen(
            [program, f"-logdir={self.folder}", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=40",
             "-master.volumeSizeLimitMB=256", "-master.electionTimeout=1s", "-master.heartbeatInterval=200ms", f"-dir={self.folder}/data",
             f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={self.filer}", f"-s3.port={self.port}", f"-s3.config={self.folder}/s3.json"],
            stdout=open(self.folder / "log", "wb"), stderr=subprocess.STDOUT, cwd=self.folder)

    def wait(self):
        until = time.monotonic() + 90
        while time.monotonic() < until:
            try:
                if self.put("ready", b"x") and socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise RuntimeError(f"the S3 server did not start (see {self.folder}/log)")

    def put(self, key, content):
        connection = http.client.HTTPConnection("127.0.0.1", self.filer, timeout=30)
        connection.request("PUT", f"/buckets/{BUCKET}/{key}", content)
        status = connection.getresponse().status
        connection.close()
        return 200 <= status < 300

    def stop(self):
        self.child.terminate()
        self.child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Delayed(asyncio.Protocol):
    """One side of a connection: what arrives is written to the other side, half of the latency later and in order."""

    def __init__(self, proxy):
        self.proxy, self.transport, self.other = proxy, None, None
        self.waiting, self.last = [], 0.0

    def connection_made(self, transport):
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def later(self, deliver, *more):
        # Never at the same moment as what came before: timers of one moment have no order.
        loop = asyncio.get_running_loop()
        self.last = max(loop.time() + self.proxy.latency / 2, self.last + 1e-6)
        loop.call_at(self.last, deliver, *more)

    def data_received(self, data):
        self.proxy.messages += 1
        self.later(self.deliver, data)

    def eof_received(self):
        self.later(self.end)
        return True

    def connection_lost(self, _):
        self.later(self.end)

    def deliver(self, data):
        if self.other is None:
            self.waiting.append(data)
        elif not self.other.transport.is_closing():
            self.other.transport.write(data)

    def end(self):
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.close()

    def joined(self, other):
        self.other = other
        for data in self.waiting:
            self.deliver(data)
        self.waiting = []


class Accepted(Delayed):
    """The side of who connects, which waits for a whole latency first."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self.proxy.connections += 1
        asyncio.get_running_loop().create_task(self.connect())

    async def connect(self):
        await asyncio.sleep(self.proxy.latency)
        _, other = await asyncio.get_running_loop().create_connection(lambda: Delayed(self.proxy), "127.0.0.1", self.proxy.upstream)
        other.joined(self)
        self.joined(other)


class DelayingProxy(threading.Thread):
    """Forwards to one port; each direction half of `latency` seconds later. It costs about a tenth of a millisecond a request."""

    def __init__(self, upstream, latency):
        super().__init__(daemon=True)
        self.upstream, self.latency = upstream, latency
        self.connections, self.messages, self.ready = 0, 0, threading.Event()
        self.start()
        self.ready.wait()

    def run(self):
        asyncio.run(self.serve())

    async def serve(self):
        server = await asyncio.get_running_loop().create_server(lambda: Accepted(self), "127.0.0.1", 0, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        await server.serve_forever()


class ListingScenario(Measured):
    name = "listing"

    def __init__(self, *more):
        super().__init__(*more)
        self.tool = self.entrants[0]
        self.folder = self.options.work / f"listing-{self.options.snapshots}"

    def plan(self, place, url, more=""):
        (place.root / "plans").mkdir(exist_ok=True)
        (place.root / "source").mkdir(exist_ok=True)
        (place.root / "plans/bench.toml").write_text(
            f'version = 1\n\n[repository.main]\nurl = "{url}"\npassphrase = {{ env = "LIFEBOAT_PASSPHRASE" }}\n{more}\n'
            f'[source.data]\nkind = "files"\npath = "{place.root}/source"\n\n[plan.bench]\nsource = "data"\nrepository = "main"\n', encoding="utf-8")

    def prepare(self):
        """A local repository with that many snapshots, unless it is there."""
        place, marker = tools.Place(self.folder, self.options.jobs), self.folder / "made.json"
        if marker.exists() and (self.options.kept or json.loads(marker.read_text(encoding="utf-8")) == identity(self.tool)):
            return place
        shutil.rmtree(place.root, ignore_errors=True)
        place.state.mkdir(parents=True)
        self.plan(place, f"file://{place.repository}")
        self.say(f"listing: making {self.options.snapshots} snapshots")
        for number in range(-1, self.options.snapshots):
            if number >= 0:
                (place.root / "source/file").write_text(f"day {number}\n", encoding="utf-8")
            command = self.tool.command(place, *(["repo", "init", "main"] if number < 0 else ["backup", "bench"]))
            environment = dict(os.environ, **{key: str(value) for key, value in command.env.items()})
            done = subprocess.run([str(part) for part in command.argv], env=environment, capture_output=True, check=False)
            if done.returncode:
                raise RuntimeError(f"making snapshot {number} failed: {done.stderr.decode()[-500:]}")
        marker.write_text(json.dumps(identity(self.tool)), encoding="utf-8")
        return place

    def run(self):
        made = self.prepare()
        server = Server(weed())
        try:
            server.wait()
            for path in sorted(made.repository.rglob("*")):
                if path.is_file() and not server.put(f"bench/{path.relative_to(made.repository)}", path.read_bytes()):
                    self.fail("lifeboat", "upload", str(path))
                    return
            proxy = DelayingProxy(server.port, self.options.latency / 1000)
            place = tools.Place(self.scratch / "listing-lifeboat", self.options.jobs)
            for _ in range(self.options.reps):
                shutil.rmtree(place.root, ignore_errors=True)
                place.state.mkdir(parents=True)
                self.plan(place, f"s3://{BUCKET}/bench", f'endpoint = "http://127.0.0.1:{proxy.port}"\nregion = "us-east-1"\n'
                          'access_key = { env = "BENCH_ACCESS" }\nsecret_key = { env = "BENCH_SECRET" }\n')
                for step in ("cold", "warm"):
                    self.one(place, step)
            shutil.rmtree(place.root, ignore_errors=True)
        finally:
            server.stop()

    def one(self, place, step):
        out = place.root / "listed.json"
        command = self.tool.command(place, "snapshots", "bench", "--json")
        command.argv = ["bash", "-c", 'out=$1; shift; exec "$@" > "$out"', "bash", out, *command.argv]
        command.env |= {"BENCH_ACCESS": ACCESS, "BENCH_SECRET": SECRET}
        figures = self.measured(command, self.log("lifeboat"))
        found = len(json.loads(out.read_text(encoding="utf-8"))["snapshots"]) if not figures["exit"] else 0
        if found != self.options.snapshots:
            self.fail("lifeboat", step, f"exit status {figures['exit']}, {found} snapshots")
            return
        self.note(step, "lifeboat", figures)

    def table(self):
        rows = [["from", "wall s", "CPU s", "peak PSS MiB", "all walls s"]]
        for step in ("cold", "warm"):
            if run := self.middle(step, "lifeboat"):
                walls = " ".join(f"{each['wall_s']:.2f}" for each in self.figures[(step, "lifeboat")])
                rows.append([step, f"{run['wall_s']:.2f}", f"{run['user_s'] + run['sys_s']:.2f}", f"{run['peak_pss_mib']:.0f}", walls])
        return (f"### {self.options.snapshots} snapshots listed from S3 with {self.options.latency} ms of latency\nMedian of {self.options.reps}.\n\n"
                f"{self.markdown(rows)}")
