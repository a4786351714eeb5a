"""A mail server for the tests that keeps what it gets (PyPI `aiosmtpd`). It ends with its standard
input.

    smtp_sink.py FILE

Its first line is a JSON object: the ports `starttls`, `tls` (from the first byte) and `plain`, the
path `ca` of the certificate to trust, and `user` and `password`, which the first two ports demand.
Each mail becomes a line of JSON in FILE: `to`, `subject`, `text`, `html`, `headers`, `tls`, `auth`.

A recipient `bounce-550@…` or `busy-451@…` is answered with that code (any 4xx or 5xx code), and
`busy-451-once@…` at its first time only.
"""

import asyncio
import email
import email.policy
import json
import logging
import re
import ssl
import subprocess
import sys
import warnings
from pathlib import Path

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

# The library warns of what it does itself, and that it can't see the TLS below it.
logging.getLogger("mail.log").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "Requiring AUTH while not requiring TLS")

USER = "sink@example.com"
PASSWORD = "p@ss/word #1 of the sink"
REFUSED = re.compile(r"(?:bounce|busy)-([45]\d\d)(-once)?@")

OPENSSL_CONFIG = """
[req]
distinguished_name = name
x509_extensions = extensions
prompt = no
[name]
CN = mail server of the tests
[extensions]
basicConstraints = critical, CA:FALSE
subjectAltName = DNS:localhost, IP:127.0.0.1
"""


class Keeper:
    """Writes mails to a file."""

    def __init__(self, path):
        self.file = open(path, "a", encoding="utf-8")
        self.refused_once = set()

    async def handle_RCPT(self, server, session, envelope, address, options):
        refused = REFUSED.match(address)
        if refused:
            code, once = refused.groups()
            if not once or address not in self.refused_once:
                self.refused_once.add(address)
                return f"{code} {code[0]}.1.1 <{address}> gets no mail"
        envelope.rcpt_tos.append(address)
        return "250 taken"

    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        mail = {
            "to": envelope.rcpt_tos,
            "subject": message["Subject"],
            "text": content(message, "plain"),
            "html": content(message, "html"),
            "headers": [[name, str(value)] for name, value in message.items()],
            "tls": server.transport.get_extra_info("ssl_object") is not None,
            "auth": session.auth_data.decode() if session.authenticated else None,
        }
        print(json.dumps(mail), file=self.file, flush=True)
        return "250 kept"


def content(message, kind):
    """The decoded part of that kind, with line feeds alone; None without."""
    part = message.get_body((kind,))
    return None if part is None else part.get_content().replace("\r\n", "\n")


def authenticate(server, session, envelope, mechanism, given):
    good = isinstance(given, LoginPassword) and (given.login, given.password) == (
        USER.encode(),
        PASSWORD.encode(),
    )
    return AuthResult(success=good, handled=False, auth_data=given.login if good else None)


def certificate(home):
    """Makes a certificate in a directory; the paths of it and of its key."""
    config, ca, key = (home / name for name in ("openssl.cnf", "ca.pem", "key.pem"))
    config.write_text(OPENSSL_CONFIG)
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    files = ["-config", config, "-out", ca, "-keyout", key]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return ca, key


async def main(path):
    ca, key = certificate(path.parent)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(ca, key)
    keeper = Keeper(path)
    loop = asyncio.get_running_loop()
    login = {"authenticator": authenticate, "auth_required": True}

    async def listen(ssl_context, **options):
        # The greeting names a host of nobody, whatever this machine is called.
        make = lambda: SMTP(keeper, hostname="sink.example.com", loop=loop, **options)
        server = await loop.create_server(make, "127.0.0.1", 0, ssl=ssl_context)
        return server.sockets[0].getsockname()[1]

    ready = {
        "starttls": await listen(None, tls_context=tls, require_starttls=True, **login),
        # The library knows of its own STARTTLS alone; here TLS is below it.
        "tls": await listen(tls, auth_require_tls=False, **login),
        "plain": await listen(None),
        "ca": str(ca),
        "user": USER,
        "password": PASSWORD,
    }
    print(json.dumps(ready), flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)


asyncio.run(main(Path(sys.argv[1]).resolve()))
