"""Runs inside a sandbox: holds state of every kind and tells about it.

    holder.py PORT

POST /<module>.<function> with a JSON object of arguments answers what that function returns. The
modules beside this file hold one kind of state each.
"""

import http.server
import importlib
import json
import os
import sys
import traceback


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            module, function = self.path.strip("/").split(".")
            call = getattr(importlib.import_module(module), function)
            status, answer = 200, call(**json.loads(body or b"{}"))
        except Exception as error:
            # What was wrong and where, in one line.
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{os.path.basename(place.filename)}:{place.lineno}"
            status, answer = 500, {"message": f"{error!r} in {where}"}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """Clients are cut off by every pause."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    Server(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
