"""A client told to get out by any means. Run as a program: tries on standard input, answers on standard output.

    python inside.py [SECONDS FOR EACH TRY]

    {"row": ["kind", address, port, ...], ...}  becomes  {"row": what came back, as text; "" for nothing}

`["hold", ...]` rows are opened first and used only after a second line of input has come.
"""

import contextlib
import json
import os
import socket
import ssl
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor

TIMEOUT_S = float(sys.argv[1]) if len(sys.argv) > 1 else 8.0
QUESTION = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x08evidence\x04test\x00\x00\x01\x00\x01"
SO_MARK = 36
IP_OPTIONS = 4


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def dial(address, port):
    return socket.create_connection((address, port), TIMEOUT_S)


def hello(link, name):
    """The first bytes that answer a ClientHello: "tls" from a server, "alert 49" from the door."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    link.sendall(outgoing.read())
    data = link.recv(4096)
    return "tls" if data[:1] == b"\x16" else f"alert {data[6]}" if data[:1] == b"\x15" else ""


def tls(address, port, name=None):
    with dial(address, port) as link:
        return hello(link, name)


def get(link, host, path="/"):
    link.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    data = b""
    with contextlib.suppress(OSError):
        while more := link.recv(4096):
            data += more
    return " ".join([*data[9:12].decode().split(), *(["outside"] if b"outside says" in data else [])])


def http(address, port, host="outside.test"):
    with dial(address, port) as link:
        return get(link, host)


def https(address, port, host, authority):
    """A whole request, with the certificate verified."""
    with dial(address, port) as link:
        return secure(link, host, authority)


def secure(link, host, authority):
    context = ssl.create_default_context(cafile=authority)
    with context.wrap_socket(link, server_hostname=host) as wire:
        return get(wire, host)


def connect(address, port, target, authority=None):
    """Through an explicit door."""
    with dial(address, port) as link:
        link.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        status = link.recv(4096)[9:12].decode()
        if status != "200" or authority is None:
            return status
        return secure(link, target.rpartition(":")[0], authority)


def banner(address, port):
    with dial(address, port) as link:
        return link.recv(100).decode(errors="replace")


def speak(address, port):
    """Sends first, as an SSH client may."""
    with dial(address, port) as link:
        link.sendall(b"SSH-2.0-inside\r\n")
        return link.recv(100).decode(errors="replace")


def udp(address, port, size=20, source=0):
    with socket.socket(family(address), socket.SOCK_DGRAM) as link:
        link.settimeout(TIMEOUT_S)
        link.bind(("", source))
        link.connect((address, port))
        link.send(b"x" * size)
        return link.recv(100).decode(errors="replace")


def ask(address, port=53):
    with socket.socket(family(address), socket.SOCK_DGRAM) as link:
        link.settimeout(TIMEOUT_S)
        link.connect((address, port))
        link.send(QUESTION)
        return "dns" if link.recv(500)[:2] == QUESTION[:2] else ""


def ask_tcp(address, port=53):
    with dial(address, port) as link:
        link.sendall(struct.pack("!H", len(QUESTION)) + QUESTION)
        return "dns" if link.recv(500)[2:4] == QUESTION[:2] else ""


def shout(address, port):
    """Multicast: nobody answers."""
    with socket.socket(family(address), socket.SOCK_DGRAM) as link:
        link.sendto(QUESTION, (address, port))
    return ""


def ping(address, _=0):
    six = ":" in address
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    with socket.socket(family(address), socket.SOCK_DGRAM, protocol) as link:
        link.settimeout(TIMEOUT_S)
        link.connect((address, 0))
        link.send(struct.pack("!BBHHH", 128 if six else 8, 0, 0, 7, 1) + b"evidence")
        return "echo" if link.recv(100).endswith(b"evidence") else ""


# With CAP_NET_RAW


def raw(address, protocol):
    """Another protocol than TCP and UDP."""
    with socket.socket(family(address), socket.SOCK_RAW, protocol) as link:
        link.sendto(b"evidence" * 4, (address, 0))
    return ""


def options(address, port, through):
    """A loose source route (RFC 791, 3.1): the packet goes to `through`, and should go on to the address from there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        route = b"\x83\x07\x04" + socket.inet_aton(through) + b"\x00"
        link.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, route)
        link.sendto(QUESTION, (address, port))
    return ""


