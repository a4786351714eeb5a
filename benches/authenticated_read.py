"""The constant-JSON ceiling beside an authenticated read, in interleaved rounds.

Three loads, the same number of connections from one wrk thread:
  ceiling   the same HTTP stack answering one constant body
  hot       GET /v1/publishers/me with one token
  many      the same with many tokens in turn

For each: requests/s, p50 and p99 latency, and the server's own CPU time (user and system) a
request. Medians over the rounds, and ratios to the ceiling of the same run.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONNECTIONS = 32
BOOTSTRAP = "bench-bootstrap-token-" + "x" * 20
TICKS = os.sysconf("SC_CLK_TCK")

LUA = """
local tokens = {}
for line in io.lines("%s") do tokens[#tokens + 1] = "Bearer " .. line end
local at = 0
request = function()
  at = at %% #tokens + 1
  return wrk.format("GET", nil, { ["Authorization"] = tokens[at] })
end
"""


class Server:
    """A child process that prints the address that it listens on."""

    def __init__(self, command, **environment):
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={"PATH": os.environ["PATH"], **environment})
        line = self.process.stdout.readline()
        if "http://" not in line:
            sys.exit(f"{command[0]} did not start")
        self.url = line.split()[-1]

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def stop(self):
        self.process.terminate()
        self.process.wait(40)


def post(url, token, body):
    request = urllib.request.Request(
        url, json.dumps(body).encode(), method="POST",
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def make_tokens(base, bootstrap, count):
    """Two tokens come with each publisher."""
    def one(number):
        made = post(f"{base}/v1/publishers", bootstrap,
                    {"slug": f"bench-{number}", "display_name": f"Bench {number}"})
        return [made["tokens"]["admin"]["token"], made["tokens"]["runner"]["token"]]
    with ThreadPoolExecutor(8) as pool:
        return [token for pair in pool.map(one, range(-(-count // 2))) for token in pair][:count]


def milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def load(server, path, seconds, script=None, token=None):
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
    command += ["-s", script] if script else []
    command += ["-H", f"Authorization: Bearer {token}"] if token else []
    before = server.cpu_seconds()
    out = subprocess.run([*command, server.url + path], capture_output=True, text=True, check=True).stdout
    cpu = server.cpu_seconds() - before
    if "Non-2xx" in out:
        sys.exit(f"some answers were refused:\n{out}")
    requests = int(re.search(r"(\d+) requests in", out).group(1))
    return {
        "requests_per_s": float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)),
        "p50_ms": milliseconds(re.search(r"^\s+50%\s+(\S+)", out, re.M).group(1)),
        "p99_ms": milliseconds(re.search(r"^\s+99%\s+(\S+)", out, re.M).group(1)),
        "cpu_us": cpu / requests * 1e6,
    }


def start(directory):
    """A server on a store of its own, and the ceiling."""
    release = ROOT / "target" / "release"
    server = Server(
        [release / "stationmaster", "serve"],
        STATIONMASTER_LISTEN="127.0.0.1:0", STATIONMASTER_DATA_DIR=directory,
        STATIONMASTER_BOOTSTRAP_TOKEN=BOOTSTRAP, STATIONMASTER_METRICS_LISTEN="",
        STATIONMASTER_RATE_LIMIT_PER_SECOND="0", STATIONMASTER_BOOTSTRAP_RATE_PER_MINUTE="0",
        STATIONMASTER_SQLITE_SYNCHRONOUS="normal", STATIONMASTER_LOG="warn")
    return server, Server([release / "examples" / "ceiling"])


def interleaved(loads, warm, chosen):
    """The rounds of each load, after every token was used once: `many` for `warm` seconds."""
    for run in loads.values():
        run(1)
    loads["many"](warm)
    rounds = {name: [] for name in loads}
    for _ in range(chosen.rounds):
        for name, run in loads.items():
            rounds[name].append(run(chosen.seconds))
    return rounds


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=5)
    arguments.add_argument("--tokens", type=int, default=100_000)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server, ceiling = start(directory)
        try:
            began = time.monotonic()
            tokens = make_tokens(server.url, BOOTSTRAP, chosen.tokens)
            print(f"{len(tokens)} tokens made in {time.monotonic() - began:.0f} s", file=sys.stderr)
            listing = pathlib.Path(directory) / "tokens"
            listing.write_text("\n".join(tokens) + "\n")
            script = pathlib.Path(directory) / "many.lua"
            script.write_text(LUA % listing)
            loads = {
                "ceiling": lambda s: load(ceiling, "/", s),
                "hot": lambda s: load(server, "/v1/publishers/me", s, token=tokens[0]),
                "many": lambda s: load(server, "/v1/publishers/me", s, script=script),
            }
            rounds = interleaved(loads, 15, chosen)
        finally:
            server.stop()
            ceiling.stop()
    report("http", rounds, chosen, f"{chosen.tokens} tokens")


def report(what, rounds, chosen, size):
    """Prints the medians and writes all rounds to target/bench-WHAT.json; `size` says of what."""
    median = {name: {key: statistics.median(one[key] for one in many) for key in many[0]}
              for name, many in rounds.items()}
    top = median["ceiling"]
    print(f"medians of {chosen.rounds} interleaved rounds of {chosen.seconds} s, "
          f"{CONNECTIONS} connections, {size}")
    print(f"{'':10}{'requests/s':>12}{'of ceiling':>12}{'p50 ms':>9}{'p99 ms':>9}{'CPU µs':>9}")
    for name, row in median.items():
        print(f"{name:10}{row['requests_per_s']:12.0f}{row['requests_per_s'] / top['requests_per_s']:12.2f}"
              f"{row['p50_ms']:9.2f}{row['p99_ms']:9.2f}{row['cpu_us']:9.1f}")
    out = ROOT / "target" / f"bench-{what}.json"
    out.write_text(json.dumps({"median": median, "rounds": rounds}, indent=2))
    print(f"all rounds: {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
