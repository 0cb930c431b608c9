"""Chromium chats with the server over HTTP/3.

    chromium_http3.py HOST:PORT CERTIFICATE KEY
"""
import base64
import hashlib
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate

from chromium import Browser

ADDRESS, CERTIFICATE, KEY = sys.argv[1:4]
PORT = ADDRESS.rsplit(":", 1)[1]
BASE = f"https://localhost:{PORT}"
public_key = load_pem_x509_certificate(Path(CERTIFICATE).read_bytes()).public_key()
PIN = base64.b64encode(hashlib.sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()).decode()

ASK = """(async () => {
  const body = {model: "default", messages: [{role: "user", content: "Say hello."}], max_tokens: 12, ignore_eos: true, stream: true};
  const headers = {authorization: "Bearer " + %s, "content-type": "application/json"};
  const reply = await fetch("/v1/chat/completions", {method: "POST", headers, body: JSON.stringify(body)});
  const reader = reply.body.getReader(), decoder = new TextDecoder();
  let text = "", reads = 0;
  for (let part; !(part = await reader.read()).done; reads++) text += decoder.decode(part.value, {stream: true});
  const models = await Promise.all(Array.from({length: 40}, () => fetch("/v1/models", {headers}).then((answer) => answer.json())));
  const known = await fetch("/v1/models").then((answer) => answer.status);
  return {status: reply.status, text, reads, models: models.filter((list) => list.data.length > 0).length, known};
})()"""
PROTOCOLS = "performance.getEntries().filter(e => e.nextHopProtocol !== undefined).map(e => [e.name, e.nextHopProtocol])"

browser = Browser(f"--origin-to-force-quic-on=localhost:{PORT}", f"--ignore-certificate-errors-spki-list={PIN}", "--host-resolver-rules=MAP localhost 127.0.0.1")
try:
    browser.open(BASE + "/")
    assert browser.js("document.querySelector('#key') !== null"), "the chat page"
    found = browser.js(ASK % json.dumps(KEY))
    assert found["status"] == 200 and found["text"].endswith("data: [DONE]\n\n") and found["reads"] > 1, found
    assert found["models"] == 40 and found["known"] == 401, found
    protocols = browser.js(PROTOCOLS)
    assert len(protocols) > 40 and all(protocol == "h3" for _, protocol in protocols), protocols
    print(f"{len(protocols)} requests over h3, the stream came in {found['reads']} reads")
finally:
    browser.close()
