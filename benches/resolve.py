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
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from authenticated_read import BOOTSTRAP, interleaved, load, post, report, start

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
    with tempfile.TemporaryDirectory() as directory:
        server, ceiling = start(directory)
        try:
            began = time.monotonic()
            tokens = make_tokens(server.url, BOOTSTRAP, chosen.trains)
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
            rounds = interleaved(loads, 5, chosen)
        finally:
            server.stop()
            ceiling.stop()
    report("resolve", rounds, chosen, f"{chosen.trains} trains")


if __name__ == "__main__":
    main()
