"""Prints a fresh RSA key as JSON: `pkcs8` (base64 DER, to sign with) and `jwk` (public, to publish)."""

import base64
import json

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa


def number(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()


key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
der = key.private_bytes(
    serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
public = key.public_key().public_numbers()
jwk = {"kty": "RSA", "use": "sig", "kid": "test-key", "n": number(public.n), "e": number(public.e)}
print(json.dumps({"pkcs8": base64.b64encode(der).decode(), "jwk": jwk}))
