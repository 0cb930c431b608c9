"""OAuth as clients that were not written here use it: Authlib and requests-oauthlib (oauthlib) get tokens, call the
API with them, and check the signed ones against the published keys.

    oauth_clients.py URL ADMIN_KEY
"""
import sys
import time

import requests
from authlib.integrations.requests_client import OAuth2Session
from authlib.integrations.base_client.errors import OAuthError
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from joserfc import jwt
from joserfc.jwk import KeySet
from oauthlib.oauth2 import BackendApplicationClient, InvalidClientError, InvalidScopeError
from requests.auth import HTTPBasicAuth
from requests_oauthlib import OAuth2Session as OauthlibSession

# oauthlib refuses plain HTTP unless it is told that this is a test on one machine.
import os
os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"

url, admin = sys.argv[1:3]
KEY = {"Authorization": f"Bearer {admin}"}


def make(**body):
    reply = requests.post(f"{url}/v1/admin/clients", json=body, headers=KEY)
    assert reply.status_code == 201, reply.text
    assert reply.headers["cache-control"] == "no-store"
    return reply.json()


def chat(headers):
    return requests.get(f"{url}/v1/models", headers=headers)


metadata = requests.get(f"{url}/.well-known/oauth-authorization-server").json()
assert metadata["issuer"] == url, metadata
checked = AuthorizationServerMetadata(metadata)
for claim in ("token_endpoint", "jwks_uri", "scopes_supported", "introspection_endpoint", "revocation_endpoint", "grant_types_supported"):
    getattr(checked, f"validate_{claim}")()
TOKEN = metadata["token_endpoint"]

# Authlib, opaque tokens, both ways to say who one is.
robot = make(label="robot", scopes=["chat"], user="robot")
for method in ("client_secret_basic", "client_secret_post"):
    session = OAuth2Session(robot["client_id"], robot["client_secret"], token_endpoint_auth_method=method, scope="chat")
    token = session.fetch_token(TOKEN, grant_type="client_credentials")
    assert token["token_type"] == "Bearer" and token["scope"] == "chat" and token["access_token"].startswith("mt-"), token
    assert 3500 < token["expires_in"] <= 3600 and "refresh_token" not in token, token
    assert session.get(f"{url}/v1/models").status_code == 200
    told = session.introspect_token(metadata["introspection_endpoint"], token=token["access_token"]).json()
    assert told["active"] and told["client_id"] == robot["client_id"] and told["scope"] == "chat", told
    assert session.revoke_token(metadata["revocation_endpoint"], token=token["access_token"]).status_code == 200
    assert session.introspect_token(metadata["introspection_endpoint"], token=token["access_token"]).json() == {"active": False}
    refused = requests.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {token['access_token']}"})
    assert refused.status_code == 401 and 'error="invalid_token"' in refused.headers["www-authenticate"], refused.headers
print("authlib: opaque tokens, basic and post, introspection, revocation")

# oauthlib with requests-oauthlib, signed tokens.
signer = make(label="signer", role="operator", token="jwt", lifetime_s=120)
session = OauthlibSession(client=BackendApplicationClient(client_id=signer["client_id"]))
token = session.fetch_token(TOKEN, client_id=signer["client_id"], client_secret=signer["client_secret"])
assert sorted(token["scope"]) == ["chat", "metrics", "operate"], token
assert session.get(f"{url}/v1/admin/outbox").status_code == 200, "an operator looks after the outbox"
narrow = session.get(f"{url}/v1/admin/keys")
assert narrow.status_code == 403 and 'scope="admin"' in narrow.headers["www-authenticate"], narrow.headers


def verified(text):
    keys = KeySet.import_key_set(requests.get(metadata["jwks_uri"]).json())
    decoded = jwt.decode(text, keys, algorithms=["EdDSA", "Ed25519", "ES256"])
    assert decoded.header["typ"] == "at+jwt", decoded.header
    claims = decoded.claims
    registry = jwt.JWTClaimsRegistry(iss={"essential": True, "value": url}, aud={"essential": True, "value": url},
                                     exp={"essential": True}, iat={"essential": True}, jti={"essential": True},
                                     sub={"essential": True, "value": signer["client_id"]}, client_id={"essential": True})
    registry.validate(claims)
    assert claims["exp"] - claims["iat"] == 120, claims
    return decoded


before = verified(token["access_token"])
rotated = requests.post(f"{url}/v1/admin/signing-keys", json={"algorithm": "ES256"}, headers=KEY)
assert rotated.status_code == 200 and len(rotated.json()["data"]) == 2, rotated.text
assert session.get(f"{url}/v1/models").status_code == 200, "an earlier key goes on verifying"
verified(token["access_token"])
newer = session.fetch_token(TOKEN, client_id=signer["client_id"], client_secret=signer["client_secret"])
after = verified(newer["access_token"])
assert (before.header["alg"], after.header["alg"]) == ("EdDSA", "ES256"), (before.header, after.header)
assert requests.post(metadata["revocation_endpoint"], data={"token": newer["access_token"]},
                     auth=HTTPBasicAuth(signer["client_id"], signer["client_secret"])).status_code == 200
