"""A long run against receivers that come and go: an nginx that is reloaded every few seconds, closes kept
connections as it likes, and limits how much it takes. One endpoint speaks HTTP/2 over TLS, one HTTP/1.1.

Every event must arrive, and every recorded attempt must stand in nginx's log: an attempt that the receiver never
processed must not be counted. Prints a line for each store, and exits with 1 where one of the two does not hold.
"""

import argparse
import collections
import json
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from webhooks import Cluster, Server, is_postgres, request

# Events published at a time, and the longest wait between two times, seconds.
BURST, PAUSE = 40, 3
# How long nginx runs between two reloads, seconds.
RELOAD = (2, 9)
# What nginx takes: deliveries a second, and how many more at once.
RATE, MORE = 60, 20

NGINX = """
daemon off; pid {home}/pid; error_log {home}/error; worker_processes 2;
events {{ worker_connections 512; }}
http {{
  access_log off;
  log_format tries '$server_port $http_webhook_id $http_x_stationmaster_attempt $status';
  limit_req_zone $server_port zone=taken:1m rate={rate}r/s;
  limit_req_status 429;
  map $status $again {{ 429 1; default ""; }}
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  server {{ listen 127.0.0.1:{taker}; return 204; }}
  server {{
    listen 127.0.0.1:{tls} ssl http2; listen 127.0.0.1:{plain};
    ssl_certificate {home}/cert; ssl_certificate_key {home}/key;
    keepalive_requests 50; keepalive_timeout 2s;
    access_log {home}/tries tries;
    location / {{
      limit_req zone=taken burst={more} nodelay;
      add_header Retry-After $again always;
      proxy_pass http://127.0.0.1:{taker};
    }}
  }}
}}
"""


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def certify(home):
    """An authority's certificate `ca`, and one of localhost: `cert` and `key`. Nobody trusts one that is both."""
    (home / "san").write_text("subjectAltName=DNS:localhost\n")
    new = ["-newkey", "rsa:2048", "-nodes"]
    for words in (["req", "-x509", *new, "-days", "2", "-subj", "/CN=soak", "-keyout", "ca-key", "-out", "ca"],
                  ["req", *new, "-subj", "/CN=localhost", "-keyout", "key", "-out", "request"],
                  ["x509", "-req", "-in", "request", "-CA", "ca", "-CAkey", "ca-key", "-CAcreateserial", "-days", "2",
                   "-extfile", "san", "-out", "cert"]):
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=home)


class Nginx:
    """The receiver, and what it logged."""

    def __init__(self, home):
        self.home = home
        certify(home)
        self.tls, self.plain, taker = free_ports(3)
        text = NGINX.format(home=home, tls=self.tls, plain=self.plain, taker=taker, rate=RATE, more=MORE)
        (home / "conf").write_text(text)
        self.process = subprocess.Popen([shutil.which("nginx"), "-e", home / "error", "-p", home, "-c", home / "conf"])
        until = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", self.plain)):
            if time.monotonic() > until:
                sys.exit("nginx did not start: " + (home / "error").read_text())
            time.sleep(0.05)

    def reload(self):
        self.process.send_signal(signal.SIGHUP)

    def tries(self):
        """(port, event, number of the attempt) → the status that it was answered with."""
        lines = (line.split() for line in (self.home / "tries").read_text().splitlines())
        return {(int(port), event, int(number)): int(status) for port, event, number, status in lines}

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def everything(server, token, path):
    cursor = ""
    while cursor is not None:
        page = json.loads(request("GET", f"{server.url}{path}limit=200{cursor and '&cursor=' + cursor}", token))
        yield from page["items"]
        cursor = page["next_cursor"]


def soak(store, minutes, home, cluster):
    (home / "nginx").mkdir()
    nginx = Nginx(home / "nginx")
    (home / "stores").mkdir()
    server = Server(store, home / "stores", cluster, SSL_CERT_FILE=str(home / "nginx" / "ca"))
    ports = {nginx.tls: f"https://localhost:{nginx.tls}/hook", nginx.plain: f"http://127.0.0.1:{nginx.plain}/hook"}
    token, published, reloads = server.publisher(ports.values()), 0, 0
    end, reload = time.monotonic() + 60 * minutes, time.monotonic() + RELOAD[0]
    while time.monotonic() < end:
        events = [{"type": "soak.event", "data": {"number": published + at}} for at in range(BURST)]
        request("POST", server.url + "/v1/events", token, {"events": events})
        published += BURST
        time.sleep(random.uniform(0, PAUSE))
        if time.monotonic() > reload:
            nginx.reload()
            reloads, reload = reloads + 1, time.monotonic() + random.uniform(*RELOAD)
    patience = time.monotonic() + 900
    while json.loads(request("GET", server.url + "/v1/deliveries?status=pending&limit=1", token))["items"]:
        if time.monotonic() > patience:
            break
        time.sleep(1)
    time.sleep(1)
    hooks = {hook["id"]: port for hook in everything(server, token, "/v1/webhook-endpoints?")
             for port, url in ports.items() if hook["url"] == url}
    logged, counts, lost, unseen, attempts = nginx.tries(), collections.Counter(), 0, 0, 0
    for delivery in everything(server, token, "/v1/deliveries?"):
        counts[delivery["status"]] += 1
        port, event = hooks[delivery["endpoint_id"]], delivery["event_id"]
        numbers = range(1, delivery["attempt_count"] + 1)
        attempts += len(numbers)
        unseen += sum((port, event, number) not in logged for number in numbers)
        lost += all(logged.get((port, event, number)) != 204 for number in numbers)
    server.stop()
    nginx.stop()
    refused = sum(status == 429 for status in logged.values())
    print(f"{store}: {minutes} min, {published} events, {counts.total()} deliveries {dict(counts)}, {reloads} reloads, "
          f"{attempts} attempts, {refused} refused, {lost} lost, {unseen} counted that nginx never processed", flush=True)
    return counts.total() == 2 * published and counts["succeeded"] == counts.total() and not lost and not unseen


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--stores", default="sqlite,postgres", help="each may be store@binary")
    chosen = parser.parse_args()
    holds = True
    for store in chosen.stores.split(","):
        cluster = Cluster() if is_postgres(store) else None
        with tempfile.TemporaryDirectory() as home:
            holds &= soak(store, chosen.minutes, pathlib.Path(home), cluster)
        if cluster:
            cluster.stop()
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
