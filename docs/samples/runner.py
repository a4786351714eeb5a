#!/usr/bin/env python3
"""A complete Stationmaster runner with Python's standard library alone. Copy it, and put your own
work into `work`.

    STATIONMASTER_URL=https://… STATIONMASTER_TOKEN=stm_runner_… python3 runner.py

STATIONMASTER_PIPELINES names pipelines, separated by commas. Without it, the runner serves all
pipelines that the token can access. On SIGTERM it releases its run and exits. Any number of
runners may run at once.
"""

import email.utils
import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import datetime

URL = os.environ["STATIONMASTER_URL"].rstrip("/")
TOKEN = os.environ["STATIONMASTER_TOKEN"]
PIPELINES = [name for name in os.environ.get("STATIONMASTER_PIPELINES", "").split(",") if name]
WAIT_S = 20  # how long a claim waits for a run


class TryAgain(Exception):
    """Raised by `work` when another attempt may succeed."""


class Stop(Exception):
    """Raised by `Job.check` when this runner must stop working on the run."""


def work(run, job):
    """Does the work: takes a run, returns its output. Call `job.check()` often. Send `run["attempt"]`
    with everything that you write to other systems, so that they can refuse a late writer."""
    given = run["input"]
    for step in range(given.get("steps", 1)):
        job.progress = {"step": step}
        time.sleep(given.get("seconds", 0))
        job.check()
    if given.get("fault") == "passing":
        raise TryAgain("the disk is full")
    if given.get("fault"):
        raise ValueError(given["fault"])
    return {"steps": given.get("steps", 1)}


def request(path, body, claim=None, key=None, timeout=30):
    """Sends one POST. Returns the answer's status, body and headers; raises OSError without one."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    if claim:
        headers["X-Stationmaster-Claim"] = claim
    if key:
        headers["Idempotency-Key"] = key
    data = json.dumps(body).encode()
    asked = urllib.request.Request(URL + path, data, headers, method="POST")
    try:
        with urllib.request.urlopen(asked, timeout=timeout) as answer:
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as answer:
        return answer.code, json.load(answer), answer.headers


def seconds_between(date_header, expires_at):
    """The length of a lease, computed from the server's clock only."""
    now = email.utils.parsedate_to_datetime(date_header)
    return (datetime.fromisoformat(expires_at.replace("Z", "+00:00")) - now).total_seconds()


class Job:
    """A run that this runner holds. A thread extends its lease."""

    def __init__(self, run, lease_s):
        self.run, self.claim, self.lease_s = run, run["claim"]["token"], lease_s
        self.progress = None
        self.cancelled = self.lost = False
        self.over = threading.Event()
        threading.Thread(target=self.keep, daemon=True).start()

    def keep(self):
        """Sends a heartbeat every third of the lease, so that two can fail before it expires."""
        held_until, told = time.monotonic() + self.lease_s, None
        while not self.over.wait(self.lease_s / 3):
            now = time.monotonic()
            # This progress has been reported; do not send it again.
            news = {"progress": self.progress} if self.progress != told else {}
            try:
                path = f"/v1/runs/{self.run['id']}/heartbeat"
                status, answer, _ = request(path, news, self.claim, timeout=self.lease_s / 3)
            except OSError:
                status, answer = 0, {}
            if status == 200:
                held_until = now + self.lease_s
                told = news.get("progress", told)
                self.cancelled = self.cancelled or answer["cancel_requested"]
            elif answer.get("code") == "claim_lost" or now > held_until:
                self.lost = True
                return

    def check(self):
        if self.cancelled or self.lost or stopping.is_set():
            raise Stop

    def finish(self, verb, body):
        """Reports how the run ended. Repeats until there is an answer or the lease has expired;
        the idempotency key makes repeats harmless."""
        key = f"{verb}-{self.run['id']}-{self.run['attempt']}"
        path = f"/v1/runs/{self.run['id']}/{verb}"
        end = time.monotonic() + self.lease_s
        while True:
            try:
                status, answer, headers = request(path, body, self.claim, key)
            except OSError as error:
                status, answer, headers = 0, {"detail": str(error)}, {}
            if status in (0, 429) or status >= 500:
                if time.monotonic() < end:
                    time.sleep(float(headers.get("Retry-After") or 1))
                    continue
            return status, answer

    def do(self):
        try:
            output = work(self.run, self)
            status, answer = self.finish("complete", {"output": output})
            if status == 422:
                error = {"message": "the output is not as promised", "detail": answer["detail"]}
                status, answer = self.finish("fail", {"error": error})
        except Stop:
            if self.lost:
                return log(self.run, "was lost: somebody else has it, or nobody wants it")
            status, answer = self.finish("release", {})
        except TryAgain as error:
            status, answer = self.fail(error, retryable=True)
        except Exception as error:  # pylint: disable=broad-except
            status, answer = self.fail(error, retryable=False)
        finally:
            self.over.set()
        log(self.run, answer["status"] if status == 200 else answer.get("detail"))

    def fail(self, error, retryable):
        told = {"message": str(error) or type(error).__name__}
        return self.finish("fail", {"error": told, "retryable": retryable})


def log(run, words):
    print(f"{run['id']} (attempt {run['attempt']}): {words}", flush=True)


stopping = threading.Event()
waiting = False


def stop(_signal, _frame):
    stopping.set()
    if waiting:
        # The runner holds no run. Closing the connection of a waiting claim claims none.
        sys.exit(0)


def claim():
    """The next run, or None."""
    global waiting
    wanted = {"max": 1, "wait_seconds": WAIT_S}
    if PIPELINES:
        wanted["pipelines"] = PIPELINES
    try:
        waiting = True
        status, answer, headers = request("/v1/runs/claim", wanted, timeout=WAIT_S + 10)
    except OSError as error:
        status, answer, headers = 0, {"detail": str(error)}, {}
    finally:
        waiting = False
    if status in (401, 403):
        sys.exit(f"the token is not good here: {answer['detail']}")
    if status != 200:
        print(f"no claim: {answer.get('detail')}", file=sys.stderr, flush=True)
        stopping.wait(float(headers.get("Retry-After") or 1))
        return None
    for run in answer["items"]:
        return Job(run, seconds_between(headers["Date"], run["claim"]["expires_at"]))
    return None


def main():
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while not stopping.is_set():
        job = claim()
        if job:
            job.do()


if __name__ == "__main__":
    main()
