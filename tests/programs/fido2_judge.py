"""What the package fido2 says of passkeys: one JSON object a line in, one line out.

{"kind": "register" | "sign_in", ...} is judged: "ok", or "refused: " and the reason.
{"kind": "make", ...} is answered by a registration and a sign-in, encoded by fido2.
"""

import json
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from fido2 import cbor
from fido2.cose import CoseKey
from fido2.server import Fido2Server
from fido2.utils import sha256, websafe_decode, websafe_encode
from fido2.webauthn import (
    AttestationObject,
    AttestedCredentialData,
    AuthenticatorData,
    CollectedClientData,
    PublicKeyCredentialRpEntity,
)


def judge(case):
    server = Fido2Server(
        PublicKeyCredentialRpEntity(id=case["rp_id"], name="Stationmaster"),
        attestation="none",
        verify_origin=lambda origin: origin == case["origin"],
    )
    state = {"challenge": case["challenge"], "user_verification": "required"}
    if case["kind"] == "register":
        server.register_complete(state, case["answer"])
        return
    key = CoseKey.parse(cbor.decode(websafe_decode(case["key"])))
    identifier = websafe_decode(case["credential_id"])
    passkey = AttestedCredentialData.create(bytes(16), identifier, key)
    server.authenticate_complete(state, [passkey], case["answer"])


def pair(algorithm):
    """A new private key, and how it signs."""
    if algorithm == -8:
        key = ed25519.Ed25519PrivateKey.generate()
        return key, key.sign
    if algorithm == -7:
        key = ec.generate_private_key(ec.SECP256R1())
        return key, lambda message: key.sign(message, ec.ECDSA(hashes.SHA256()))
    key = rsa.generate_private_key(65537, 2048)
    return key, lambda message: key.sign(message, padding.PKCS1v15(), hashes.SHA256())


def make(case):
    key, sign = pair(case["algorithm"])
    cose = CoseKey.for_alg(case["algorithm"]).from_cryptography_key(key.public_key())
    identifier = sha256(cbor.encode(cose))
    flag = AuthenticatorData.FLAG
    party = sha256(case["rp_id"].encode())

    def answer(ceremony, response):
        client_data = CollectedClientData.create(
            ceremony, websafe_decode(case["challenge"]), case["origin"]
        )
        response = response(client_data)
        response["clientDataJSON"] = client_data
        name = websafe_encode(identifier)
        encoded = {name: websafe_encode(value) for name, value in response.items()}
        return {"id": name, "rawId": name, "type": "public-key", "response": encoded}

    def register(_):
        passkey = AttestedCredentialData.create(bytes(16), identifier, cose)
        data = AuthenticatorData.create(party, flag.UP | flag.UV | flag.AT, 1, passkey)
        return {"attestationObject": AttestationObject.create("none", data, {})}

    def sign_in(client_data):
        data = AuthenticatorData.create(party, flag.UP | flag.UV, 2)
        return {
            "authenticatorData": data,
            "signature": sign(data + client_data.hash),
            "userHandle": b"the handle of a user",
        }

    return {
        "registration": answer(CollectedClientData.TYPE.CREATE, register),
        "sign_in": answer(CollectedClientData.TYPE.GET, sign_in),
    }


for line in sys.stdin:
    case = json.loads(line)
    if case["kind"] == "make":
        print(json.dumps(make(case)))
        continue
    try:
        judge(case)
        print("ok")
    except Exception as error:  # whatever it raises is its refusal
        words = " ".join(f"{type(error).__name__} {error}".split())
        print(f"refused: {words}")
