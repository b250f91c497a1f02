"""The two upstream servers of the demo: plain HTTP and TLS, in a process of their own.

Run as `python -m edgeguard.demo.upstreams --http PORT --tls PORT --certificate FILE`. Every answer says
what arrived, so that the demo can show what was stripped on the way.
"""

import argparse
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

MAX_BODY_BYTES: Final = 1 << 20


class Echo(BaseHTTPRequestHandler):
    """Answers every request with what it saw."""

    protocol_version = "HTTP/1.1"
    server_version = "demo-upstream"
    sys_version = ""

    def _answer(self) -> None:
        length = min(int(self.headers.get("content-length") or 0), MAX_BODY_BYTES)
        body = self.rfile.read(length)
        seen = {
            "host": self.headers.get("host"),
            "method": self.command,
            "path": self.path,
            "headers": sorted(name.lower() for name in self.headers),
            "body_bytes": len(body),
        }
        reply = json.dumps(seen).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _answer  # noqa: N815 - names of the base class

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """The demo's table is the log."""


def _serve(port: int, context: ssl.SSLContext | None) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", port), Echo)
    if context is not None:
        # The handshake happens in the connection's own thread, on its first read.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    """Serves until it is terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", type=int, required=True)
    parser.add_argument("--tls", type=int, required=True)
    parser.add_argument(
        "--certificate", required=True, help="PEM file with the certificate chain and its key"
    )
    arguments = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arguments.certificate)
    _serve(arguments.http, None)
    _serve(arguments.tls, context)
    threading.Event().wait()


if __name__ == "__main__":
    main()
