"""What a publisher notices of a hostile neighbour: latencies beside each load, and without it, in one run.

Each load is one publisher's: what its tokens allow, with the default limits (the request rate is the
only one that is off, so that it hides nothing). Beside it another publisher reads, lists, creates,
claims and completes runs, and publishes events to its own endpoint. The load comes from a process of
its own. Resident memory is read throughout, and a minute after.

  lists      events of 256 KiB of small values, listed 200 at a time
  bodies     64 requests of 3.9 MB of small values at once, over and over
  schema     inputs judged by nested schemas and by large patterns, where those are taken
  slow       1100 requests whose bodies do not come
  silent     1100 connections that say nothing
  upstream   1100 requests that wait for the token endpoint of an account, which hangs
  fan_out    1000 events to 100 endpoints, on two connections
  claims     3000 waiting claims of 50 pipelines, and new runs for them
  scans      filters that match nothing over many rows, on 32 connections
  storage    events of 250 KiB, as fast as they are taken
  interim    receivers that answer `100 Continue` for ever

Wanted (docs/benchmarks.md): no 5xx for the neighbour, p50 at most 2 times and p99 at most 5 times as long,
resident memory at most 512 MiB throughout and at most 120 MiB a minute after.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import pathlib
import resource
import socket
import statistics
import sys
import tempfile
import threading
import time

from runs import BOOTSTRAP, ROOT, Cluster
from webhooks import Consumer, Server, is_postgres, percentile, request

KIB = 1024
MEMORY_MAX_MIB, MEMORY_AFTER_MIB = 512, 120
P50_MAX, P99_MAX = 2, 5
# Below this a ratio says more of the scheduler and of this program than of the server, seconds.
SLACK_P50, SLACK_P99 = 0.002, 0.020
GAP_S = 0.005


def small_values(size):
    """JSON text of about `size` bytes, most of it structure."""
    return "[" + ",".join(["{\"\":0}"] * (size // 7)) + "]"


class Connection:
    """A kept HTTP/1.1 connection."""

    def __init__(self, url, source=None):
        self.source = source and (source, 0)
        self.host, port = url.removeprefix("http://").rsplit(":", 1)
        self.port, self.reader, self.writer = int(port), None, None

    async def open(self):
        self.reader, self.writer = await asyncio.open_connection(
            self.host, self.port, limit=1 << 25, local_addr=self.source)

    def head(self, method, path, token, length):
        return (f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {length}\r\n")

    async def ask(self, method, path, token, body=None, headers=""):
        """Status and body; status 0 where the connection ended instead."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            if not self.writer:
                await self.open()
            self.writer.write((self.head(method, path, token, len(data)) + headers + "\r\n").encode() + data)
            await self.writer.drain()
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status, length = int(head.split(" ", 2)[1]), 0
            if "content-length: " in head:
                length = int(head.split("content-length: ", 1)[1].split("\r\n", 1)[0])
            answer = await self.reader.readexactly(length)
            if "connection: close" in head:
                self.close()
            return status, answer
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            self.close()
            return 0, b""

    def close(self):
        if self.writer:
            self.writer.close()
        self.reader = self.writer = None


# ---- the loads: each is set up before the quiet phase, and then run in a process of its own


class Hostile:
    """A publisher that takes what it can get."""

    def __init__(self, server):
        self.server, self.url = server, server.url
        made = json.loads(request("POST", self.url + "/v1/publishers", BOOTSTRAP, {
            "slug": "hostile", "display_name": "Hostile"}))
        self.admin, self.runner = (made["tokens"][kind]["token"] for kind in ("admin", "runner"))

    def call(self, method, path, body=None, token=None):
        return json.loads(request(method, self.url + "/v1" + path, token or self.admin, body) or b"null")

    def pipeline(self, slug, **more):
        return self.call("PUT", f"/pipelines/{slug}", {"display_name": "Hostile"} | more)

    async def crowd(self, count, one):
        """As many at once, each over and over."""
        async def forever(number):
            connection = Connection(self.url)
            while True:
                status, _ = await one(connection, number)
                if status == 0 or status >= 400:
                    await asyncio.sleep(0.01)
        await asyncio.gather(*[forever(number) for number in range(count)])

    async def hold(self, count, what):
        """As many connections, each with so much of a request, again when they are ended."""
        async def one(number):
            while True:
                connection = Connection(self.url)
                try:
                    await connection.open()
                    connection.writer.write(what(connection))
                    await connection.writer.drain()
                    while await connection.reader.read(4096):
                        pass
                except OSError:
                    pass
                connection.close()
                await asyncio.sleep(1)
        await asyncio.gather(*[one(number) for number in range(count)])


