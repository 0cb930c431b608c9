"""The platforms' own SDKs as senders: each event is signed by (or proved good to) the code that the platform ships.

    channel_sdks.py FILE       FILE: JSON {"kind", "url", "secrets", "text", "number"}; posts one event and prints JSON
                               {"status", "body"}

Where an SDK has no signer, the request is signed by hand and must first pass the SDK's own verifier.
"""
import base64
import hashlib
import hmac
import json
import sys
import time

import requests

NOW = int(time.time())


def post(url, body, headers, method="POST"):
    data = body.encode() if isinstance(body, str) else body
    return requests.request(method, url, data=data, headers=headers, timeout=60)


def slack(url, secrets, text, number):
    from slack_sdk.signature import SignatureVerifier
    body = json.dumps({"type": "event_callback", "api_app_id": "A1", "team_id": "T1", "event_id": f"Ev{number}", "event": {
        "type": "message", "channel_type": "im", "channel": "D1", "user": "U1", "text": text, "ts": f"{NOW}.{number:06}"}})
    verifier = SignatureVerifier(secrets["secret"])
    signature = verifier.generate_signature(timestamp=str(NOW), body=body)
    headers = {"Content-Type": "application/json", "X-Slack-Signature": signature, "X-Slack-Request-Timestamp": str(NOW)}
    assert verifier.is_valid_request(body, headers)
    return post(url, body, headers)


def line(url, secrets, text, number):
    from linebot.v3.webhook import SignatureValidator, WebhookParser
    body = json.dumps({"destination": "U" + "0" * 32, "events": [{
        "type": "message", "mode": "active", "timestamp": NOW * 1000, "webhookEventId": f"01H{number}", "replyToken": "r" * 32,
        "source": {"type": "user", "userId": "U" + "1" * 32}, "deliveryContext": {"isRedelivery": False},
        "message": {"id": str(number), "type": "text", "quoteToken": "q", "text": text}}]})
    signature = base64.b64encode(hmac.new(secrets["secret"].encode(), body.encode(), hashlib.sha256).digest()).decode()
    assert SignatureValidator(secrets["secret"]).validate(body, signature)
    assert WebhookParser(secrets["secret"]).parse(body, signature)[0].message.text == text
    return post(url, body, {"Content-Type": "application/json; charset=utf-8", "X-Line-Signature": signature})


def twilio(url, secrets, text, number):
    from twilio.request_validator import RequestValidator
    fields = {"MessageSid": f"SM{number:032}", "AccountSid": secrets["app_id"], "From": "+15550001", "To": "+15550002", "Body": text, "NumMedia": "0"}
    public = secrets["public_url"] + url[url.index("/", 8):]
    validator = RequestValidator(secrets["secret"])
    signature = validator.compute_signature(public, fields)
    assert validator.validate(public, fields, signature)
    return requests.post(url, data=fields, headers={"X-Twilio-Signature": signature}, timeout=60)


def viber(url, secrets, text, number):
    from viberbot import Api, BotConfiguration
    body = json.dumps({"event": "message", "timestamp": NOW * 1000, "message_token": 5000000000000000000 + number, "chat_hostname": "x",
                       "sender": {"id": "u1==", "name": "Ann", "language": "en", "country": "DE", "api_version": 1},
                       "message": {"type": "text", "text": text}})
    api = Api(BotConfiguration(auth_token=secrets["secret"], name="bot", avatar=""))
    signature = hmac.new(secrets["secret"].encode(), body.encode(), hashlib.sha256).hexdigest()
    assert api.verify_signature(body.encode(), signature)
    assert api.parse_request(body.encode()).message.text == text
    return post(url, body, {"Content-Type": "application/json", "X-Viber-Content-Signature": signature})


def github(url, secrets, text, number):
    from gidgethub.sansio import validate_event
    body = json.dumps({"action": "opened", "repository": {"full_name": "a/b"}, "sender": {"login": "ann"}, "issue": {"title": text}})
    signature = "sha256=" + hmac.new(secrets["secret"].encode(), body.encode(), hashlib.sha256).hexdigest()
    validate_event(body.encode(), signature=signature, secret=secrets["secret"])
    return post(url, body, {"Content-Type": "application/json", "X-GitHub-Event": "issues", "X-GitHub-Delivery": f"d-{number}",
                            "X-Hub-Signature-256": signature})


