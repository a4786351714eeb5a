"""Resolving a train token beside the constant-JSON ceiling, in interleaved rounds.

Four loads, the same number of connections from one wrk thread:
  ceiling   the same HTTP stack answering one constant body
  hot       POST /v1/resolve with one train's token
  many      the same with the tokens of many trains in turn
  forward   GET /v1/forward-auth/train with one train's token

Each publisher has a hundred trains, which lend three accounts. For each load: requests/s, p50 and
p99 latency, and the server's own CPU time (user and system) a request. Medians over the rounds,
and ratios to the ceiling of the same run.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from authenticated_read import CONNECTIONS, ROOT, Server, load, post

TRAINS_EACH = 100
ACCOUNTS_EACH = 3

LUA = """
local tokens = {}
for line in io.lines("%s") do tokens[#tokens + 1] = "Bearer " .. line end
local at = 0
local body = '{"model": "claude-opus-4-1"}'
request = function()
  at = at %% #tokens + 1
  return wrk.format("POST", nil, { ["Authorization"] = tokens[at], ["Content-Type"] = "application/json" }, body)
end
"""


def send(method, url, token, body):
    request = urllib.request.Request(
        url, json.dumps(body).encode(), method=method,
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        answer.read()


def make_tokens(base, bootstrap, trains):
    """The tokens of so many trains, one each."""
    def publisher(number):
        made = post(f"{base}/v1/publishers", bootstrap,
                    {"slug": f"bench-{number}", "display_name": f"Bench {number}"})
        admin = made["tokens"]["admin"]["token"]
        send("PATCH", f"{base}/v1/publishers/{made['publisher']['id']}", bootstrap,
             {"quotas": {"train_tokens": TRAINS_EACH}})
        accounts = [post(f"{base}/v1/accounts", admin,
                         {"name": f"account {at}", "provider": "anthropic", "credential_type": "api_key",
                          "api_key": f"sk-ant-{number:08}-{at:08}" + "x" * 80})["id"]
                    for at in range(ACCOUNTS_EACH)]
        places = [{"account_id": account, "priority": at} for at, account in enumerate(accounts)]
        tokens = []
        for at in range(TRAINS_EACH):
            post(f"{base}/v1/trains", admin, {"slug": f"train-{at}"})
            send("PUT", f"{base}/v1/trains/train-{at}/accounts", admin, places)
            tokens.append(post(f"{base}/v1/trains/train-{at}/tokens", admin, {})["token"])
        return tokens
    with ThreadPoolExecutor(8) as pool:
        all_of_them = pool.map(publisher, range(-(-trains // TRAINS_EACH)))
        return [token for some in all_of_them for token in some][:trains]


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=5)
    arguments.add_argument("--trains", type=int, default=10_000)
    chosen = arguments.parse_args()
    release = ROOT / "target" / "release"
    with tempfile.TemporaryDirectory() as directory:
        bootstrap = "bench-bootstrap-token-" + "x" * 20
        server = Server(
            [release / "stationmaster", "serve"],
            STATIONMASTER_LISTEN="127.0.0.1:0", STATIONMASTER_DATA_DIR=directory,
            STATIONMASTER_BOOTSTRAP_TOKEN=bootstrap, STATIONMASTER_METRICS_LISTEN="",
            STATIONMASTER_RATE_LIMIT_PER_SECOND="0", STATIONMASTER_BOOTSTRAP_RATE_PER_MINUTE="0",
            STATIONMASTER_SQLITE_SYNCHRONOUS="normal", STATIONMASTER_LOG="warn")
        ceiling = Server([release / "examples" / "ceiling"])
        try:
            began = time.monotonic()
            tokens = make_tokens(server.url, bootstrap, chosen.trains)
            print(f"{len(tokens)} trains made in {time.monotonic() - began:.0f} s", file=sys.stderr)
            scripts = {}
            for name, some in (("one", tokens[:1]), ("many", tokens)):
                listing = pathlib.Path(directory) / f"{name}.tokens"
                listing.write_text("\n".join(some) + "\n")
                scripts[name] = pathlib.Path(directory) / f"{name}.lua"
                scripts[name].write_text(LUA % listing)
            loads = {
                "ceiling": lambda s: load(ceiling, "/", s),
                "hot": lambda s: load(server, "/v1/resolve", s, script=scripts["one"]),
                "many": lambda s: load(server, "/v1/resolve", s, script=scripts["many"]),
                "forward": lambda s: load(server, "/v1/forward-auth/train", s, token=tokens[0]),
            }
            for run in loads.values():
                run(1)
            # Every token once before anything counts.
            load(server, "/v1/resolve", 5, script=scripts["many"])
            rounds = {name: [] for name in loads}
            for _ in range(chosen.rounds):
                for name, run in loads.items():
                    rounds[name].append(run(chosen.seconds))
        finally:
            server.stop()
            ceiling.stop()
    report(rounds, chosen)


def report(rounds, chosen):
    median = {name: {key: statistics.median(one[key] for one in many) for key in many[0]}
              for name, many in rounds.items()}
    top = median["ceiling"]
    print(f"medians of {chosen.rounds} interleaved rounds of {chosen.seconds} s, "
          f"{CONNECTIONS} connections, {chosen.trains} trains")
    print(f"{'':10}{'requests/s':>12}{'of ceiling':>12}{'p50 ms':>9}{'p99 ms':>9}{'CPU µs':>9}")
    for name, row in median.items():
        print(f"{name:10}{row['requests_per_s']:12.0f}{row['requests_per_s'] / top['requests_per_s']:12.2f}"
              f"{row['p50_ms']:9.2f}{row['p99_ms']:9.2f}{row['cpu_us']:9.1f}")
    out = ROOT / "target" / "bench-resolve.json"
    out.write_text(json.dumps({"median": median, "rounds": rounds}, indent=2))
    print(f"all rounds: {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
