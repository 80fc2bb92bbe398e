"""HTTP servers on every kind of address."""

import http.server
import socket
import threading
import urllib.request

servers = {}
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.server.text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


class Server6(Server):
    address_family = socket.AF_INET6


def interface_address():
    """The address that packets to the outside would have."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("8.8.8.8", 53))
        return probe.getsockname()[0]


def start(text, addresses):
    """The ports by address; every server answers `text` and its address. `interface` stands for
    the address of the interface."""
    for address in addresses:
        bound = interface_address() if address == "interface" else address
        server = (Server6 if ":" in bound else Server)((bound, 0), Handler)
        server.text = f"{text} {address}"
        dialled = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(bound, bound)
        servers[address] = (server, f"http://{dialled}:{server.server_address[1]}/")
        threading.Thread(target=server.serve_forever, daemon=True).start()
    return {address: servers[address][0].server_address[1] for address in addresses}


def ask_inside(addresses):
    """What each answers to a neighbour, or how that failed, and how many connects got no answer at
    all: a second and a third one are made then."""
    answers, hung = {}, 0
    for address in addresses:
        for _ in range(3):
            try:
                answers[address] = opener.open(servers[address][1], timeout=6).read().decode()
                break
            except OSError as error:
                answers[address] = repr(error)
                hung += 1
    return {"answers": answers, "hung": hung}
