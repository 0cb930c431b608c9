"""Checks a JWT with joserfc and prints its claims as JSON.

    jwt_claims.py FILE      FILE: JSON {"token", "jwk"}; the token must be signed with RS256 by that key
"""
import json
import sys

from joserfc import jwt
from joserfc.jwk import RSAKey

case = json.load(open(sys.argv[1]))
print(json.dumps(jwt.decode(case["token"], RSAKey.import_key(case["jwk"]), algorithms=["RS256"]).claims))
