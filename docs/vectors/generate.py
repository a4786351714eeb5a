#!/usr/bin/env python3
"""Writes the signature vectors to standard output, from the Python standard library alone.

    python3 docs/vectors/generate.py > docs/vectors/signatures.json

This is a second implementation of both signatures, written from their definitions and not
from the server's code. The two check each other.

    python3 docs/vectors/generate.py --at SECONDS

makes the same cases around another moment: published libraries judge age by the system's
clock, so they need cases that were signed just now.
"""

import base64
import hashlib
import hmac
import json
import sys

TOLERANCE_S = 300
# The moment of the published vector, from the documentation of Standard Webhooks.
PUBLISHED_AT = 1614265330

PUBLISHED_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PUBLISHED_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
PUBLISHED_BODY = b'{"test": 2432232314}'
PUBLISHED_SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def secret(name, length=48):
    """A secret that is reproducible, and long enough to pass the 64-byte block of SHA-256."""
    key = hashlib.sha512(name.encode()).digest()[:length]
    return "whsec_" + base64.b64encode(key).decode()


CURRENT = secret("current")
NEXT = secret("next")
SHORT = secret("short", 24)
STRANGER = secret("stranger")

EVENT_ID = "evt_01jd7z3k8efxr9m2q5v0w6ytbn"
EVENT = (
    b'{"id":"evt_01jd7z3k8efxr9m2q5v0w6ytbn","type":"run.succeeded",'
    b'"timestamp":"2021-02-25T15:02:10.000Z","data":{"run":{"id":"run_01jd7z3k8dem4rzsw3kgm2w8pa"}}}'
)


def hex_signature(key, at, body):
    """Of X-Stationmaster-Signature: the key is the secret's whole text, `whsec_` included."""
    return hmac.new(key.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()


def base64_signature(key, event_id, at, body):
    """Of Standard Webhooks: the key is what the text after `whsec_` decodes to."""
    decoded = base64.b64decode(key.removeprefix("whsec_"))
    signed = f"{event_id}.{at}.".encode() + body
    return base64.b64encode(hmac.new(decoded, signed, hashlib.sha256).digest()).decode()


def stationmaster(keys, at, body):
    """The header of the first scheme, with one signature for each live secret."""
    signatures = ",".join("v1=" + hex_signature(key, at, body) for key in keys)
    return {"X-Stationmaster-Signature": f"t={at},{signatures}"}


def standard(keys, at, body, event_id=EVENT_ID):
    """The three headers of the second scheme."""
    signatures = " ".join("v1," + base64_signature(key, event_id, at, body) for key in keys)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(at),
        "webhook-signature": signatures,
    }


def both(keys, at, body, event_id=EVENT_ID):
    return stationmaster(keys, at, body) | standard(keys, at, body, event_id)


def subcommand_secret(key):
    """What signs calls of subcommands: derived, so that no call is genuine as a webhook."""
    derived = hmac.new(key.encode(), b"stationmaster.subcommand.v1", hashlib.sha256).digest()
    return "whsec_" + base64.b64encode(derived).decode()


def call_cases(now):
    """The same for calls of subcommands: `secret` is the webhooks' own, to be derived from."""
    derived = both([subcommand_secret(CURRENT)], now, EVENT, "call_01jd7z3k8efxr9m2q5v0w6ytbn")
    no_library = {library: "it derives nothing" for library in ("stripe", "standardwebhooks")}
    yield "call of a subcommand", CURRENT, derived, EVENT, None, no_library
    yield "call signed as a webhook", CURRENT, both([CURRENT], now, EVENT), EVENT, "no_match", no_library