def lists(self):
    # Written with spaces it is 250 KiB, and ten of them stay within a body.
    event = {"type": "a.b", "data": json.loads(small_values(190 * KIB))}
    for _ in range(20):
        request("POST", self.url + "/v1/events", self.admin, {"events": [event] * 10})
    return lambda: self.crowd(4, lambda c, _: c.ask("GET", "/v1/events?limit=200", self.admin))


def bodies(self):
    event = b'{"type": "a.b", "data": %s}' % small_values(240 * KIB).encode()
    body = b'{"events": [%s]}' % b",".join([event] * 16)
    return lambda: self.crowd(64, lambda c, _: c.ask("POST", "/v1/events", self.admin, body))


def schema(self):
    depth, taken = 40, []
    nested = {f"a{at}": {"anyOf": [{"$ref": f"#/$defs/a{at + 1}"}], "unevaluatedProperties": {"type": "integer"}}
              for at in range(depth)} | {f"a{depth}": {"type": "object"}}
    tries = {"nested": {"$ref": "#/$defs/a0", "$defs": nested},
             "nested-little": {"$ref": "#/$defs/a34", "$defs": nested},
             "large-pattern": {"type": "string", "pattern": "^[01]*1[01]{5000}$"},
             "pattern": {"type": "string", "pattern": "^[01]*1[01]{50}$"},
             "unique": {"type": "array", "uniqueItems": True}}
    inputs = {"large-pattern": "01" * (120 * KIB), "pattern": "01" * (120 * KIB),
              "unique": list(range(15_000))}
    for slug, judged_by in tries.items():
        try:
            self.pipeline(slug, input_schema=judged_by)
            taken.append((slug, json.dumps({"input": inputs.get(slug, {"a": 1, "b": 2})}).encode()))
        except OSError:
            pass
    print(f"    schemas taken: {', '.join(slug for slug, _ in taken) or 'none'}")
    if not taken:
        return lambda: asyncio.sleep(3600)

    def one(connection, number):
        slug, body = taken[number % len(taken)]
        return connection.ask("POST", f"/v1/pipelines/{slug}/runs", self.runner, body)
    return lambda: self.crowd(16, one)


def slow(self):
    return lambda: self.hold(1100, lambda c: (c.head("POST", "/v1/events", self.admin, 100_000) + "\r\n{").encode())


def silent(self):
    return lambda: self.hold(1100, lambda c: b"")


def upstream(self):
    pit, kept = socket.create_server(("127.0.0.1", 0), backlog=4096), []

    def accept():
        while True:
            kept.append(pit.accept()[0])
    threading.Thread(target=accept, daemon=True).start()
    url = f"http://127.0.0.1:{pit.getsockname()[1]}/token"
    accounts = [self.call("POST", "/accounts", {
        "name": f"hangs-{number}", "provider": "anthropic", "credential_type": "oauth",
        "oauth": {"access_token": "x" * 20, "refresh_token": "y" * 20, "expires_at": "2020-01-01T00:00:00Z",
                  "token_url": url, "client_id": "c", "scopes": []}})["id"] for number in range(100)]
    self.call("POST", "/trains", {"slug": "hangs"})
    self.call("PUT", "/trains/hangs/accounts", [{"account_id": one, "priority": 0} for one in accounts])
    token = self.call("POST", "/trains/hangs/tokens", {})["token"]
    return lambda: self.crowd(1100, lambda c, _: c.ask("POST", "/v1/resolve", token, {}))


