#!/usr/bin/env python3
"""Verifies one delivery with a published library, to show that consumers need no code from
Stationmaster.

    python published.py standardwebhooks|stripe < case.json

The case is {"secret", "headers", "body_base64"}; "now" is ignored, because these libraries read the
system's clock.
"""

import base64
import json
import sys


def standardwebhooks(secret, headers, body):
    from standardwebhooks import Webhook

    Webhook(secret).verify(body, headers)


def stripe(secret, headers, body):
    import stripe as library

    # Our header has the shape of theirs; only its name differs.
    library.Webhook.construct_event(body, headers.get("x-stationmaster-signature"), secret)


def main():
    verify = {"standardwebhooks": standardwebhooks, "stripe": stripe}[sys.argv[1]]
    case = json.load(sys.stdin)
    headers = {name.lower(): value for name, value in case["headers"].items()}
    try:
        verify(case["secret"], headers, base64.b64decode(case["body_base64"]))
    except ImportError:
        raise  # a fault of the set-up, not a refusal
    except Exception as error:  # whatever a library raises means: do not trust this delivery
        print(f"refused: {type(error).__name__}: {error}".splitlines()[0])
        return 1
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
