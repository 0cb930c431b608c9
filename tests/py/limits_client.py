"""Limits of tenants and addresses, met by the official OpenAI client and by httpx2 from several addresses.

    limits_client.py URL KEY_OF_TENANT_7 OTHER_KEY_OF_TENANT_7 KEY_OF_TENANT_8 TENANT_LIMIT ADDRESS_LIMIT
"""
import sys

import httpx2 as httpx
import openai

URL, ADA, BOB, EVE = sys.argv[1:5]
TENANT_LIMIT, ADDRESS_LIMIT = int(sys.argv[5]), int(sys.argv[6])


def client(key, source):
    """A client that comes from one of this machine's addresses and never tries again by itself."""
    http = httpx.Client(transport=httpx.HTTPTransport(local_address=source), timeout=60)
    return openai.OpenAI(base_url=URL + "/v1", api_key=key, max_retries=0, http_client=http)


def ask_until_refused(one, most):
    """How many requests were answered before the first refusal, and the refusal."""
    for count in range(most):
        try:
            one.models.list()
        except openai.RateLimitError as refused:
            return count, refused
    raise AssertionError(f"{most} requests were answered")


# All keys of a tenant share its limit, wherever they come from.
count, refused = ask_until_refused(client(ADA, "127.0.0.2"), 3 * TENANT_LIMIT)
assert TENANT_LIMIT <= count <= TENANT_LIMIT + 5, count
assert "tenant" in str(refused) and 1 <= int(refused.response.headers["retry-after"]) <= 60, refused
count, refused = ask_until_refused(client(BOB, "127.0.0.3"), 5)
assert count <= 2 and "tenant" in str(refused), (count, refused)
assert client(EVE, "127.0.0.4").models.list().data, "another tenant is not concerned"
print("tenant: ok")

# An address has its limit whatever it shows; refusals count as well as answers, so this comes last.
outside = httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.5"), timeout=60)
statuses = [outside.get(URL + "/v1/models").status_code for _ in range(2 * ADDRESS_LIMIT)]
assert statuses[0] == 401 and statuses[-1] == 429, statuses
first = statuses.index(429)
assert ADDRESS_LIMIT <= first <= ADDRESS_LIMIT + 5, first
count, refused = ask_until_refused(client(EVE, "127.0.0.5"), 5)
assert count <= 2 and "address" in str(refused), (count, refused)
assert client(EVE, "127.0.0.6").models.list().data, "another address is not concerned"
assert outside.get(URL + "/healthz").status_code == 200, "health checks are always answered"
print("address: ok")
