"""Events published over HTTP and delivered to a receiver in its own process, in interleaved rounds.

Parts (all of them, or those named):
  throughput  64 clients publish one by one or in batches; fan-out 1 and 10. Counted is the time from
              the first request until the last delivery arrived. For each: CPU time a message by
              process, and SQL statements a message (pg_stat_statements, BEGIN and COMMIT included).
              Beside them the ceiling: the same load straight to the receiver.
  latency     from the publisher's answer to the arrival: one at a time, and at half the load.
  burst       the first second of a new store, ten messages for each event.
  drain       deliveries that are overdue when the server starts.
  fair        100 publishers: one whose receiver hangs for 30 s, one with a deep backlog, and how the
              other 98 fare before and meanwhile.
  retention   a table of finished deliveries past their time is swept, and how live traffic fares.
"""

import argparse
import base64
import json
import os
import pathlib
import re
import resource
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid

from runs import BOOTSTRAP, RELEASE, ROOT, Cluster

PARTS = ("burst", "throughput", "latency", "drain", "fair", "retention")
TICK = os.sysconf("SC_CLK_TCK")
HANG_QUEUED = 1500
# With a sweep, and as many without.
WINDOWS = 3
DAY_MS = 24 * 60 * 60 * 1000


def cpu_seconds(root):
    """User and system time of a process, its children, and those that it had."""
    total = 0
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, fields = entry.parent.name, entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(pid) == root:
            total += sum(map(int, fields[11:15]))
        elif int(fields[1]) == root:
            total += int(fields[11]) + int(fields[12])
    return total / TICK


def is_postgres(store):
    return store.partition("@")[0] == "postgres"


def percentile(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) * part // 100, len(ordered) - 1)] if ordered else None


def request(method, url, token=None, body=None):
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, method=method, headers=headers)) as answer:
            return answer.read()
    except urllib.error.HTTPError as refused:
        raise OSError(f"{method} {url}: {refused.code} {refused.read().decode(errors='replace')}") from None