def fan_out(self):
    nobody = socket.socket()
    nobody.bind(("127.0.0.1", 0))  # never listens: what is spread costs no receiver's time
    self.kept = nobody
    for number in range(100):
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/{number}"
        self.call("POST", "/webhook-endpoints", {"url": url, "event_types": ["*"]})
    body = json.dumps({"events": [{"type": "a.b", "data": number} for number in range(1000)]}).encode()
    return lambda: self.crowd(2, lambda c, _: c.ask("POST", "/v1/events", self.admin, body))


def claims(self):
    slugs = [f"p{number}" for number in range(50)]
    for slug in slugs:
        self.pipeline(slug, max_concurrent_runs=1)
        self.call("POST", f"/pipelines/{slug}/runs", {"input": 1, "claim": True}, self.runner)
        self.call("POST", f"/pipelines/{slug}/runs", {"input": 1}, self.runner)
    body = json.dumps({"wait_seconds": 60, "max": 100, "pipelines": slugs}).encode()

    async def both():
        waiting = self.hold(3000, lambda c: (c.head("POST", "/v1/runs/claim", self.runner, len(body)) + "\r\n").encode() + body)
        making = self.crowd(4, lambda c, _: c.ask("POST", "/v1/pipelines/p0/runs", self.runner, {"input": 1}))
        await asyncio.gather(waiting, making)
    return both