def cases(now):
    """Yields (name, secret, headers, body, refusal or None, published libraries to leave out)."""
    good = both([CURRENT], now, EVENT)
    signature = good["X-Stationmaster-Signature"]
    hexed = signature.split("v1=")[1]
    based = good["webhook-signature"].removeprefix("v1,")
    not_json = {"stripe": "it parses the body too, and this one is no JSON"}
    no_future = {"stripe": "it refuses old deliveries only, not those from the future"}

    # Genuine deliveries.
    published = both([PUBLISHED_SECRET], now, PUBLISHED_BODY, PUBLISHED_ID)
    if now == PUBLISHED_AT:
        assert published["webhook-signature"] == PUBLISHED_SIGNATURE, "the published vector differs"
    yield "published vector", PUBLISHED_SECRET, published, PUBLISHED_BODY, None, {}
    yield "valid", CURRENT, good, EVENT, None, {}
    yield "valid, first scheme alone", CURRENT, stationmaster([CURRENT], now, EVENT), EVENT, None, {}
    yield "valid, Standard Webhooks alone", CURRENT, standard([CURRENT], now, EVENT), EVENT, None, {}
    yield "valid, shortest secret", SHORT, both([SHORT], now, EVENT), EVENT, None, {}
    rotating = both([NEXT, CURRENT], now, EVENT)
    yield "rotation, the new secret", NEXT, rotating, EVENT, None, {}
    yield "rotation, the old secret", CURRENT, rotating, EVENT, None, {}
    yield "empty body", CURRENT, both([CURRENT], now, b""), b"", None, not_json | {
        "standardwebhooks": "it parses the body too, and this one is no JSON"
    }
    text = '{"name":"Zürich – 東京 🚉","note":"a\\nb"}'.encode()
    yield "UTF-8 body", CURRENT, both([CURRENT], now, text), text, None, {}
    spaced = b'{ "b" : 1.0,\r\n  "a" : [ ] }\n'
    yield "white space kept", CURRENT, both([CURRENT], now, spaced), spaced, None, {}
    binary = bytes(range(256))
    yield "any bytes", CURRENT, both([CURRENT], now, binary), binary, None, not_json | {
        "standardwebhooks": "it decodes the body as text, and this one is none"
    }
    lower = {name.lower(): value for name, value in good.items()}
    yield "header names in lower case", CURRENT, lower, EVENT, None, {}
    at_edge = both([CURRENT], now - TOLERANCE_S, EVENT)
    yield "as old as tolerated", CURRENT, at_edge, EVENT, None, {
        "stripe": "a second passes until it runs",
        "standardwebhooks": "a second passes until it runs",
    }
    newer = {
        "X-Stationmaster-Signature": f"{signature},v2=ffff",
        "webhook-id": EVENT_ID,
        "webhook-timestamp": str(now),
        "webhook-signature": f"v2,AAAA v1a,AAAA v1,{based}",
    }
    yield "versions to come are passed over", CURRENT, newer, EVENT, None, {}

    # Forged, damaged and replayed ones.
    changed = EVENT.replace(b"succeeded", b"succeedee")
    yield "changed byte", CURRENT, good, changed, "no_match", {}
    yield "added newline", CURRENT, good, EVENT + b"\n", "no_match", {}
    yield "wrong secret", STRANGER, good, EVENT, "no_match", {}
    later = good | {
        "X-Stationmaster-Signature": signature.replace(f"t={now}", f"t={now + 1}"),
        "webhook-timestamp": str(now + 1),
    }
    yield "changed timestamp", CURRENT, later, EVENT, "no_match", {}
    yield "changed id", CURRENT, standard([CURRENT], now, EVENT) | {
        "webhook-id": PUBLISHED_ID
    }, EVENT, "no_match", {}
    mixed = stationmaster([CURRENT], now, EVENT) | standard([STRANGER], now, EVENT)
    yield "second scheme forged", CURRENT, mixed, EVENT, "no_match", {
        "stripe": "it sees the first scheme only, which is genuine"
    }
    mixed = stationmaster([STRANGER], now, EVENT) | standard([CURRENT], now, EVENT)
    yield "first scheme forged", CURRENT, mixed, EVENT, "no_match", {
        "standardwebhooks": "it sees the second scheme only, which is genuine"
    }
    swapped = both([CURRENT], now, EVENT)
    decoded = base64.b64decode(CURRENT.removeprefix("whsec_"))
    swapped["X-Stationmaster-Signature"] = (
        f"t={now},v1=" + hmac.new(decoded, b"%d." % now + EVENT, hashlib.sha256).hexdigest()
    )
    yield "first scheme with the decoded key", CURRENT, swapped, EVENT, "no_match", {
        "standardwebhooks": "it sees the second scheme only, which is genuine"
    }
    stale = both([CURRENT], now - TOLERANCE_S - 1, EVENT)
    yield "stale", CURRENT, stale, EVENT, "too_old", {}
    future = both([CURRENT], now + TOLERANCE_S + 1, EVENT)
    yield "from the future", CURRENT, future, EVENT, "too_new", no_future | {
        "standardwebhooks": "a second passes until it runs"
    }

    # Headers that no server of ours writes.
    yield "no headers at all", CURRENT, {}, EVENT, "no_signature", {}
    first_scheme = {
        "empty header": "",
        "no timestamp": f"v1={hexed}",
        "no signature": f"t={now}",
        "timestamp is a word": f"t=now,v1={hexed}",
        "timestamp is negative": f"t=-{now},v1={hexed}",
        "timestamp is too long": f"t={now}0000000000000,v1={hexed}",
        "two timestamps": f"t={now},t={now + 1},v1={hexed}",
    }
    for name, value in first_scheme.items():
        library = {}
        if name == "two timestamps":
            library = {"stripe": "it takes one of the two"}
        yield name, CURRENT, {"X-Stationmaster-Signature": value}, EVENT, "malformed", library
    cut = f"t={now},v1={hexed[:-2]}"
    yield "signature cut short", CURRENT, {"X-Stationmaster-Signature": cut}, EVENT, "no_match", {}
    alone = standard([CURRENT], now, EVENT)
    no_id = {name: value for name, value in alone.items() if name != "webhook-id"}
    yield "no webhook-id", CURRENT, no_id, EVENT, "malformed", {}
    # Signed for one identifier and time, and read as another one: with the dots in another place.
    moved = standard([CURRENT], now, str(now).encode() + b"." + EVENT, "call_1")
    yield "webhook-id with a dot", CURRENT, moved | {
        "webhook-id": f"call_1.{now}"
    }, EVENT, "malformed", {"standardwebhooks": "it takes any identifier"}
    yield "call of a subcommand as a webhook", CURRENT, both(
        [subcommand_secret(CURRENT)], now, EVENT
    ), EVENT, "no_match", {}
    for name, short in (("empty", ""), ("of 23 bytes", base64.b64encode(b"k" * 23).decode())):
        weak = "whsec_" + short
        yield f"secret {name}", weak, both([weak], now, EVENT), EVENT, "bad_secret", {
            "stripe": "it takes any text as a key",
            "standardwebhooks": "it takes keys of any length",
        }
    yield "webhook-timestamp is a word", CURRENT, alone | {
        "webhook-timestamp": "now"
    }, EVENT, "malformed", {}
    yield "webhook-signature without version", CURRENT, alone | {
        "webhook-signature": based
    }, EVENT, "malformed", {}
    yield "webhook-signature of an unknown version", CURRENT, alone | {
        "webhook-signature": f"v2,{based}"
    }, EVENT, "malformed", {}
    yield "webhook-signature is no base64", CURRENT, alone | {
        "webhook-signature": "v1,***"
    }, EVENT, "no_match", {}
    yield "secret without its prefix", CURRENT.removeprefix("whsec_"), good, EVENT, "bad_secret", {
        "stripe": "it takes any text as a key: no_match",
        "standardwebhooks": "it takes a secret with or without the prefix",
    }


def main():
    now = int(sys.argv[2]) if sys.argv[1:2] == ["--at"] else PUBLISHED_AT
    document = {
        "about": "Signature vectors, made by generate.py. `refused` null: the delivery is genuine.",
        "tolerance_seconds": TOLERANCE_S,
        "cases": [
            {
                "name": name,
                "secret": key,
                "headers": headers,
                "body_base64": base64.b64encode(body).decode(),
                "now": now,
                "refused": refused,
                "not_for": not_for,
                "subcommand": subcommand,
            }
            for subcommand, made in ((False, cases(now)), (True, call_cases(now)))
            for name, key, headers, body, refused, not_for in made
        ],
    }
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
