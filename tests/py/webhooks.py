"""The `standardwebhooks` package as sender and as verifier.

    webhooks.py send URL SECRET ID BODY      signs and posts; prints the status
    webhooks.py verify SECRET FILE           FILE: JSON list of {"headers": {...}, "body": "..."}; all must verify
"""
import json
import sys
from datetime import datetime, timezone

import requests
from standardwebhooks.webhooks import Webhook


def send(url, secret, message_id, body):
    now = datetime.now(tz=timezone.utc)
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, now, body),
        "content-type": "application/json",
    }
    print(requests.post(url, data=body.encode(), headers=headers, timeout=60).status_code)


def verify(secret, file):
    requests_seen = json.load(open(file))
    assert requests_seen, "nothing to verify"
    for request in requests_seen:
        Webhook(secret).verify(request["body"], request["headers"])
        tampered = request["body"] + " "
        try:
            Webhook(secret).verify(tampered, request["headers"])
        except Exception:
            continue
        raise AssertionError("the signature does not cover the body")
    print(f"{len(requests_seen)} verified")


{"send": send, "verify": verify}[sys.argv[1]](*sys.argv[2:])
