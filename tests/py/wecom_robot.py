"""Plays WeCom's side of a smart robot: sends a signed and encrypted message, or asks for the text of a reply until it
is whole. The encryption and the signatures are those of wechatpy.

    wecom_robot.py CASE.json

The case has: url, token, key (EncodingAESKey), do ("say" or "ask"), and for "say" text, message, response_url; for
"ask" stream, and questions_max. Prints one JSON object: for "say" {"status", "reply"}, for "ask" {"parts": [[text,
finished], ...]}. A question that meets a closed door (the server starts again) is asked again.
"""
import base64
import json
import sys
import time

import requests
from wechatpy.crypto import _get_signature
from wechatpy.enterprise.crypto import PrpCrypto

case = json.load(open(sys.argv[1]))
crypto = PrpCrypto(base64.b64decode(case["key"] + "="))


def tell(message):
    """One signed request; the opened answer, or nothing when the answer is empty."""
    nonce, now = "nonce", str(int(time.time()))
    sealed = crypto.encrypt(json.dumps(message), "").decode()
    signature = _get_signature(case["token"], now, nonce, sealed)
    query = {"msg_signature": signature, "timestamp": now, "nonce": nonce}
    answer = requests.post(case["url"], params=query, json={"encrypt": sealed}, timeout=10)
    if not answer.content or answer.status_code != 200:
        return answer.status_code, None
    body = answer.json()
    proof = _get_signature(case["token"], str(body["timestamp"]), body["nonce"], body["encrypt"])
    assert proof == body["msgsignature"], "the answer is signed"
    return answer.status_code, json.loads(crypto.decrypt(body["encrypt"], ""))


def message(kind, more):
    return {"msgid": case.get("message", "m"), "aibotid": "bot", "chattype": "single", "from": {"userid": "ann"}, "msgtype": kind, **more}


def say():
    more = {"text": {"content": case["text"]}, "response_url": case["response_url"]}
    status, reply = tell(message("text", more))
    return {"status": status, "reply": reply}


def ask():
    parts = []
    deadline = time.monotonic() + 120
    while len(parts) < case["questions_max"] and time.monotonic() < deadline:
        try:
            status, reply = tell(message("stream", {"stream": {"id": case["stream"]}}))
        except requests.ConnectionError:
            time.sleep(0.05)
            continue
        assert status == 200 and reply["msgtype"] == "stream", (status, reply)
        stream = reply["stream"]
        assert stream["id"] == case["stream"]
        parts.append([stream["content"], stream["finish"]])
        if stream["finish"]:
            break
        # WeCom's own pace is about a second.
        time.sleep(0.2)
    return {"parts": parts}


print(json.dumps(say() if case["do"] == "say" else ask()))