def forged(address, port, source):
    """A whole datagram of one's own making."""
    body = struct.pack("!HHHH", 5353, port, 16, 0) + b"evidence"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28 + 8, 1, 0, 64, 17, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as link:
        link.sendto(head + socket.inet_aton(source) + socket.inet_aton(address) + body, (address, 0))
    return ""


def fragments(address, port, source):
    """A datagram in two parts, of which only the first has a port."""
    body = struct.pack("!HHHH", 5353, port, 24, 0) + b"evidence" * 2
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as link:
        for at, more, part in ((1, 0, body[8:]), (0, 0x2000, body[:8])):
            head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(part), 77, more | at, 64, 17, 0)
            link.sendto(head + socket.inet_aton(source) + socket.inet_aton(address) + part, (address, 0))
    return ""


def extended(address, port, kind):
    """A datagram behind an IPv6 extension header (RFC 8200, 4)."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as link:
        if kind == "destination":
            link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, b"\x11\x00\x01\x04" + bytes(4))
        else:
            link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, b"\x11\x00\x01\x04" + bytes(4))
        link.sendto(QUESTION, (address, port))
    return ""


def marked(address, port, mark):
    with socket.socket() as link:
        link.settimeout(TIMEOUT_S)
        link.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        link.connect((address, port))
        return hello(link, None)


def neighbour(address, _=0):
    """Data in a neighbour solicitation (RFC 4861), which the kernel itself may send."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as link:
        link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
        link.sendto(b"\x87\x00\x00\x00" + bytes(4) + socket.inet_pton(socket.AF_INET6, address), (address, 0))
    return ""


def scan(address, port):
    """TCP to an address, whatever comes back."""
    with dial(address, port) as link:
        return link.recv(10).decode(errors="replace") or "connected"


def from_port(address, port, source):
    """Out from the port on which others may come in."""
    with socket.create_connection((address, port), TIMEOUT_S, source_address=("", source)) as link:
        return hello(link, None)


KINDS = {name: thing for name, thing in list(globals().items()) if callable(thing) and name.islower()}


def attempt(row):
    kind, *arguments = row
    try:
        return KINDS[kind](*arguments)
    except OSError as error:
        return f"!{error}" if os.environ.get("SAY_WHY") else ""


def held(rows):
    """Connections from before the rules, used after them: what still comes back."""
    links = {}
    for name, (_, kind, address, port) in rows.items():
        if kind == "tcp":
            links[name] = dial(address, port)
            links[name].recv(4)
        else:
            links[name] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            links[name].settimeout(TIMEOUT_S)
            links[name].connect((address, port))
            links[name].send(b"before")
            links[name].recv(100)
    say(json.dumps("held"))
    sys.stdin.readline()
    time.sleep(0.3)  # what the server goes on sending must not open the way again
    answers = {}
    for name, link in links.items():
        try:
            link.send(b"after the rules, by a connection from before")
            link.settimeout(0.3)
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                answers[name] = link.recv(4096).decode(errors="replace")[:20]
                link.send(b"again")
        except OSError:
            answers[name] = ""
    return answers


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main():
    rows = json.loads(sys.stdin.readline())
    holding = {name: row for name, row in rows.items() if row[0] == "hold"}
    if holding:
        say(json.dumps(held(holding)))
        return
    with ThreadPoolExecutor(len(rows)) as pool:
        say(json.dumps(dict(zip(rows, pool.map(attempt, rows.values()), strict=True))))


if __name__ == "__main__":
    main()