assert chat({"Authorization": f"Bearer {newer['access_token']}"}).status_code == 401, "a revoked JWT opens nothing"
assert chat({"Authorization": f"Bearer {token['access_token']}"}).status_code == 200, "the other one still does"
print("oauthlib: signed tokens, EdDSA and ES256, rotation of keys, revocation")

# What is refused, in the words that the libraries understand.
for secret, scope, expected in (("ms-wrong", "chat", InvalidClientError), (robot["client_secret"], "admin", InvalidScopeError),
                                (robot["client_secret"], "root", InvalidScopeError)):
    client = OauthlibSession(client=BackendApplicationClient(client_id=robot["client_id"], scope=scope))
    try:
        client.fetch_token(TOKEN, client_id=robot["client_id"], client_secret=secret)
        raise AssertionError(f"{secret} {scope} was accepted")
    except expected:
        pass
try:
    OAuth2Session("mc-nobody", "x").fetch_token(TOKEN, grant_type="client_credentials")
    raise AssertionError("nobody got a token")
except OAuthError as error:
    assert error.error == "invalid_client", error
basic = HTTPBasicAuth(robot["client_id"], robot["client_secret"])
for body, status, code in (
    ({"grant_type": "password", "username": "a", "password": "b"}, 400, "unsupported_grant_type"),
    ({}, 400, "invalid_request"),
    ("grant_type=client_credentials&grant_type=client_credentials", 400, "invalid_request"),
    ({"grant_type": "client_credentials", "client_secret": robot["client_secret"], "client_id": robot["client_id"]}, 400, "invalid_request"),
):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = requests.post(TOKEN, data=body, headers=headers, auth=basic)
    assert (reply.status_code, reply.json()["error"]) == (status, code), (body, reply.status_code, reply.text)
    assert reply.headers["cache-control"] == "no-store" and reply.headers["pragma"] == "no-cache", reply.headers
reply = requests.post(TOKEN, json={"grant_type": "client_credentials"}, auth=basic)
assert reply.status_code == 400 and reply.json()["error"] == "invalid_request", "a form, not JSON"
reply = requests.post(f"{TOKEN}?client_secret=x", data={"grant_type": "client_credentials"}, auth=basic)
assert reply.status_code == 400, "no secrets in addresses"
reply = requests.post(TOKEN, data={"grant_type": "client_credentials"}, auth=HTTPBasicAuth(robot["client_id"], "no"))
assert reply.status_code == 401 and reply.headers["www-authenticate"].startswith("Basic "), reply.headers
assert requests.get(TOKEN).status_code == 405
print("refusals: grants, doubled parameters, two methods at once, wrong secrets")

# A secret is rotated with an overlap, then the earlier one ends; a removed client takes its tokens with it.
session = OAuth2Session(robot["client_id"], robot["client_secret"])
held = session.fetch_token(TOKEN, grant_type="client_credentials")["access_token"]
fresh = requests.post(f"{url}/v1/admin/clients/rotate", json={"id": robot["client_id"], "keep_s": 2}, headers=KEY).json()


def works(secret):
    reply = requests.post(TOKEN, data={"grant_type": "client_credentials"}, auth=HTTPBasicAuth(robot["client_id"], secret))
    return reply.status_code == 200


assert works(fresh["client_secret"]) and works(robot["client_secret"]), "both hold for two seconds"
deadline = time.monotonic() + 20
while works(robot["client_secret"]):
    assert time.monotonic() < deadline, "the earlier secret never ends"
    time.sleep(0.2)
assert works(fresh["client_secret"])
assert chat({"Authorization": f"Bearer {held}"}).status_code == 200
assert requests.delete(f"{url}/v1/admin/clients", params={"id": robot["client_id"]}, headers=KEY).status_code == 200
assert chat({"Authorization": f"Bearer {held}"}).status_code == 401, "its tokens ended with the client"
assert not works(fresh["client_secret"])
print("secrets rotate with an overlap; a removed client's tokens open nothing")

# Guessing is slowed down for the client that is guessed at, and for nobody else.
other = make(label="other")
statuses = [requests.post(TOKEN, data={"grant_type": "client_credentials"}, auth=HTTPBasicAuth(signer["client_id"], f"guess-{number}")).status_code
            for number in range(40)]
assert set(statuses) == {401, 429} and statuses[0] == 401 and statuses[-1] == 429, statuses
reply = requests.post(TOKEN, data={"grant_type": "client_credentials"}, auth=HTTPBasicAuth(signer["client_id"], "guess"))
assert reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1, reply.headers
proved = requests.post(TOKEN, data={"grant_type": "client_credentials"}, auth=HTTPBasicAuth(signer["client_id"], signer["client_secret"]))
assert proved.status_code == 200, "a client that has proved itself before is not locked out"
elsewhere = requests.post(TOKEN, data={"grant_type": "client_credentials"}, auth=HTTPBasicAuth(other["client_id"], other["client_secret"]))
assert elsewhere.status_code == 200, elsewhere.text
print("guessing is slowed down")
