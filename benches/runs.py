"""Runs created, claimed and completed over HTTP, durably, in interleaved rounds.

Servers: SQLite (synchronous=FULL) and PostgreSQL (fsync on), each with many changes to a commit
and with one (STATIONMASTER_WRITE_BATCH_MAX=1). Loads: one publisher, and many apart. Beside them
pgbench on the same cluster: the lane's own statements for 64 runs a transaction, and for one run.
For each: requests/s, p50 and p99, and CPU time a request, of the server and of PostgreSQL.
"""

import argparse
import base64
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
RELEASE = ROOT / "target" / "release"
BOOTSTRAP = "bench-bootstrap-token-" + "x" * 20
BATCH = 64
PHASES = ("create", "claim", "complete")


class Cluster:
    """A throw-away durable PostgreSQL."""

    def __init__(self):
        started = subprocess.run([ROOT / "scripts" / "postgres"], stdout=subprocess.PIPE, text=True, check=True)
        self.url = started.stdout.strip()
        port = re.search(r":(\d+)/", self.url).group(1)
        for file in pathlib.Path(os.environ.get("TMPDIR", "/tmp")).glob("stationmaster-postgres.*/data/postmaster.pid"):
            lines = file.read_text().splitlines()
            if lines[3] == port:
                self.pid = int(lines[0])

    def database(self, name):
        self.sql(self.url, f"CREATE DATABASE {name}")
        return self.url.rsplit("/", 1)[0] + "/" + name

    @staticmethod
    def sql(url, text):
        done = subprocess.run(["psql", "-AtqX", "-v", "ON_ERROR_STOP=1", url, "-c", text],
                              capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"psql: {done.stderr}")
        return done.stdout.strip()

    def stop(self):
        subprocess.run([ROOT / "scripts" / "postgres", "stop", self.url], check=True)