def discord(url, secrets, text, number):
    from discord_interactions import verify_key
    from nacl.signing import SigningKey
    key = SigningKey(bytes.fromhex(secrets["seed"]))
    assert key.verify_key.encode().hex() == secrets["secret"], "the account has the public half of this key"
    body = json.dumps({"id": str(number), "application_id": "77", "type": 2, "token": "tok", "channel_id": "5", "user": {"id": "6"},
                       "data": {"name": "ask", "options": [{"name": "text", "type": 3, "value": text}]}})
    signature = key.sign(str(NOW).encode() + body.encode()).signature.hex()
    assert verify_key(body.encode(), signature, str(NOW), secrets["secret"])
    return post(url, body, {"Content-Type": "application/json", "X-Signature-Ed25519": signature, "X-Signature-Timestamp": str(NOW)})


def wecom(url, secrets, text, number):
    from wechatpy.enterprise.crypto import WeChatCrypto
    message = (f"<xml><ToUserName><![CDATA[{secrets['app_id']}]]></ToUserName><FromUserName><![CDATA[ann]]></FromUserName>"
               f"<CreateTime>{NOW}</CreateTime><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[{text}]]></Content>"
               f"<MsgId>{number}</MsgId><AgentID>1</AgentID></xml>")
    crypto = WeChatCrypto(secrets["secret"], secrets["encryption_key"], secrets["app_id"])
    body = crypto.encrypt_message(message, "nonce", str(NOW))
    import xmltodict
    signature = xmltodict.parse(body)["xml"]["MsgSignature"]
    assert crypto.decrypt_message(body, signature, str(NOW), "nonce")
    return post(f"{url}?msg_signature={signature}&timestamp={NOW}&nonce=nonce", body, {"Content-Type": "text/xml"})


def wechat_mp(url, secrets, text, number):
    from wechatpy.crypto import WeChatCrypto
    from wechatpy.utils import WeChatSigner
    message = (f"<xml><ToUserName><![CDATA[gh_1]]></ToUserName><FromUserName><![CDATA[ann]]></FromUserName>"
               f"<CreateTime>{NOW}</CreateTime><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[{text}]]></Content><MsgId>{number}</MsgId></xml>")
    crypto = WeChatCrypto(secrets["secret"], secrets["encryption_key"], secrets["app_id"])
    body = crypto.encrypt_message(message, "nonce", str(NOW))
    import xmltodict
    signature = xmltodict.parse(body)["xml"]["MsgSignature"]
    plain = WeChatSigner()
    plain.add_data(secrets["secret"], str(NOW), "nonce")
    query = f"signature={plain.signature}&timestamp={NOW}&nonce=nonce&encrypt_type=aes&msg_signature={signature}"
    return post(f"{url}?{query}", body, {"Content-Type": "text/xml"})


def email_sendgrid(url, secrets, text, number):
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from sendgrid.helpers.eventwebhook import EventWebhook
    key = serialization.load_der_private_key(base64.b64decode(secrets["key"]), None)
    envelope = json.dumps({"to": ["bot@mail.example"], "from": "ann@mail.example"})
    headers = f"From: ann@mail.example\nSubject: A question\nMessage-ID: <q{number}@mail.example>\n"
    fields = {"headers": headers, "from": "ann@mail.example", "subject": "A question", "text": text, "envelope": envelope,
              "SPF": "pass", "dkim": "{@mail.example : pass}"}
    request = requests.Request("POST", url, files={name: (None, value) for name, value in fields.items()}).prepare()
    stamp = str(NOW)
    signature = base64.b64encode(key.sign(stamp.encode() + request.body, ec.ECDSA(hashes.SHA256()))).decode()
    assert EventWebhook(secrets["secret"]).verify_signature(request.body.decode(), signature, stamp)
    return post(url, request.body, {"Content-Type": request.headers["Content-Type"], "X-Twilio-Email-Event-Webhook-Signature": signature,
                                    "X-Twilio-Email-Event-Webhook-Timestamp": stamp})


def standard_webhooks(url, secrets, text, number):
    from datetime import datetime, timezone
    from standardwebhooks.webhooks import Webhook
    body = json.dumps({"type": "message", "conversation": "c1", "user": "ann", "text": text})
    moment = datetime.fromtimestamp(NOW, tz=timezone.utc)
    headers = {"webhook-id": f"msg_{number}", "webhook-timestamp": str(NOW), "Content-Type": "application/json",
               "webhook-signature": Webhook(secrets["secret"]).sign(f"msg_{number}", moment, body)}
    return post(url, body, headers)


SENDERS = [slack, line, twilio, viber, github, discord, wecom, wechat_mp, email_sendgrid, standard_webhooks]

case = json.load(open(sys.argv[1]))
sender = {one.__name__: one for one in SENDERS}[case["kind"]]
reply = sender(case["url"], case["secrets"], case["text"], case["number"])
print(json.dumps({"status": reply.status_code, "body": reply.text}))
