"""Backups in an S3 server that we did not write (moto), made by a running server and restored from the command line.

    backup_s3.py PROGRAM
"""
import json
import os
import subprocess
import sys
import tempfile

import boto3
import requests
from moto.server import ThreadedMotoServer

program = sys.argv[1]
store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
store.start()
host, port = store.get_host_and_port()
endpoint = f"http://{host}:{port}"
keys = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-bucket", "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint}
bucket = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="an-id", aws_secret_access_key="x")
bucket.create_bucket(Bucket="copies")
PLACE = "s3://copies/node-1"

folder = tempfile.TemporaryDirectory()
data, restored = os.path.join(folder.name, "data"), os.path.join(folder.name, "restored")
plain = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MILLRACE_BACKUP"))}
with_keys = {**plain, **keys, "AWS_ALLOW_HTTP": "true"}


def millrace(*arguments, env=with_keys, works=True):
    done = subprocess.run([program, *arguments], env=env, capture_output=True, text=True)
    assert (done.returncode == 0) == works, f"{arguments}: {done.stdout}{done.stderr}"
    assert "a-secret-of-the-bucket" not in done.stdout + done.stderr
    return done.stdout if works else done.stderr


def serve(folder, *more):
    process = subprocess.Popen([program, "serve", "--data", folder, "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--ready-json",
                                "--models", os.environ["MILLRACE_MODELS"], *more], env=with_keys, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return process, json.loads(line)


def stop(process):
    process.terminate()
    log = process.communicate(timeout=30)[1]
    assert process.returncode == 0
    assert "a-secret-of-the-bucket" not in log, "no secret is in the log"


def objects():
    pages = bucket.get_paginator("list_objects_v2").paginate(Bucket="copies")
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


server, ready = serve(data, "--backup-target", PLACE, "--backup-every", "0s")
try:
    url, key = f"http://{ready['http']}", ready["api_key"]
    asked = {**with_keys, "MILLRACE_URL": url, "MILLRACE_API_KEY": key}
    head = {"Authorization": f"Bearer {key}"}
    turn = {"model": "default", "session": "diary", "max_tokens": 4, "messages": [{"role": "user", "content": "My boat is called Windhover."}]}
    assert requests.post(f"{url}/v1/chat/completions", json=turn, headers=head).status_code == 200

    made = json.loads(millrace("backup", "create", "--json", env=asked))
    assert made["place"] == PLACE and made["bytes_sent"] > 0, made
    names = objects()
    assert all(name.startswith("node-1/") for name in names), names
    assert len([name for name in names if "/manifests/" in name]) == 1 and any("/keys/" in name for name in names)
    print(f"a backup of {made['bytes']} bytes is {len(names)} objects")

    again = json.loads(millrace("backup", "create", "--keep", "1", "--json", env=asked))
    assert again["removed"] == 1 and again["bytes_sent"] < made["bytes_sent"], again
    listed = json.loads(millrace("backup", "ls", "--from", PLACE, "--json"))["data"]
    assert [entry["id"] for entry in listed] == [again["id"]], listed
    status = requests.get(f"{url}/v1/admin/backups", headers=head).json()
    assert status["last"]["id"] == again["id"] and status["running"] is None, status
    print("only what changed is sent again, and the older one is gone")

    sealed = ("--data", restored, "--storage-key-file", os.path.join(data, "master.key"))
    assert again["id"] in millrace("backup", "verify", "--from", PLACE, *sealed)
    millrace("backup", "restore", "--from", PLACE, "--into", restored, *sealed)
    assert "not empty" in millrace("backup", "restore", "--from", PLACE, "--into", restored, *sealed, works=False)

    part = next(name for name in objects() if "/objects/" in name)
    whole = bucket.get_object(Bucket="copies", Key=part)["Body"].read()
    bucket.put_object(Bucket="copies", Key=part, Body=whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "damaged" in millrace("backup", "verify", "--from", PLACE, *sealed, works=False)
    bucket.put_object(Bucket="copies", Key=part, Body=whole)
    bucket.delete_object(Bucket="copies", Key=part)
    assert "missing" in millrace("backup", "verify", "--from", PLACE, *sealed, works=False)
    millrace("backup", "create", env=asked)
    millrace("backup", "verify", "--from", PLACE, *sealed)
    print("a changed and a removed object are told, and the next backup mends it")

    assert "AWS_ACCESS_KEY_ID" in millrace("backup", "ls", "--from", PLACE, env=plain, works=False)
    assert "AWS_ALLOW_HTTP" in millrace("backup", "ls", "--from", PLACE, env={**plain, **keys}, works=False)
    assert "elsewhere" in millrace("backup", "ls", "--from", "s3://elsewhere/x", works=False)
    assert "s3://bucket/prefix" in millrace("backup", "ls", "--from", "ftp://x/y", works=False)
    print("what is missing or wrong is said")
finally:
    stop(server)

# The restored folder is a node: with the old key of keys it knows the old sessions.
server, ready = serve(restored, "--storage-key-file", os.path.join(data, "master.key"))
try:
    answer = requests.get(f"http://{ready['http']}/v1/sessions/diary/messages", headers=head).text
    assert "Windhover" in answer, answer
finally:
    stop(server)
    store.stop()
print("the restored node knows what was said")
