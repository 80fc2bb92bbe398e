"""Runs inside a sandbox: a small HTTP server on 127.0.0.1, by hand so that nothing buffers.

    /info      the request's headers and this process
    /echo      every chunk of the body comes back before the next one is read
    /endless   a line ten times a second
    /bytes?N   N pseudo-random bytes
    /hash      SHA-256 and length of the body
    /ws        a WebSocket that echoes
"""

import base64
import hashlib
import json
import os
import socketserver
import struct
import sys
import time

requests = 0


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        global requests
        method, target, _ = self.rfile.readline().decode().split()
        self.headers = {}
        for line in iter(self.rfile.readline, b"\r\n"):
            name, value = line.decode().split(":", 1)
            self.headers[name.lower()] = value.strip()
        requests += 1
        path, _, query = target.partition("?")
        getattr(self, path.strip("/") or "info")(query)

    def head(self, status, **headers):
        lines = [f"HTTP/1.1 {status}"] + [f"{k.replace('_', '-')}: {v}" for k, v in headers.items()]
        self.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def body(self):
        """The pieces of the request's body as they come."""
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        left = int(self.headers.get("content-length", 0))
        while left:
            piece = self.rfile.read1(min(left, 65536))
            left -= len(piece)
            yield piece

    def info(self, query):
        told = {"pid": os.getpid(), "requests": requests, "query": query, "headers": self.headers}
        data = json.dumps(told).encode()
        self.head("200 OK", Content_Length=len(data), Connection="close")
        self.wfile.write(data)

    def echo(self, query):
        self.head("200 OK", Transfer_Encoding="chunked", Connection="close")
        for piece in self.body():
            self.chunk(piece)
        self.chunk(b"")

    def endless(self, query):
        self.head("200 OK", Transfer_Encoding="chunked", Connection="close")
        while True:
            self.chunk(b"tick\n")
            time.sleep(0.1)

    def bytes(self, query):
        size = int(query)
        self.head("200 OK", Content_Length=size, Connection="close")
        block = hashlib.shake_256(b"sandbase").digest(1 << 20)
        while size:
            self.wfile.write(block[:size])
            size -= len(block[:size])

    def hash(self, query):
        digest, size = hashlib.sha256(), 0
        for piece in self.body():
            digest.update(piece)
            size += len(piece)
        data = f"{digest.hexdigest()} {size}".encode()
        self.head("200 OK", Content_Length=len(data), Connection="close")
        self.wfile.write(data)

    def ws(self, query):
        key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.head("101 Switching Protocols", Upgrade="websocket", Connection="Upgrade", Sec_WebSocket_Accept=accept)
        while True:
            first, second = self.rfile.read(2)
            size = second & 127
            if size == 126:
                (size,) = struct.unpack(">H", self.rfile.read(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self.rfile.read(8))
            mask = self.rfile.read(4)
            data = self.rfile.read(size)
            repeated = (mask * (size // 4 + 1))[:size]
            data = (int.from_bytes(data) ^ int.from_bytes(repeated)).to_bytes(size)
            if size < 126:
                header = struct.pack(">BB", first, size)
            elif size < 65536:
                header = struct.pack(">BBH", first, 126, size)
            else:
                header = struct.pack(">BBQ", first, 127, size)
            self.wfile.write(header + data)
            if first & 15 == 8:
                return


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


Server(("127.0.0.1", 8000), Handler).serve_forever()
