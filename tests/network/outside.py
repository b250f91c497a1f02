"""What stands outside: servers for every way out, and a witness of each packet that arrives. Run as a program.

    python outside.py CERTIFICATE WITNESS_FILE INTERFACE

The witness writes one JSON line for each packet that comes in: [destination, protocol, port, options, bytes].
"""

import json
import socket
import ssl
import struct
import sys
import threading
import time
from pathlib import Path

HELLO = b"outside says hello"
LONG_HEADER = b"\xc0"
"""How an answer of QUIC begins (RFC 8999, 5.1)."""
TLS_PORTS = (443, 853, 993)
HTTP_PORTS = (80, 8443)
UDP_PORTS = (53, 443, 853, 7778)
TICK_PORT = 7777


def witness(file, interface):
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    link.bind((interface, 0))
    with Path(file).open("w", buffering=1) as out:
        while True:
            frame, (_, _, kind, *_) = link.recvfrom(65_535)
            if kind == socket.PACKET_OUTGOING:
                continue
            if (seen := packet(frame[12:14], frame[14:])) is not None:
                out.write(json.dumps(seen) + "\n")


def packet(ethertype, data):
    if ethertype == b"\x08\x00":
        size = (data[0] & 15) * 4
        fragment = struct.unpack("!H", data[6:8])[0] & 0x1FFF
        protocol, to, body = data[9], socket.inet_ntop(socket.AF_INET, data[16:20]), data[size:]
        options = size > 20
    elif ethertype == b"\x86\xdd":
        protocol, to, body, fragment = data[6], socket.inet_ntop(socket.AF_INET6, data[24:40]), data[40:], 0
        options = protocol in {0, 43, 44, 60}
    else:
        return None
    port = struct.unpack("!H", body[2:4])[0] if protocol in {6, 17} and not fragment else 0
    payload = len(body) - ((body[12] >> 4) * 4 if protocol == 6 else 8)
    return [to, protocol, port, options, payload]


def tcp(port, talk):
    for family, address in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(50)
        threading.Thread(target=accept, args=(listener, talk), daemon=True).start()


def accept(listener, talk):
    while True:
        link, _ = listener.accept()
        threading.Thread(target=guarded, args=(talk, link), daemon=True).start()


def guarded(talk, link):
    try:
        with link:
            link.settimeout(10)
            talk(link)
    except OSError:
        pass


def http(link):
    if link.recv(4096):
        link.sendall(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(HELLO) + HELLO
        )


def banner(link):
    link.sendall(b"SSH-2.0-outside\r\n")
    link.recv(100)


def dns_tcp(link):
    size = struct.unpack("!H", link.recv(2))[0]
    answer = dns(link.recv(size))
    link.sendall(struct.pack("!H", len(answer)) + answer)


def dns(question):
    return question[:2] + b"\x81\x80" + question[4:]


def tick(link):
    for _ in range(200):
        link.sendall(b"tick")
        time.sleep(0.05)


PACKET_INFO = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_PKTINFO, socket.IP_PKTINFO),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, socket.IPV6_PKTINFO),
}


def udp(port):
    for family, address in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
        link = socket.socket(family, socket.SOCK_DGRAM)
        level, option, _ = PACKET_INFO[family]
        link.setsockopt(level, option, 1)
        if family == socket.AF_INET6:
            link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        link.bind((address, port))
        threading.Thread(target=answer, args=(link, port, family), daemon=True).start()


def answer(link, port, family):
    """From the address that was asked, since the asking sockets are connected."""
    level, _, kind = PACKET_INFO[family]
    while True:
        data, extra, _, peer = link.recvmsg(65_535, 256)
        told = next(value for _, found, value in extra if found == kind)
        source = bytes(4) + told[8:12] + bytes(4) if family == socket.AF_INET else told[:16] + bytes(4)
        link.sendmsg([dns(data) if port == 53 else LONG_HEADER + HELLO], [(level, kind, source)], 0, peer)


def main(certificate, file, interface):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def tls(link):
        with context.wrap_socket(link, server_side=True) as secure:
            http(secure)

    threading.Thread(target=witness, args=(file, interface), daemon=True).start()
    for port in TLS_PORTS:
        tcp(port, tls)
    for port in HTTP_PORTS:
        tcp(port, http)
    for port in (22, 25):
        tcp(port, banner)
    tcp(53, dns_tcp)
    tcp(TICK_PORT, tick)
    for port in UDP_PORTS:
        udp(port)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
