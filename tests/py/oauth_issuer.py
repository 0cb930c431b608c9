"""Tokens of another issuer, made with joserfc and judged by a running server that trusts it by configuration.

    oauth_issuer.py PROGRAM
"""
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

import requests
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

program = sys.argv[1]
fetches = []
published = []


class Issuer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        fetches.append(self.path)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("location", "http://localhost:1/keys")
            self.end_headers()
            return
        body = json.dumps({"keys": published}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Issuer)
threading.Thread(target=listener.serve_forever, daemon=True).start()
port = listener.server_address[1]
ISSUER, MOVED = f"http://127.0.0.1:{port}/tenant", f"http://127.0.0.1:{port}/other"
keys = {"RS256": RSAKey.generate_key(2048), "ES256": ECKey.generate_key("P-256"), "EdDSA": OKPKey.generate_key("Ed25519")}


def public(key):
    return {**key.as_dict(private=False), "kid": key.thumbprint()}


def token(key, algorithm, **changes):
    claims = {"iss": ISSUER, "sub": "ada@example", "aud": "millrace", "exp": int(time.time()) + 300, "scope": "openid chat", **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode({"alg": algorithm, "typ": "JWT", "kid": key.thumbprint()}, claims, key, algorithms=[algorithm])


folder = tempfile.TemporaryDirectory()
config = os.path.join(folder.name, "millrace.toml")
with open(config, "w") as file:
    for issuer, path in ((ISSUER, "keys"), (MOVED, "moved")):
        file.write(f'[[issuer]]\nissuer = "{issuer}"\njwks_url = "http://127.0.0.1:{port}/{path}"\naudience = "millrace"\ntenant = 9\nscopes = ["chat"]\n')
server = subprocess.Popen([program, "serve", "--config", config, "--data", os.path.join(folder.name, "data"), "--listen", "127.0.0.1:0",
                           "--metrics", "127.0.0.1:0", "--ready-json", "--models", os.environ["MILLRACE_MODELS"]], stdout=subprocess.PIPE)
try:
    published.append(public(keys["RS256"]))
    ready = json.loads(server.stdout.readline())
    url = f"http://{ready['http']}"

    def ask(text, path="/v1/models"):
        return requests.get(f"{url}{path}", headers={"Authorization": f"Bearer {text}"})

    # The keys were fetched at the start, perhaps before the first was published; the pause between two fetches is short.
    deadline = time.monotonic() + 30
    while (reply := ask(token(keys["RS256"], "RS256"))).status_code != 200:
        assert reply.status_code in (401, 503) and time.monotonic() < deadline, reply.text
        time.sleep(0.5)
    assert ask(token(keys["RS256"], "RS256"), "/v1/admin/keys").status_code == 403
    assert ask(token(keys["RS256"], "RS256", scope="chat admin"), "/v1/admin/keys").status_code == 403, "the configuration caps scopes"
    assert ask(token(keys["RS256"], "RS256", scope=None)).status_code == 403, "no scope claim, no rights"
    wrong = {"another audience": {"aud": "somebody"}, "over": {"exp": int(time.time()) - 120}, "another issuer": {"iss": "http://127.0.0.1:1"},
             "no subject": {"sub": None}, "not yet": {"nbf": int(time.time()) + 600}, "a huge subject": {"sub": "x" * 300}}
    for name, change in wrong.items():
        assert ask(token(keys["RS256"], "RS256", **change)).status_code == 401, name
    print("RS256: audience, issuer, times, subject and scopes are checked")

    # New keys of the issuer are fetched when a token names one: once, however many tokens come.
    published.extend([public(keys["ES256"]), public(keys["EdDSA"])])
    before, deadline = len(fetches), time.monotonic() + 30
    threads, statuses = [], []

    def insist(number):
        """Asks until the new keys are known: for a while after a fetch there is none, however many ask."""
        algorithm = ("ES256", "EdDSA")[number % 2]
        shown = token(keys[algorithm], algorithm, sub=f"user-{number}")
        while (status := ask(shown).status_code) in (401, 503) and time.monotonic() < deadline:
            time.sleep(0.1)
        statuses.append(status)

    for number in range(16):
        threads.append(threading.Thread(target=insist, args=(number,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 16, statuses
    assert len(fetches) == before + 1, fetches
    stranger = ECKey.generate_key("P-256")
    assert all(ask(token(stranger, "ES256")).status_code == 401 for _ in range(20))
    assert len(fetches) <= before + 2, "unknown keys do not make the server fetch each time"
    print("new keys are fetched once")

    assert ask(token(keys["RS256"], "RS256", iss=MOVED)).status_code == 503, "a redirect to another host is not followed"
    reply = ask(token(keys["ES256"], "ES256", sub="user-1"))
    forged = token(keys["ES256"], "ES256", sub="user-1")
    assert ask(forged[:-6] + "AAAAAA").status_code == 401, "a wrong signature"
    print("redirects and forgeries are refused")
finally:
    server.terminate()
    assert server.wait(30) == 0
    listener.shutdown()