def scans(self):
    self.pipeline("p")
    self.pipeline("q")
    event = {"type": "a.b", "data": {"k": "v" * 200}, "pipeline": "p"}
    for _ in range(self.server.rows // 1000):
        request("POST", self.url + "/v1/events", self.admin, {"events": [event] * 1000})

    async def runs():
        async def some():
            connection = Connection(self.url)
            for _ in range(self.server.rows // 64):
                await connection.ask("POST", "/v1/pipelines/p/runs", self.runner, {"input": {"k": "v" * 100}})
        await asyncio.gather(*[some() for _ in range(64)])
    asyncio.run(runs())
    limited = self.call("POST", "/publishers/me/tokens/runner", {"pipelines": ["q"]})["token"]
    asked = [("/v1/events?type=no.such", self.admin), ("/v1/events", limited), ("/v1/runs?status=failed", self.admin),
             ("/v1/runs", limited), ("/v1/runs?pipeline=q", self.admin), ("/v1/runs?until=2020-01-01T00:00:00Z", self.admin),
             ("/v1/runs?external_id=zz", self.admin), ("/v1/deliveries?status=failed", self.admin),
             ("/v1/publishers/me/audit?target=zz", self.admin), ("/v1/runs?limit=200", self.admin)]

    def one(connection, number):
        if number < 4:
            return connection.ask("POST", "/v1/runs/cancel", self.admin, {"until": "2020-01-01T00:00:00Z"})
        path, token = asked[number % len(asked)]
        return connection.ask("GET", path, token)
    return lambda: self.crowd(32, one)


def storage(self):
    body = json.dumps({"type": "a.b", "data": "x" * (250 * KIB)}).encode()
    return lambda: self.crowd(16, lambda c, _: c.ask("POST", "/v1/events", self.admin, body))


def interim(self):
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)

    def flood(peer):
        try:
            peer.recv(65536)
            while True:
                peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
        except OSError:
            pass

    def accept():
        while True:
            threading.Thread(target=flood, args=(listener.accept()[0],), daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for number in range(16):
        self.call("POST", "/webhook-endpoints", {"url": f"{url}/{number}", "event_types": ["*"]})

    def run():
        threading.Thread(target=accept, daemon=True).start()
        return self.crowd(1, lambda c, _: c.ask("POST", "/v1/events", self.admin, {"type": "a.b", "data": 1}))
    return run


LOADS = {load.__name__: load for load in (
    lists, bodies, schema, slow, silent, upstream, fan_out, claims, scans, storage, interim)}


# ---- the neighbour


class Neighbour:
    """An ordinary publisher: latencies (seconds) and statuses by what it does."""

    def __init__(self, server, consumer):
        self.url, self.consumer, self.count = server.url, consumer, itertools.count()
        made = json.loads(request("POST", self.url + "/v1/publishers", BOOTSTRAP, {
            "slug": "neighbour", "display_name": "Neighbour"}))
        self.admin, self.runner = (made["tokens"][kind]["token"] for kind in ("admin", "runner"))
        request("PUT", self.url + "/v1/pipelines/n", self.admin, {"display_name": "Neighbour"})
        request("POST", self.url + "/v1/webhook-endpoints", self.admin,
                {"url": consumer.url + "/neighbour", "event_types": ["own.*"]})

    async def publish(self, connection):
        status, answer = await connection.ask("POST", "/v1/events", self.admin,
                                              {"type": "own.event", "data": next(self.count)})
        if status == 202:
            self.published[json.loads(answer)["id"]] = time.time()
        return status

    async def work(self, connection):
        """Claims a run and completes it."""
        status, answer = await connection.ask("POST", "/v1/runs/claim", self.runner, {"max": 1})
        for claimed in json.loads(answer)["items"] if status == 200 else ():
            status, _ = await connection.ask(
                "POST", f"/v1/runs/{claimed['id']}/complete", self.runner, {"output": 1},
                f"X-Stationmaster-Claim: {claimed['claim']['token']}\r\n")
        return status

    async def probe(self, seconds):
        async def plain(connection, *asked):
            return (await connection.ask(*asked))[0]
        turns = {
            "read": lambda c: plain(c, "GET", "/v1/publishers/me", self.admin),
            "list": lambda c: plain(c, "GET", "/v1/runs?limit=20", self.admin),
            "create": lambda c: plain(c, "POST", "/v1/pipelines/n/runs", self.runner, {"input": 1}),
            "claim": self.work,
            "publish": self.publish,
        }
        self.published, seen, statuses = {}, {name: [] for name in turns}, {}
        # From an address of its own: connections have a share an address, too.
        connection, until = Connection(self.url, "127.0.0.2"), time.monotonic() + seconds
        for name in itertools.cycle(turns):
            if time.monotonic() > until:
                break
            began = time.perf_counter()
            try:
                status = await asyncio.wait_for(turns[name](connection), 60)
            except asyncio.TimeoutError:
                status = 0
                connection.close()
            seen[name].append(time.perf_counter() - began)
            statuses.setdefault(name, {}).setdefault(status, 0)
            statuses[name][status] += 1
            await asyncio.sleep(GAP_S)
        connection.close()
        return seen, statuses

    def phase(self, seconds):
        """One phase, with the time from each publishing's answer to its delivery's arrival."""
        self.consumer.arrivals()
        seen, statuses = asyncio.run(self.probe(seconds))
        arrived, until = {}, time.monotonic() + 30
        while time.monotonic() < until and not self.published.keys() <= arrived.keys():
            time.sleep(0.1)
            arrived |= self.consumer.arrivals()
        seen["delivery"] = [max(arrived[event] / 1e6 - at, 0) if event in arrived else 60.0
                            for event, at in self.published.items()]
        statuses["delivery"] = {200: sum(event in arrived for event in self.published),
                                0: sum(event not in arrived for event in self.published)}
        return seen, statuses


class Memory:
    """Resident memory of a process, MiB, read ten times a second."""

    def __init__(self, pid):
        self.pid, self.most, self.over = pid, 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def now(self):
        try:
            for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) / KIB
        except OSError:
            pass
        return 0

    def watch(self):
        while not self.over.wait(0.1):
            self.most = max(self.most, self.now())


def run_load(prepared):
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(prepared())


def one(store, name, options, directory, cluster):
    """A row for each thing that the neighbour does."""
    server = Server(store, directory, cluster if is_postgres(store) else None)
    server.rows = options.rows
    consumer = Consumer()
    memory = Memory(server.process.pid)
    attacker = None
    try:
        neighbour = Neighbour(server, consumer)
        prepared = LOADS[name](Hostile(server))
        server.analyze()
        neighbour.phase(2)
        base, _ = neighbour.phase(options.seconds)
        attacker = multiprocessing.get_context("fork").Process(target=run_load, args=(prepared,), daemon=True)
        attacker.start()
        time.sleep(1)
        beside, statuses = neighbour.phase(options.seconds)
        attacker.kill()
        attacker.join()
        alive = server.process.poll() is None
        rows = []
        for what, quiet in base.items():
            row = {"store": store, "load": name, "what": what, "n": len(beside[what]),
                   "quiet_p50_ms": statistics.median(quiet) * 1e3, "quiet_p99_ms": percentile(quiet, 99) * 1e3}
            for part, most, slack in ((50, P50_MAX, SLACK_P50), (99, P99_MAX, SLACK_P99)):
                before, now = percentile(quiet, part), percentile(beside[what], part)
                row |= {f"p{part}_ms": now * 1e3, f"p{part}_ratio": now / before,
                        f"p{part}_met": now / before <= most or now - before <= slack}
            row["refused"] = {status: count for status, count in statuses.get(what, {}).items()
                              if count and not 200 <= status < 300}
            rows.append(row)
        until, after = time.monotonic() + 60, memory.now()
        while alive and after > MEMORY_AFTER_MIB and time.monotonic() < until:
            time.sleep(1)
            after = memory.now()
        return {"store": store, "load": name, "alive": alive, "memory_mib": memory.most, "memory_after_mib": after,
                "rows": rows}
    finally:
        memory.over.set()
        if attacker and attacker.is_alive():
            attacker.kill()
        server.process.kill()
        server.process.wait()
        consumer.stop()


def show(result):
    bad = []
    for row in result["rows"]:
        met = row["p50_met"] and row["p99_met"] and not row["refused"]
        print(f"    {row['what']:<9} p50 {row['quiet_p50_ms']:7.2f} → {row['p50_ms']:8.2f} ms ({row['p50_ratio']:5.1f}×)"
              f"   p99 {row['quiet_p99_ms']:7.2f} → {row['p99_ms']:8.2f} ms ({row['p99_ratio']:5.1f}×)"
              f"   {'' if met else 'MISSED'} {row['refused'] or ''}")
        if not met:
            bad.append(f"{result['store']} {result['load']} {row['what']}")
    memory = result["memory_mib"] <= MEMORY_MAX_MIB and result["memory_after_mib"] <= MEMORY_AFTER_MIB
    print(f"    memory    {result['memory_mib']:.0f} MiB at most, {result['memory_after_mib']:.0f} MiB after"
          f"   {'' if memory and result['alive'] else 'MISSED'}{'' if result['alive'] else ' (the process died)'}")
    if not (memory and result["alive"]):
        bad.append(f"{result['store']} {result['load']} memory")
    return bad


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench neighbours", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loads", nargs="*", metavar="LOAD", help=f"of {', '.join(LOADS)}; all without")
    parser.add_argument("--stores", default="sqlite,postgres", help="sqlite, postgres, or both (default)")
    parser.add_argument("--seconds", type=float, default=10, help="length of each phase (default 10)")
    parser.add_argument("--rows", type=int, default=100_000, help="events, and runs, of `scans` (default 100 000)")
    options = parser.parse_args()
    unknown = set(options.loads) - set(LOADS)
    if unknown:
        parser.error(f"there is no load called {unknown.pop()}")
    stores = options.stores.split(",")
    cluster = Cluster() if any(map(is_postgres, stores)) else None
    if cluster:
        cluster.sql(cluster.url, "CREATE EXTENSION pg_stat_statements")
    results, missed = [], []
    try:
        with tempfile.TemporaryDirectory() as directory:
            for store in stores:
                for name in options.loads or LOADS:
                    print(f"{store}, {name}", flush=True)
                    result = one(store, name, options, directory, cluster)
                    results.append(result)
                    missed += show(result)
                    sys.stdout.flush()
    finally:
        if cluster:
            cluster.stop()
    out = ROOT / "target" / "bench-neighbours.json"
    out.write_text(json.dumps({"seconds": options.seconds, "results": results}, indent=1) + "\n")
    total = sum(len(result["rows"]) + 1 for result in results)
    print(f"{total - len(missed)} of {total} figures within bounds; {out.relative_to(ROOT)}")
    for one_missed in missed:
        print(f"  missed: {one_missed}")


if __name__ == "__main__":
    main()
