"""Upstreams for what real clients do besides a GET: streams, ranges, large bodies, redirects, gRPC."""

import gzip
import ssl
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc

LARGE = 200_000_000
RANGE = bytes(range(256)) * 4096
PAUSE_S = 0.6


class Flows(BaseHTTPRequestHandler):
    """Each path is one behaviour."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path))
        getattr(self, "_" + self.path.rsplit("/", 1)[-1], self._hello)()

    do_HEAD = do_GET

    def _reply(self, body: bytes, status: int = 200, **fields: str) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hello(self) -> None:
        self._reply(b"hello")

    def _gzip(self) -> None:
        self._reply(gzip.compress(b"squeezed" * 1000), Content_Encoding="gzip")

    def _range(self) -> None:
        first, last = self.headers["range"].removeprefix("bytes=").split("-")
        part = RANGE[int(first) : int(last) + 1]
        self._reply(part, 206, Content_Range=f"bytes {first}-{last}/{len(RANGE)}")

    def _redirect(self) -> None:
        self._reply(b"", 302, Location=f"https://evil.example:{self.server.server_port}/ok/hello")

    def _poll(self) -> None:
        time.sleep(PAUSE_S)
        self._reply(b"at last")

    def _events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(3):
            event = b"data: %d\n\n" % number
            self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
            self.wfile.flush()
            time.sleep(PAUSE_S / 2)
        self.wfile.write(b"0\r\n\r\n")

    def _large(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(LARGE))
        self.end_headers()
        piece = b"x" * 1_000_000
        for _ in range(LARGE // len(piece)):
            self.wfile.write(piece)

    def do_POST(self) -> None:
        self.server.requests.append((self.command, self.path))
        size = 0
        if self.headers.get("transfer-encoding") == "chunked":
            while length := int(self.rfile.readline(), 16):
                size += len(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("content-length") or 0)
            while left:
                piece = self.rfile.read(min(left, 1 << 20))
                size += len(piece)
                left -= len(piece)
        self._reply(b"%d" % size)

    do_PUT = do_POST

    def log_message(self, *args: object) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    """The TLS server of these paths; remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Flows)
        self.requests: list[tuple[str, str]] = []

    def begin(self, certificate: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients of these tests break off on purpose."""


def grpc_server(port: int, certificate: Path) -> None:
    """Unary, server streaming and an error with trailers; bytes as they are, so that no schema is needed."""

    def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("kind", "unary"),))
        return request

    def count(request: bytes, context: grpc.ServicerContext):
        for number in range(int(request)):
            yield b"%d" % number
            time.sleep(0.05)
        context.set_trailing_metadata((("kind", "stream"),))

    def fails(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
        return b""

    def talk(requests, context: grpc.ServicerContext):
        for request in requests:
            yield b"heard " + request

    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Fails": grpc.unary_unary_rpc_method_handler(fails),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Secret": grpc.unary_unary_rpc_method_handler(echo),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    pem = certificate.read_bytes()
    key, _, chain = pem.partition(b"-----BEGIN CERTIFICATE-----")
    if not key.strip():
        at = pem.index(b"-----BEGIN PRIVATE KEY-----")
        key, chain = pem[at:], pem[len(b"-----BEGIN CERTIFICATE-----") : at]
    credentials = grpc.ssl_server_credentials(((key, b"-----BEGIN CERTIFICATE-----" + chain),))
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    grpc_server(int(sys.argv[1]), Path(sys.argv[2]))
