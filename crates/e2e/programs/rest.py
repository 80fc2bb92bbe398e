"""The API by plain HTTP requests: keys, refusals, states. Every error must be JSON with an integer
code equal to the status and a message, whatever was sent."""

import http.client
import json
import os
import socket
import urllib.parse

BASE = urllib.parse.urlsplit(os.environ["E2B_API_URL"])
KEY = os.environ["E2B_API_KEY"]
TWIN = "sk-sb-" + KEY.removeprefix("e2b_")
UNKNOWN = "i" + "0" * 19
DAYS = 400 * 86400


def ask(method, path, body=None, headers=None):
    """Status, headers and parsed body. `body`: bytes as they are, anything else as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", BASE.port, timeout=60)
    sent = {"X-API-Key": KEY} if headers is None else headers
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    if body is not None:
        sent = {"Content-Type": "application/json", **sent}
    connection.request(method, path, body=body, headers=sent)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    if response.status >= 400:
        check_error(f"{method} {path[:80]} {body and body[:80]}", response.status, text)
    return response.status, response.headers, json.loads(text) if text else None


def check_error(what, status, text):
    try:
        error = json.loads(text)
    except ValueError:
        raise AssertionError(f"{what}: {status} is not JSON: {text[:200]}") from None
    assert type(error.get("code")) is int and error["code"] == status, (what, status, error)
    assert isinstance(error.get("message"), str) and error["message"], (what, error)
    assert status not in (500, 502, 503, 504), (what, error)


def expect(statuses, method, path, body=None, headers=None):
    if isinstance(statuses, int):
        statuses = (statuses,)
    status, _, answer = ask(method, path, body, headers)
    assert status in statuses, (method, path[:80], str(body)[:80], status, answer)
    return answer


# Keys: both spellings in both headers; before anything else is looked at.
for key in (KEY, TWIN):
    expect(200, "GET", "/v2/sandboxes", headers={"X-API-Key": key})
    expect(200, "GET", "/v2/sandboxes", headers={"x-api-key": key})
    expect(200, "GET", "/v2/sandboxes", headers={"Authorization": f"Bearer {key}"})
wrong = [{}, {"X-API-Key": ""}, {"X-API-Key": KEY[4:]}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": KEY + "0"},
         {"X-API-Key": "e2b_" + "0" * 40}, {"X-API-Key": KEY.upper()}, {"X-API-Key": "x" * 10_000},
         {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer "}]
for headers in wrong:
    expect(401, "GET", "/v2/sandboxes", headers=headers)
    expect(401, "GET", "/sandboxes/no..such", headers=headers)
    expect(401, "POST", "/v2/sandboxes", b"{", headers=headers)
assert ask("GET", "/v2/sandboxes", headers={"X-API-Key": KEY})[2] == []

# Bodies of a create.
for body in [
    b"", b"{", b"null", b"[]", b'"base"', b"\x00", b"\xff\xfe", b'{"templateID":"base"', b"{}" * 2,
    {}, {"templateID": None}, {"templateID": 1}, {"templateID": ["base"]}, {"templateID": ""},
    {"templateID": "a b"}, {"templateID": "../../etc/passwd"}, {"templateID": "base\x00"},
    {"templateID": "x" * 10_000}, {"templateID": "a/b/c/d"},
    {"templateID": "base", "timeout": "60"}, {"templateID": "base", "timeout": 1.5},
    {"templateID": "base", "timeout": 0}, {"templateID": "base", "timeout": -1},
    {"templateID": "base", "timeout": 10**12}, {"templateID": "base", "timeout": 2**31 - 1},
    {"templateID": "base", "timeout": DAYS}, {"templateID": "base", "timeout": [60]},
    {"templateID": "base", "metadata": ["a"]}, {"templateID": "base", "metadata": {"a": 1}},
    {"templateID": "base", "envVars": "A=1"}, {"templateID": "base", "envVars": {"A": None}},
    {"templateID": "base", "autoPause": "yes"}, {"templateID": "base", "autoResume": True},
    {"templateID": "base", "autoPauseMemory": False},
    {"templateID": "base", "network": {"denyOut": ["0.0.0.0/0"]}},
    {"templateID": "base", "volumeMounts": [{"name": "v", "path": "/v"}]},
]:
    expect(400, "POST", "/sandboxes", body)
    expect(400, "POST", "/v2/sandboxes", body)
for name in ("nosuch", "base:nosuch", UNKNOWN):
    expect(404, "POST", "/v2/sandboxes", {"templateID": name})
expect((400, 413), "POST", "/v2/sandboxes", b'{"templateID":"' + b"x" * (9 << 20) + b'"}')

# Paths and ids. Nothing below may reach a file or another route.
for name in ("..", ".", "%2e%2e", "..%2f..", "%00", "a%00b", "%ff", "A" * 10_000, "%20", "a'b", "ids?x=%zz"):
    expect((400, 404, 405, 414, 431), "GET", f"/sandboxes/{name}")
    expect((400, 404, 405, 414, 431), "POST", f"/sandboxes/{name}/pause", {})
    expect((400, 404, 405, 414, 431), "POST", f"/v2/sandboxes/{name}/connect", {})
for method, path, body in [
    ("GET", "", None), ("DELETE", "", None), ("POST", "/pause", None), ("POST", "/pause", {}),
    ("POST", "/connect", {"timeout": 60}), ("POST", "/resume", {}), ("POST", "/timeout", {"timeout": 60}),
    ("POST", "/refreshes", {}),
]:
    expect(404, method, f"/sandboxes/{UNKNOWN}{path}", body)
expect(404, "POST", f"/v2/sandboxes/{UNKNOWN}/connect", {})
expect(400, "POST", f"/v2/sandboxes/{UNKNOWN}/connect", {"timeout": DAYS})
for method, path in [("GET", "/"), ("GET", "/nosuch"), ("POST", "/sandboxes/a/b/c"), ("PUT", "/nosuch/../x")]:
    expect(404, method, path)
expect((400, 405), "PATCH", "/sandboxes")
for query in ("limit=0", "limit=101", "limit=x", "limit=-1", "state=dead", "order=up", "nextToken=%00",
              "startedAfter=yesterday", "metadata=", "metadata=a"):
    expect(400, "GET", f"/v2/sandboxes?{query}")

# Requests that are hardly HTTP must not end the server.
for raw in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
            b"POST /sandboxes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET / HTTP/1.1\r\n" + b"A: " + b"a" * 1_000_000 + b"\r\n\r\n"):
    probe = socket.create_connection(("127.0.0.1", BASE.port), timeout=10)
    try:
        probe.sendall(raw)
        probe.shutdown(socket.SHUT_WR)
        while probe.recv(65536):
            pass
    except TimeoutError:
        raise AssertionError(f"neither an answer nor an end after {raw[:40]}") from None
    except OSError:  # It may hang up at any of these steps.
        pass
    probe.close()
assert expect(200, "GET", "/v2/sandboxes") == [], "something was created by a refused request"

# Strange but allowed values come back as they were; what a process cannot hold is refused.
metadata = {"..": "../..", "quote\"'": "a\nb", "long": "x" * 10_000, "": "empty", "ü": "日本", "nul": "a\x00b"}
made = expect(201, "POST", "/v2/sandboxes", {"templateID": "base", "timeout": 600, "metadata": metadata})
one = made["sandboxID"]
assert expect(200, "GET", f"/sandboxes/{one}")["metadata"] == metadata
for field in ("templateID", "sandboxID", "clientID", "envdVersion", "envdAccessToken", "domain"):
    assert isinstance(made[field], str), (field, made)

# States. Chunked bodies are what the JavaScript SDK sends.
path = f"/sandboxes/{one}"
for body in (b"{", b"[]", {"memory": "no"}, {"memory": 1}):
    expect(400, "POST", path + "/pause", body)
for body in ({}, {"timeout": -1}, {"timeout": "1"}, {"timeout": 10**12}, {"timeout": DAYS}, b"", b"{"):
    expect(400, "POST", path + "/connect", body)
for body in ({}, {"timeout": -1}, {"timeout": "1"}, {"timeout": 10**12}, b"", b"[]"):
    expect(400, "POST", path + "/timeout", body)
expect(400, "POST", path + "/refreshes", {"duration": 3601})
detail = expect(200, "GET", path)
assert detail["state"] == "running", detail
expect(200, "POST", path + "/connect", {"timeout": 1})
assert expect(200, "GET", path)["endAt"] == detail["endAt"], "connect only extends"
expect(204, "POST", path + "/timeout", {"timeout": 500})
assert expect(200, "GET", path)["endAt"] != detail["endAt"]
expect(409, "POST", path + "/resume", {})

connection = http.client.HTTPConnection("127.0.0.1", BASE.port, timeout=60)
connection.request("POST", path + "/pause", body=iter([b"{", b"}"]), encode_chunked=True, headers={
    "X-API-Key": KEY, "Content-Type": "application/json", "Transfer-Encoding": "chunked"})
assert connection.getresponse().status == 204
expect(409, "POST", path + "/pause", {})
expect(409, "POST", path + "/pause")
detail = expect(200, "GET", path)
assert detail["state"] == "paused" and detail["metadata"] == metadata, detail
assert [item["sandboxID"] for item in expect(200, "GET", "/v2/sandboxes?state=paused")] == [one]
assert expect(200, "GET", "/v2/sandboxes?state=running") == []
assert expect(200, "GET", "/sandboxes") == [], "the old list holds running ones only"
expect(404, "POST", path + "/timeout", {"timeout": 60})
again = expect(201, "POST", f"/v2{path}/connect")
assert again["envdAccessToken"] == made["envdAccessToken"], "the token is the same for ever"
expect(204, "POST", path + "/pause")
expect(201, "POST", path + "/resume", {"timeout": 60})
expect(204, "POST", path + "/pause", {"memory": False})
assert expect(200, "GET", path)["pauseMode"] == "filesystem"

expect(204, "DELETE", path)
for method, suffix, body in [
    ("DELETE", "", None), ("GET", "", None), ("POST", "/pause", {}), ("POST", "/connect", {"timeout": 60}),
    ("POST", "/resume", {}), ("POST", "/timeout", {"timeout": 60}),
]:
    expect(404, method, path + suffix, body)
expect(404, "POST", f"/v2{path}/connect", {})
assert expect(200, "GET", "/v2/sandboxes") == []
