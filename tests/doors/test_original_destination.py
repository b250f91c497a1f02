"""The original destination, as real packet filters leave it: REDIRECT for both families, TPROXY, none."""

import os
import subprocess
import sys

import pytest

SCRIPT = """\
import socket, subprocess
from edgeguard.proxy.accepting import original_destination
from edgeguard.proxy.listeners import bind
from edgeguard.settings import Settings

def run(*words, text=None):
    subprocess.run(words, check=True, input=text, text=True)

def seen(address, listen, source=None):
    (listener,) = bind(Settings.model_validate({"environment": "dev", "listen": {"address": "", "transparent": listen}}))
    with listener.socket as door:
        door.listen(1)
        door.settimeout(5)
        with socket.create_connection(address, 5):
            connection, _ = door.accept()
            with connection:
                return original_destination(connection)

run("ip", "link", "set", "lo", "up")
run("ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1")
run("ip", "link", "set", "d1", "up")
run("ip", "link", "set", "d0", "up")
run("ip", "addr", "add", "198.51.100.1/24", "dev", "d0")
run("ip", "-6", "addr", "add", "2001:db8::1/64", "dev", "d0", "nodad")
print(seen(("127.0.0.1", 3130), "127.0.0.1:3130"))
run("nft", "-f", "-", text=\"\"\"
table inet edgeguard {
  chain out {
    type nat hook output priority -100;
    oif lo return
    tcp dport { 80, 443 } redirect to :3130
  }
}
\"\"\")
print(seen(("198.51.100.7", 443), "127.0.0.1:3130"))
print(seen(("2001:db8::7", 80), "[::1]:3130"))
run("nft", "delete", "table", "inet", "edgeguard")
run("ip", "rule", "add", "fwmark", "1", "lookup", "100")
run("ip", "route", "add", "local", "default", "dev", "lo", "table", "100")
run("nft", "-f", "-", text=\"\"\"
table ip edgeguard {
  chain sent {
    type route hook output priority mangle;
    ip daddr 203.0.113.0/24 tcp dport 443 meta mark set 1
  }
  chain came {
    type filter hook prerouting priority mangle;
    ip daddr 203.0.113.0/24 tcp dport 443 tproxy to 127.0.0.1:3131 accept
  }
}
\"\"\")
run("ip", "route", "add", "203.0.113.0/24", "dev", "d0")
print(seen(("203.0.113.7", 443), "127.0.0.1:3131"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces of one's own are for root")
def test_what_packet_filters_leave(needs):
    needs("nft")
    needs("ip")
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "('127.0.0.1', 3130)",
        "('198.51.100.7', 443)",
        "('2001:db8::7', 80)",
        "('203.0.113.7', 443)",
    ], done.stderr[-2000:]