class Consumer:
    """The receiver."""

    def __init__(self):
        self.process = subprocess.Popen([RELEASE / "examples" / "consumer"], stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().split()[-1]

    def forget(self):
        request("POST", self.url + "/-/forget")

    def count(self):
        return json.loads(request("GET", self.url + "/count"))

    def arrivals(self):
        """When which event came, microseconds."""
        lines = request("GET", self.url + "/arrivals").decode().splitlines()
        return {event: int(at) for _, event, at in map(str.split, lines)}

    def settle(self):
        """Waits until nothing more arrives."""
        last, since = -1, time.monotonic()
        while time.monotonic() - since < 1:
            time.sleep(0.1)
            now = self.count()["count"]
            if now != last:
                last, since = now, time.monotonic()

    def wait(self, count, patience=240):
        until, seen, still = time.monotonic() + patience, -1, 0
        while True:
            now = self.count()
            if now["count"] >= count:
                return now
            still = still + 1 if now["count"] == seen else 0
            if time.monotonic() > until or still > 300:
                sys.exit(f"{now['count']} of {count} deliveries arrived")
            seen = now["count"]
            time.sleep(0.1)

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


class Server:
    """A server on a store of its own, which can be stopped and started again."""

    def __init__(self, store, directory, cluster, **more):
        _, _, binary = store.partition("@")
        self.binary, self.cluster, self.publishers = binary or RELEASE / "stationmaster", cluster, []
        self.directory = pathlib.Path(directory) / f"store-{len(os.listdir(directory))}"
        self.directory.mkdir()
        self.process = None
        self.database = None
        if cluster:
            self.database = cluster.database("bench_" + uuid.uuid4().hex[:12])
            self.keys = self.directory / "keys"
            self.keys.write_text("bench:" + base64.b64encode(os.urandom(32)).decode() + "\n")
            self.keys.chmod(0o600)
        self.start(**more)

    def start(self, **more):
        environment = {
            "PATH": os.environ["PATH"], "STATIONMASTER_LISTEN": "127.0.0.1:0",
            "STATIONMASTER_DATA_DIR": str(self.directory), "STATIONMASTER_BOOTSTRAP_TOKEN": BOOTSTRAP,
            "STATIONMASTER_METRICS_LISTEN": "", "STATIONMASTER_LOG": "warn",
            "STATIONMASTER_RATE_LIMIT_PER_SECOND": "0", "STATIONMASTER_BOOTSTRAP_RATE_PER_MINUTE": "0",
            "STATIONMASTER_ALLOW_HTTP_DESTINATIONS": "true",
            "STATIONMASTER_ALLOWED_DESTINATIONS": "127.0.0.0/8"} | more
        command = [self.binary, "serve"]
        if self.database:
            environment |= {"STATIONMASTER_DATABASE_URL": self.database,
                            "STATIONMASTER_MASTER_KEYS_FILE": str(self.keys)}
            command.append("--migrate")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        line = self.process.stdout.readline()
        if "http://" not in line:
            sys.exit("the server did not start")
        self.url = line.split()[-1]

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(90)
            self.process = None

    def publisher(self, urls):
        """A publisher with an endpoint at each of the URLs; answers its token."""
        made = json.loads(request("POST", self.url + "/v1/publishers", BOOTSTRAP, {
            "slug": f"bench-{len(self.publishers)}", "display_name": "Bench"}))
        token = made["tokens"]["admin"]["token"]
        for url in urls:
            request("POST", self.url + "/v1/webhook-endpoints", token, {"url": url, "event_types": ["*"]})
        self.publishers.append(token)
        return token

    def load(self, tokens, seconds, clients=64, batch=1, rate=None, answers=None):
        return load(self.url, tokens, seconds, clients, batch, rate, answers)

    def analyze(self):
        """What autovacuum does within its first minute; until then plans are those of empty tables."""
        if self.database:
            self.cluster.sql(self.database, "ANALYZE")

    def statements(self):
        """How many statements PostgreSQL ran for this store."""
        if not self.database:
            return None
        name = self.database.rsplit("/", 1)[1]
        return int(self.cluster.sql(self.cluster.url, "SELECT COALESCE(SUM(calls), 0) FROM pg_stat_statements s "
                                    f"JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = '{name}'"))

    def watched(self, consumer):
        pids = {"server": self.process.pid, "receiver": consumer.process.pid}
        return pids | ({"PostgreSQL": self.cluster.pid} if self.cluster else {})

    def query(self, sql):
        """The first column of the first row."""
        if self.database:
            return self.cluster.sql(self.database, sql)
        with sqlite3.connect(f"file:{self.directory}/stationmaster.db?mode=ro", uri=True, timeout=30) as store:
            return store.execute(sql).fetchone()[0]

    def fill(self, url, first, count, finished):
        """Writes events with a delivery each for the endpoint at a URL, due an hour ago, or finished
        two months ago with an attempt. The server must be stopped."""
        now = time.time_ns() // 1_000_000
        at = now - 60 * DAY_MS if finished else now - 3_600_000
        body = '{"data":{"order":"A-1017"},"id":"evt_0","timestamp":"2026-01-01T00:00:00.000Z","type":"order.paid"}'
        state = ("succeeded", 1, None, at) if finished else ("pending", 0, at, None)
        if self.database:
            self.fill_postgres(url, first, count, at, body, state)
        else:
            self.fill_sqlite(url, first, count, at, body, state)

    def fill_postgres(self, url, first, count, at, body, state):
        status, attempts, due, ended = ("NULL" if value is None else f"'{value}'" for value in state)
        key = "('019a0000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"
        rows = f"FROM webhook_endpoints e, generate_series({first}, {first + count - 1}) n WHERE e.url = '{url}'"
        attempt = "" if status == "'pending'" else (
            "INSERT INTO delivery_attempts (publisher_id, delivery_id, number, at, status_code, latency_ms) "
            f"SELECT e.publisher_id, {key}, 1, {at}, 204, 3 {rows};")
        # Foreign keys hold by construction; checking them row by row would take minutes.
        self.cluster.sql(self.database, f"""
            SET session_replication_role = replica; SET synchronous_commit = off;
            INSERT INTO events (publisher_id, id, event_type, body, created_at)
            SELECT e.publisher_id, {key}, 'order.paid', '{body}', {at} {rows};
            INSERT INTO deliveries (publisher_id, id, event_id, endpoint_id, status, attempts, next_attempt_at,
            created_at, finished_at, seq, precedence)
            SELECT e.publisher_id, {key}, {key}, e.id, {status}, {attempts}, {due}, {at}, {ended}, 0, 0 {rows};
            {attempt}""")

    def fill_sqlite(self, url, first, count, at, body, state):
        store = sqlite3.connect(self.directory / "stationmaster.db", isolation_level=None)
        publisher, endpoint = store.execute(
            "SELECT publisher_id, id FROM webhook_endpoints WHERE url = ?", (url,)).fetchone()
        keys = [bytes.fromhex("019a0000000070008000") + number.to_bytes(6, "big")
                for number in range(first, first + count)]
        store.execute("PRAGMA synchronous = OFF")
        store.execute("BEGIN")
        store.executemany(
            "INSERT INTO events (publisher_id, id, event_type, body, created_at) VALUES (?, ?, 'order.paid', ?, ?)",
            ((publisher, key, body, at) for key in keys))
        store.executemany(
            "INSERT INTO deliveries (publisher_id, id, event_id, endpoint_id, status, attempts, next_attempt_at, "
            "created_at, finished_at, seq, precedence) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0)",
            ((publisher, key, key, endpoint, *state[:3], at, state[3]) for key in keys))
        if state[0] != "pending":
            store.executemany(
                "INSERT INTO delivery_attempts (publisher_id, delivery_id, number, at, status_code, latency_ms) "
                "VALUES (?, ?, 1, ?, 204, 3)", ((publisher, key, at) for key in keys))
        store.execute("COMMIT")
        store.close()


def load(url, tokens, seconds, clients=64, batch=1, rate=None, answers=None):
    """Runs the load; answers its line, with its own CPU time."""
    plan = {"address": url.removeprefix("http://"), "clients": clients, "seconds": seconds, "tokens": tokens,
            "batch": batch, "rate": rate, "answers": answers and str(answers)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([RELEASE / "examples" / "load"], input=json.dumps(plan), capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"the load failed: {done.stderr}")
    line = json.loads(done.stdout)
    line["cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return line


def flow(server, consumer, tokens, seconds, fan_out, batch):
    """Publishes for a while, and waits until everything has arrived."""
    consumer.forget()
    watched = server.watched(consumer)
    statements = server.statements()
    before = {name: cpu_seconds(pid) for name, pid in watched.items()}
    began = time.time()
    line = server.load(tokens, seconds, batch=batch)
    arrived_meanwhile = consumer.count()["count"]
    messages = line["events"] * fan_out
    seen = consumer.wait(messages)
    # The last outcomes are written after the last arrival.
    time.sleep(0.3)
    cpu = {name: (cpu_seconds(pid) - before[name]) / messages * 1e6 for name, pid in watched.items()}
    cpu["load"] = line["cpu"] / messages * 1e6
    return {
        "per_s": messages / (seen["last"] / 1e6 - began),
        "published_per_s": line["per_s"], "publish_p50_ms": line["p50_ms"], "publish_p99_ms": line["p99_ms"],
        "behind": messages - arrived_meanwhile,
        "duplicates": seen["count"] - messages,
        "cpu_us": cpu, "cpu_us_all": sum(cpu.values()),
        "statements": statements is not None and (server.statements() - statements) / messages,
    }


def paced(server, consumer, tokens, seconds, rate, clients, directory):
    """Publishes at a pace; answers how long deliveries took from the publisher's answer on."""
    consumer.forget()
    file = pathlib.Path(directory) / "answers"
    line = server.load(tokens, seconds, clients=clients, rate=rate, answers=file)
    answered = dict(map(str.split, file.read_text().splitlines()))
    arrived, until = {}, time.monotonic() + 60
    while time.monotonic() < until and not answered.keys() <= arrived.keys():
        time.sleep(0.2)
        arrived |= consumer.arrivals()
    took = [(arrived[event] - int(at)) / 1000 for event, at in answered.items() if event in arrived]
    return {"events": line["events"], "missing": len(answered) - len(took),
            "p50_ms": percentile(took, 50), "p99_ms": percentile(took, 99),
            "publish_p50_ms": line["p50_ms"], "publish_p99_ms": line["p99_ms"]}


class Bench:
    def __init__(self, chosen, directory):
        self.chosen, self.directory, self.servers = chosen, directory, []
        self.results = {}
        self.cluster = Cluster() if any(map(is_postgres, chosen.stores)) else None
        if self.cluster:
            self.cluster.sql(self.cluster.url, "CREATE EXTENSION pg_stat_statements")
        self.consumer = Consumer()

    def server(self, store):
        made = Server(store, self.directory, self.cluster if is_postgres(store) else None)
        self.servers.append(made)
        return made

    def close(self):
        for server in self.servers:
            server.stop()
        self.consumer.stop()
        if self.cluster:
            self.cluster.stop()

    def retire(self, server):
        server.stop()
        self.servers.remove(server)

    def run(self):
        for part in PARTS:
            if part in self.chosen.parts:
                began = time.monotonic()
                self.results[part] = getattr(self, part)()
                print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr)

    def live(self):
        """A server of each store with its publishers: one, sixteen, and one with ten endpoints."""
        if not hasattr(self, "lives"):
            self.lives = {}
            for store in self.chosen.stores:
                server = self.server(store)
                url = self.consumer.url + "/"
                groups = {
                    "one": [server.publisher([url + "one"])],
                    "many": [server.publisher([f"{url}many{at}"]) for at in range(16)],
                    "wide": [server.publisher([f"{url}wide{at}" for at in range(10)])],
                }
                for tokens in groups.values():
                    server.load(tokens, 1)
                self.consumer.settle()
                server.analyze()
                self.lives[store] = (server, groups)
        return self.lives

    def burst(self):
        rounds = {}
        for number in range(self.chosen.rounds):
            print(f"burst: round {number + 1} of {self.chosen.rounds}", file=sys.stderr)
            for store in self.chosen.stores:
                server = self.server(store)
                token = server.publisher([f"{self.consumer.url}/wide{at}" for at in range(10)])
                rounds.setdefault(store, []).append(flow(server, self.consumer, [token], 1, 10, 1))
                self.retire(server)
        return rounds

    def throughput(self):
        seconds, rounds = self.chosen.seconds, {}
        kinds = {"1 publisher": ("one", 1, 1), "16 publishers": ("many", 1, 1),
                 "16 publishers, 100 a call": ("many", 1, 100), "fan-out 10": ("wide", 10, 1)}
        lives = self.live()
        for number in range(self.chosen.rounds):
            print(f"throughput: round {number + 1} of {self.chosen.rounds}", file=sys.stderr)
            bare = load(self.consumer.url, ["none"], min(seconds, 2))
            rounds.setdefault("ceiling: load to receiver", []).append({"per_s": bare["per_s"]})
            for store, (server, groups) in lives.items():
                for name, (group, fan_out, batch) in kinds.items():
                    if self.chosen.only not in name:
                        continue
                    # Fan-out and batches bring more messages for the same time of publishing.
                    span = seconds / (2 if fan_out * batch > 1 else 1)
                    done = flow(server, self.consumer, groups[group], span, fan_out, batch)
                    rounds.setdefault(f"{store}, {name}", []).append(done)
                    server.analyze()
        return rounds

    def latency(self):
        rounds = {}
        for number in range(self.chosen.rounds):
            print(f"latency: round {number + 1} of {self.chosen.rounds}", file=sys.stderr)
            for store, (server, groups) in self.live().items():
                done = paced(server, self.consumer, groups["one"], self.chosen.seconds, 25, 1, self.directory)
                rounds.setdefault(f"{store}, one at a time", []).append(done)
                known = self.results.get("throughput", {}).get(f"{store}, 16 publishers")
                rate = statistics.median(one["per_s"] for one in known) / 2 if known else self.chosen.rate
                done = paced(server, self.consumer, groups["many"], self.chosen.seconds, rate, 64, self.directory)
                rounds.setdefault(f"{store}, half load", []).append(done | {"rate": rate})
        return rounds

    def drain(self):
        results, size = {}, self.chosen.overdue
        for store in self.chosen.stores:
            for publishers in (1, 10):
                server = self.server(store)
                urls = [f"{self.consumer.url}/due{at}" for at in range(publishers)]
                for url in urls:
                    server.publisher([url])
                server.stop()
                for at, url in enumerate(urls):
                    server.fill(url, 1 + at * size, size // publishers, finished=False)
                server.analyze()
                self.consumer.forget()
                statements, began = server.statements(), time.time()
                before = cpu_seconds(self.cluster.pid) if server.cluster else 0
                receiver = cpu_seconds(self.consumer.process.pid)
                server.start()
                seen = self.consumer.wait(size)
                time.sleep(0.5)
                cpu = {"server": cpu_seconds(server.process.pid),
                       "receiver": cpu_seconds(self.consumer.process.pid) - receiver}
                if server.cluster:
                    cpu["PostgreSQL"] = cpu_seconds(self.cluster.pid) - before
                results[f"{store}, {publishers} endpoint{'s' if publishers > 1 else ''}"] = {
                    "deliveries": size, "first_after_s": seen["first"] / 1e6 - began,
                    "per_s": size / (seen["last"] - seen["first"]) * 1e6,
                    "cpu_us": {name: spent / size * 1e6 for name, spent in cpu.items()},
                    "statements": statements is not None and (server.statements() - statements) / size,
                }
                self.retire(server)
        return results

    def fair(self):
        results, seconds = {}, self.chosen.seconds * 3
        for store in self.chosen.stores:
            server = self.server(store)
            hang, deep = self.consumer.url + "/hang", self.consumer.url + "/deep"
            server.publisher([hang])
            server.publisher([deep])
            others = [server.publisher([f"{self.consumer.url}/other{at}"]) for at in range(98)]

            def window():
                return paced(server, self.consumer, others, seconds, 2 * len(others), len(others), self.directory)
            # Warm both times: started anew, with as much traffic before the one that counts.
            window()
            server.stop()
            server.analyze()
            server.start()
            window()
            before = window()
            server.stop()
            server.fill(hang, 1, HANG_QUEUED, finished=False)
            server.fill(deep, 1 << 24, self.chosen.deep, finished=False)
            server.analyze()
            server.start()
            window()
            waiting = "SELECT COUNT(*) FROM deliveries WHERE status = 'pending'"
            left, began = int(server.query(waiting)), time.monotonic()
            meanwhile = window()
            drained = (left - int(server.query(waiting))) / (time.monotonic() - began)
            left = int(server.query(waiting))
            results[store] = {"before": before, "meanwhile": meanwhile, "left": left, "drained_per_s": drained,
                              "p50_ratio": meanwhile["p50_ms"] / before["p50_ms"],
                              "p99_ratio": meanwhile["p99_ms"] / before["p99_ms"]}
            # Requests that hang are let go by the server's own deadline.
            server.process.kill()
            server.process.wait(10)
            server.process = None
            self.servers.remove(server)
        return results

    def retention(self):
        """Without and with a sweep, in turn, so that a slow moment of the machine is not taken for the sweep's."""
        results, seconds, size = {}, self.chosen.seconds * 2, self.chosen.finished
        for store in self.chosen.stores:
            server = self.server(store)
            url = self.consumer.url + "/live"
            token = server.publisher([url])
            server.stop()
            server.fill(url, 1, size, finished=True)
            server.analyze()
            cutoff = time.time_ns() // 1_000_000 - 31 * DAY_MS
            old = f"SELECT COUNT(*) FROM deliveries WHERE finished_at < {cutoff}"
            swept = []

            def window(days):
                server.start(STATIONMASTER_CRON_DELIVERIES="* * * * * *", STATIONMASTER_RETENTION_DELIVERIES_DAYS=days)
                paced(server, self.consumer, [token], seconds / 2, 100, 16, self.directory)
                left, began = int(server.query(old)), time.monotonic()
                line = paced(server, self.consumer, [token], seconds, 100, 16, self.directory)
                swept.append((left - int(server.query(old))) / (time.monotonic() - began))
                server.stop()
                return line
            # What comes after the filling counts for nobody.
            window("36500")
            swept.clear()
            if server.cluster:
                self.cluster.sql(self.cluster.url, "SELECT pg_stat_statements_reset()")
            without, beside = [], []
            for turn in range(WINDOWS):
                for days, lines in (("36500", without), ("30", beside))[::-1 if turn % 2 else 1]:
                    lines.append(window(days))
            before, meanwhile = ({key: statistics.median(one[key] for one in lines) for key in lines[0]}
                                 for lines in (without, beside))
            for line, lines in ((before, without), (meanwhile, beside)):
                line["missing"] = sum(one["missing"] for one in lines)
            result = {"before": before, "meanwhile": meanwhile, "rows": size,
                      "swept_per_s": statistics.median(sorted(swept)[-WINDOWS:]),
                      "p99_ratio": meanwhile["p99_ms"] / before["p99_ms"],
                      "p99_before": [round(one["p99_ms"], 2) for one in without],
                      "p99_meanwhile": [round(one["p99_ms"], 2) for one in beside]}
            if server.cluster:
                name = server.database.rsplit("/", 1)[1]
                row = self.cluster.sql(self.cluster.url, (
                    "SELECT calls, rows, mean_exec_time, max_exec_time FROM pg_stat_statements s "
                    f"JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = '{name}' "
                    "AND query LIKE 'DELETE FROM deliveries %' ORDER BY calls DESC LIMIT 1"))
                calls, rows, mean, longest = map(float, row.split("|"))
                result |= {"batch_rows": rows / calls, "statement_mean_ms": mean, "statement_max_ms": longest}
            results[store] = result
            self.retire(server)
        return results


def shown(value, digits=0):
    return "" if value is None or value is False else f"{value:.{digits}f}"


def median(rounds, *path):
    values = []
    for one in rounds:
        for key in path:
            one = one.get(key) if isinstance(one, dict) else None
        if one is not None and one is not False:
            values.append(one)
    return statistics.median(values) if values else None


def report_throughput(rounds):
    top = median(rounds["ceiling: load to receiver"], "per_s")
    print(f"\n{'throughput':38}{'delivered/s':>12}{'of ceiling':>11}{'published/s':>12}{'p50 ms':>8}{'p99 ms':>8}"
          f"{'CPU µs':>8}{'server':>8}{'PG':>6}{'recv':>6}{'load':>6}{'SQL':>7}{'dup':>5}")
    for name, many in rounds.items():
        speed = median(many, "per_s")
        cpu = [shown(median(many, "cpu_us", whose)) for whose in ("server", "PostgreSQL", "receiver", "load")]
        print(f"{name:38}{speed:12.0f}{speed / top:11.2f}{shown(median(many, 'published_per_s')):>12}"
              f"{shown(median(many, 'publish_p50_ms'), 1):>8}{shown(median(many, 'publish_p99_ms'), 1):>8}"
              f"{shown(median(many, 'cpu_us_all')):>8}{cpu[0]:>8}{cpu[1]:>6}{cpu[2]:>6}{cpu[3]:>6}"
              f"{shown(median(many, 'statements'), 3):>7}{shown(median(many, 'duplicates')):>5}")


def report(results, chosen):
    if "throughput" in results:
        report_throughput(results["throughput"])
    if "latency" in results:
        print(f"\n{'latency: answered → arrives':38}{'p50 ms':>9}{'p99 ms':>9}{'publish p50':>13}{'p99':>8}{'rate':>8}")
        for name, many in results["latency"].items():
            print(f"{name:38}{median(many, 'p50_ms'):9.2f}{median(many, 'p99_ms'):9.2f}"
                  f"{median(many, 'publish_p50_ms'):13.1f}{median(many, 'publish_p99_ms'):8.1f}"
                  f"{shown(median(many, 'rate')):>8}")
    for name, many in results.get("burst", {}).items():
        print(f"\nburst, {name}: {median(many, 'published_per_s'):.0f} events/s, {median(many, 'behind'):.0f} messages "
              f"left after a second, {median(many, 'per_s'):.0f} messages/s until the last")
    for name, one in results.get("drain", {}).items():
        cpu = ", ".join(f"{whose} {spent:.0f} µs" for whose, spent in one["cpu_us"].items())
        print(f"\ndrain, {name}: {one['deliveries']} at {one['per_s']:.0f}/s, the first {one['first_after_s']:.2f} s "
              f"after the start began; {cpu}; statements {shown(one['statements'], 3)}")
    for part in ("fair", "retention"):
        for name, one in results.get(part, {}).items():
            facts = {key: round(value, 2) if isinstance(value, float) else value
                     for key, value in one.items() if not isinstance(value, dict)}
            print(f"\n{part}, {name}: {facts}")
            for when in ("before", "meanwhile"):
                print(f"  {when:10} p50 {one[when]['p50_ms']:8.2f} ms  p99 {one[when]['p99_ms']:8.2f} ms  "
                      f"publish p99 {one[when]['publish_p99_ms']:8.2f} ms  missing {one[when]['missing']}")
    out = ROOT / "target" / "bench-webhooks.json"
    out.write_text(json.dumps({"settings": vars(chosen), "results": results}, indent=2))
    print(f"\nall rounds: {out.relative_to(ROOT)}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    arguments.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds")
    arguments.add_argument("--rounds", type=int)
    arguments.add_argument("--seconds", type=float, default=4)
    arguments.add_argument("--only", default="", help="kinds of throughput whose name has this in it")
    arguments.add_argument("--rate", type=float, default=1000, help="half the load, where throughput is not measured")
    arguments.add_argument("--stores", default="sqlite,postgres", type=lambda text: text.split(","),
                           help="sqlite and postgres; with @PATH the server is that binary, for comparison")
    chosen = arguments.parse_args()
    unknown = set(chosen.parts) - set(PARTS)
    if unknown:
        arguments.error(f"there is no part {', '.join(unknown)}")
    chosen.parts = chosen.parts or list(PARTS)
    chosen.rounds = chosen.rounds or (2 if chosen.quick else 5)
    chosen.overdue = 20_000 if chosen.quick else 100_000
    chosen.deep = 100_000 if chosen.quick else 500_000
    chosen.finished = 100_000 if chosen.quick else 2_000_000
    # Whoever ends the bench early still has its processes ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended early"))
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(chosen, directory)
        try:
            bench.run()
        finally:
            bench.close()
    report(bench.results, chosen)


if __name__ == "__main__":
    main()
