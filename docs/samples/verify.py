#!/usr/bin/env python3
"""Verifies a Stationmaster delivery with Python's standard library alone. Copy what you need.

    from verify import verify_delivery
    verify_delivery(secret, request.headers, raw_body)  # raises Refused

Give it the raw bytes of the body, before any JSON parser has touched them. Answer 4xx when it
raises, and store `webhook-id` to detect repeats: retries and replays have the same id.
"""

import base64
import hashlib
import hmac
import json
import re
import sys
import time

TOLERANCE_S = 300


class Refused(Exception):
    """A delivery was refused: no_signature, malformed, too_old, too_new, no_match or bad_secret."""


def verify_delivery(secret, headers, body, now=None):
    """Verifies every signature scheme that the delivery carries; at least one must be there."""
    now = int(time.time()) if now is None else now
    headers = {name.lower(): value for name, value in headers.items()}
    first = "x-stationmaster-signature" in headers
    second = any(name.startswith("webhook-") for name in headers)
    if not first and not second:
        raise Refused("no_signature")
    if first:
        verify_stationmaster(secret, headers, body, now)
    if second:
        verify_standard_webhooks(secret, headers, body, now)


def verify_stationmaster(secret, headers, body, now):
    """`X-Stationmaster-Signature: t=<unix>,v1=<hex>`; the key is the secret's whole text."""
    check_secret(secret)
    parts = headers.get("x-stationmaster-signature", "").split(",")
    times = [part[2:] for part in parts if part.startswith("t=")]
    signatures = [part[3:] for part in parts if part.startswith("v1=")]
    if len(times) != 1 or not signatures:
        raise Refused("malformed")
    check_age(times[0], now)
    signed = times[0].encode() + b"." + body
    check_any(signatures, hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest())


def verify_standard_webhooks(secret, headers, body, now):
    """Standard Webhooks 1.0.0; the key is what the text after `whsec_` decodes to."""
    check_secret(secret)
    event_id = headers.get("webhook-id")
    sent_at = headers.get("webhook-timestamp")
    parts = headers.get("webhook-signature", "").split(" ")
    signatures = [part[3:] for part in parts if part.startswith("v1,")]
    # The signed parts are joined by dots, so an id that contains a dot is refused.
    if not event_id or "." in event_id or not sent_at or not signatures:
        raise Refused("malformed")
    check_age(sent_at, now)
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{event_id}.{sent_at}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    check_any(signatures, base64.b64encode(digest).decode())


def check_any(signatures, expected):
    """One match is enough: while a secret rotates, the old and the new secret both sign."""
    wanted = expected.encode()
    if not any(hmac.compare_digest(signature.encode(), wanted) for signature in signatures):
        raise Refused("no_match")


def check_age(sent_at, now):
    if not re.fullmatch(r"[0-9]{1,12}", sent_at):
        raise Refused("malformed")
    if int(sent_at) < now - TOLERANCE_S:
        raise Refused("too_old")
    if int(sent_at) > now + TOLERANCE_S:
        raise Refused("too_new")


def subcommand_secret(secret):
    """The secret that signs subcommand calls; use it to verify them."""
    derived = hmac.new(secret.encode(), b"stationmaster.subcommand.v1", hashlib.sha256).digest()
    return "whsec_" + base64.b64encode(derived).decode()


def check_secret(secret):
    """A secret has at least 24 bytes, which are 32 characters of base64."""
    if not re.fullmatch(r"whsec_[A-Za-z0-9+/]{32,}={0,2}", secret):
        raise Refused("bad_secret")


def main():
    """For tests: reads {"secret", "headers", "body_base64", "now", "subcommand"} from standard input."""
    case = json.load(sys.stdin)
    body = base64.b64decode(case["body_base64"])
    secret = subcommand_secret(case["secret"]) if case.get("subcommand") else case["secret"]
    try:
        verify_delivery(secret, case["headers"], body, case["now"])
    except Refused as reason:
        print(f"refused: {reason}")
        return 1
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