class Server:
    """A server, its publishers, and its load."""

    def __init__(self, directory, publishers, cluster=None, url=None, batch=256):
        self.cluster = cluster
        environment = {
            "PATH": os.environ["PATH"], "STATIONMASTER_LISTEN": "127.0.0.1:0",
            "STATIONMASTER_DATA_DIR": directory, "STATIONMASTER_BOOTSTRAP_TOKEN": BOOTSTRAP,
            "STATIONMASTER_METRICS_LISTEN": "", "STATIONMASTER_LOG": "warn",
            "STATIONMASTER_RATE_LIMIT_PER_SECOND": "0", "STATIONMASTER_BOOTSTRAP_RATE_PER_MINUTE": "0",
            "STATIONMASTER_WRITE_BATCH_MAX": str(batch)}
        command = [RELEASE / "stationmaster", "serve"]
        if url:
            keys = pathlib.Path(directory) / "keys"
            keys.write_text("bench:" + base64.b64encode(os.urandom(32)).decode() + "\n")
            keys.chmod(0o600)
            environment |= {"STATIONMASTER_DATABASE_URL": url, "STATIONMASTER_MASTER_KEYS_FILE": str(keys)}
            command.append("--migrate")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=None, text=True, env=environment)
        line = self.process.stdout.readline()
        if "http://" not in line:
            sys.exit("the server did not start")
        self.url = line.split()[-1]
        self.tokens = [self.publisher(number) for number in range(publishers)]

    def ask(self, method, path, token, body):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), method=method,
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def publisher(self, number):
        made = self.ask("POST", "/v1/publishers", BOOTSTRAP,
                        {"slug": f"bench-{number}", "display_name": f"Bench {number}"})
        self.ask("PUT", "/v1/pipelines/nightly", made["tokens"]["admin"]["token"],
                 {"display_name": "Nightly"})
        return made["tokens"]["runner"]["token"]

    def load(self, publishers, clients, seconds):
        watched = {"server": self.process.pid}
        if self.cluster:
            watched["postgres"] = self.cluster.pid
        plan = {"address": self.url.removeprefix("http://"), "clients": clients, "seconds": seconds,
                "tokens": self.tokens[:publishers], "pipeline": "nightly", "watched": watched}
        done = subprocess.run([RELEASE / "examples" / "load"], input=json.dumps(plan),
                              capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the load failed: {done.stderr}")
        return {row["phase"]: row for row in map(json.loads, done.stdout.splitlines())}

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


def literal(value):
    """A value as SQL text without a colon, which pgbench would take for a variable."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace("'", "''").replace(":", "\\x3a")
    return f"E'{text}'"


def insert(url, table, rows, own):
    """An INSERT like the last row of a table, several times; `own` gives the columns that differ."""
    row = json.loads(Cluster.sql(url, f"SELECT row_to_json(t) FROM {table} t LIMIT 1"))
    columns = ", ".join(f'"{name}"' for name in row)
    values = ", ".join(
        "(" + ", ".join(own.get(name, literal(value)).replace("NUMBER", str(at)) for name, value in row.items()) + ")"
        for at in range(rows))
    return f"INSERT INTO {table} ({columns}) VALUES {values}"


def script(url, rows):
    """What the lane does for so many new runs of one publisher that nobody listens to."""
    fresh = "('019a0000-0000-7000-8000-' || to_hex(:first::bigint + NUMBER))::uuid"
    owner, pipeline = Cluster.sql(url, "SELECT publisher_id, live_slug FROM pipelines LIMIT 1").split("|")
    runs = insert(url, "runs", rows, {"id": fresh})
    timeline = insert(url, "run_timeline", rows, {"run_id": fresh, "seq": "1"})
    events = insert(url, "events", rows, {"id": fresh})
    return ";\n".join([
        "SELECT nextval('bench_numbers') AS first \\gset\nBEGIN",
        f"SELECT * FROM pipelines WHERE publisher_id = '{owner}' AND live_slug = '{pipeline}' "
        "ORDER BY publisher_id, id FOR KEY SHARE",
        f"{runs} ON CONFLICT (publisher_id, pipeline_id, external_id) DO NOTHING",
        timeline,
        "SELECT publisher_id, id, event_types, pipelines FROM webhook_endpoints "
        f"WHERE publisher_id = '{owner}' AND enabled AND deleted_at IS NULL",
        events,
        "COMMIT",
    ]) + ";\n"


def pgbench(url, file, clients, seconds, rows):
    done = subprocess.run(["pgbench", "-n", "-M", "prepared", "-c", str(clients), "-j", "1", "-T", str(seconds),
                           "-f", file, url], capture_output=True, text=True)
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    if done.returncode or not found or "ERROR" in done.stderr:
        sys.exit(f"pgbench failed ({done.returncode}): {done.stdout}{done.stderr}")
    return float(found.group(1)) * rows


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=4)
    arguments.add_argument("--clients", type=int, default=64)
    arguments.add_argument("--publishers", type=int, default=100)
    chosen = arguments.parse_args()
    rounds, started = {}, []
    cluster = Cluster()
    try:
        with tempfile.TemporaryDirectory() as directory:
            def server(name, publishers, batch=256, postgres=False):
                own = pathlib.Path(directory) / name
                own.mkdir()
                url = cluster.database(f"bench_{name}") if postgres else None
                made = Server(str(own), publishers, cluster if postgres else None, url, batch)
                started.append(made)
                return made, url
            many = chosen.publishers
            sqlite, _ = server("sqlite", many)
            sqlite_one, _ = server("sqlite_one", 1, batch=1)
            postgres, grown = server("postgres", many, postgres=True)
            postgres_one, url = server("postgres_one", 1, batch=1, postgres=True)
            # A moment of load for everybody: warm caches, and rows for pgbench to copy.
            for one in started:
                one.load(1, chosen.clients, 1)
            # What autovacuum does within its first minute: until then the foreign keys' checks keep
            # plans that were made for empty tables.
            for database in (grown, url):
                cluster.sql(database, "ANALYZE")
            bench = cluster.database("bench_bare TEMPLATE template0").split(" ")[0]
            dump = subprocess.run(["pg_dump", "--no-owner", url], stdout=subprocess.PIPE, check=True)
            subprocess.run(["psql", "-qX", bench], input=dump.stdout, stdout=subprocess.DEVNULL, check=True)
            cluster.sql(bench, "ANALYZE")
            cluster.sql(bench, f"CREATE SEQUENCE bench_numbers START {1 << 44} INCREMENT {BATCH} CACHE 100")
            files = {}
            for rows in (1, BATCH):
                files[rows] = pathlib.Path(directory) / f"{rows}.sql"
                files[rows].write_text(script(bench, rows))
            loads = {
                "SQLite, 1 publisher": lambda s: sqlite.load(1, chosen.clients, s),
                f"SQLite, {many} publishers": lambda s: sqlite.load(many, chosen.clients, s),
                "SQLite, one a commit": lambda s: sqlite_one.load(1, chosen.clients, s),
                "PostgreSQL, 1 publisher": lambda s: postgres.load(1, chosen.clients, s),
                f"PostgreSQL, {many} publishers": lambda s: postgres.load(many, chosen.clients, s),
                "PostgreSQL, one a commit": lambda s: postgres_one.load(1, chosen.clients, s),
            }
            bare = {
                f"pgbench, {BATCH} runs a transaction, 1 connection": (1, BATCH),
                f"pgbench, {BATCH} runs a transaction, 4 connections": (4, BATCH),
                f"pgbench, 1 run a transaction, {chosen.clients} connections": (chosen.clients, 1),
            }
            for number in range(chosen.rounds):
                print(f"round {number + 1} of {chosen.rounds}", file=sys.stderr)
                for name, run in loads.items():
                    rounds.setdefault(name, []).append(run(chosen.seconds))
                for name, (clients, rows) in bare.items():
                    speed = pgbench(bench, files[rows], clients, chosen.seconds, rows)
                    rounds.setdefault(name, []).append({"create": {"per_s": speed}})
            for one in started:
                one.stop()
            started.clear()
    finally:
        for one in started:
            one.stop()
        cluster.stop()
    report(rounds, chosen)


def report(rounds, chosen):
    print(f"medians of {chosen.rounds} interleaved rounds of {chosen.seconds} s, {chosen.clients} clients")
    print(f"{'':50}{'':10}{'a second':>10}{'p50 ms':>9}{'p99 ms':>9}{'server µs':>11}{'PostgreSQL µs':>15}")
    medians = {}
    for name, all_rounds in rounds.items():
        for phase in PHASES:
            rows = [one[phase] for one in all_rounds if phase in one]
            if not rows:
                continue
            def median(pick):
                values = [value for value in map(pick, rows) if value is not None]
                return statistics.median(values) if values else None
            row = {key: median(lambda one, key=key: one.get(key)) for key in ("per_s", "p50_ms", "p99_ms")}
            for whose in ("server", "postgres"):
                row[whose] = median(lambda one, whose=whose: one.get("cpu_us", {}).get(whose))
            medians.setdefault(name, {})[phase] = row
            shown = lambda value, digits: "" if value is None else f"{value:.{digits}f}"
            print(f"{name:50}{phase:10}{row['per_s']:10.0f}{shown(row['p50_ms'], 1):>9}{shown(row['p99_ms'], 1):>9}"
                  f"{shown(row['server'], 0):>11}{shown(row['postgres'], 0):>15}")
    for name, batched in medians.items():
        if name.startswith("pgbench"):
            for ours in (name for name in medians if name.startswith("PostgreSQL")):
                part = medians[ours]["create"]["per_s"] / batched["create"]["per_s"]
                print(f"{ours}: {part:.2f} of {name}")
    out = ROOT / "target" / "bench-runs.json"
    out.write_text(json.dumps({"medians": medians, "rounds": rounds}, indent=2))
    print(f"all rounds: {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
