#!/usr/bin/env python3
"""Writes the vectors of signatures by a pair of keys to standard output.

    python3 docs/vectors/generate_ed25519.py > docs/vectors/ed25519.json

Needs the package `cryptography`: an implementation of Ed25519 that shares nothing with the
server's. Ed25519 leaves no choice (RFC 8032), so both must find the same bytes.
"""

import base64
import hashlib
import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

AT = 1614265330
EVENT_ID = "evt_01jd7z3k8efxr9m2q5v0w6ytbn"
BODY = b'{"id":"evt_01jd7z3k8efxr9m2q5v0w6ytbn","type":"order.paid","data":{"order":"\xc3\x84-1"}}'


def b64(data):
    return base64.b64encode(data).decode()


def case(name, body):
    seed = hashlib.sha256(name.encode()).digest()
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    signature = key.sign(f"{EVENT_ID}.{AT}.".encode() + body)
    return {
        "name": name,
        "private_key": "whsk_" + b64(seed),
        "public_keys": ["whpk_" + b64(public)],
        "headers": {
            "webhook-id": EVENT_ID,
            "webhook-timestamp": str(AT),
            "webhook-signature": "v1a," + b64(signature),
        },
        "body_base64": b64(body),
        "now": AT,
    }


cases = [case("valid", BODY), case("empty body", b""), case("long body", BODY * 100)]
print(json.dumps({"about": "Made by generate_ed25519.py.", "cases": cases}, indent=2))
