"""Three network namespaces in a row, a real proxy in the middle, and servers for every way out at the end.

    client (10.9.0.2) ── middle (10.9.0.1, 10.8.0.1) ── outside (10.8.0.2 and all destinations)

In the shape of a sidecar the workload lives in the middle, beside the proxy, and the client is a neighbour.
In the shape of a gateway the client routes through the middle. Namespaces belong to processes that die
with this one, so that nothing is left behind, and no name can collide.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, Self

from edgeguard.demo.tokens import make_certificates
from edgeguard.dev import workshop
from tests.e2e.kit import plain_environment, wait_until

HERE: Final = Path(__file__).parent
PROXY: Final = 65_532
WORKLOAD: Final = 1_000
BUNDLES: Final = 8181
RESOLVER: Final = "10.53.0.53"
NAMES: Final = {
    "approved.test": "93.184.216.3",
    "bypass.test": "93.184.216.5",
    "evil.test": "93.184.216.2",
}
DESTINATIONS: Final = (
    *(f"93.184.216.{n}" for n in range(2, 40)),
    "9.9.9.9",
    RESOLVER,
    "169.254.169.254",
    "10.1.2.3",
    "172.16.5.5",
    "192.168.7.7",
    "fd00:ec2::254",
    "2606:4700::12",
    "2606:4700::13",
    "2606:4700::14",
    "2606:4700::15",
    "2606:4700::53",
)

POLICY: Final = """\
edgeguard: 1
module: network
owner: tests
rules:
  - {id: approved, effect: allow, to: ["approved.test:443", "bypass.test:443"]}
  - {id: plain, effect: allow, to: ["approved.test:80"], protocol: http}
"""

CONFIG: Final = """\
environment = "prod"
[listen]
{listen}
[trust]
root = "root.msgpack"
state_dir = "{folder}/state"
[sync]
urls = ["http://127.0.0.1:{bundles}/"]
poll_s = 0.5
long_poll_s = 0
[identity]
{identity}
[resolver]
mode = "servers"
servers = ["{resolver}"]
[resolver.static]
{names}
[upstream]
ca_file = "{authority}"
[evidence]
log = "{folder}/decisions.jsonl"
[admin]
address = "{admin}"
[bounds]
head_s = 0.6
hello_s = 0.6
server_first_s = 0.2
"""


class Space:
    """A network namespace."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        holder = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", "-n", "sleep", "infinity"])
        stack.callback(self._end, holder)
        self.pid = holder.pid
        own = Path("/proc/self/ns/net").readlink()
        wait_until(lambda: Path(f"/proc/{self.pid}/ns/net").readlink() != own, "a namespace", within_s=10)
        self.run("ip", "link", "set", "lo", "up")

    def run(
        self, *words: str, text: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A program as root."""
        command = ["nsenter", "-t", str(self.pid), "-n", *words]
        done = subprocess.run(command, input=text, text=True, capture_output=True, check=False, timeout=50)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def ip(self, text: str) -> None:
        for line in text.strip().splitlines():
            self.run("ip", *line.split())

    def sysctl(self, *settings: str) -> None:
        for setting in settings:
            path, _, value = setting.partition("=")
            self.run("sh", "-c", f"echo '{value}' > /proc/sys/net/{path}")

    def start(
        self, *words: str, user: int = 0, capabilities: str = "", **options: object
    ) -> subprocess.Popen[str]:
        """A Python program as a user with no capability but these.

        It may read everywhere, since the checkout and the interpreter can lie in root's home.
        """
        added = ",".join(f"+{name}" for name in ("dac_read_search", *capabilities.split()))
        become = [
            *("setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"),
            *("--inh-caps", f"-all,{added}", "--ambient-caps", f"-all,{added}"),
            *("--bounding-set", f"-all,{added}"),
        ]
        command = ["nsenter", "-t", str(self.pid), "-n", *(become if user else ()), sys.executable, *words]
        process = subprocess.Popen(command, text=True, env=plain_environment(), **options)
        self._stack.callback(self._end, process)
        return process

    def attempts(
        self, rows: dict, *, user: int = WORKLOAD, capabilities: str = "", patience_s: float = 8.0
    ) -> dict[str, str]:
        """What came back for each try of `inside.py`."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = self.start(
            str(HERE / "inside.py"), str(patience_s), user=user, capabilities=capabilities, **pipes
        )
        answer, _ = process.communicate(json.dumps(rows) + "\n", timeout=30)
        return json.loads(answer)

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class World:
    """The namespaces, and what runs in them. Use as a context manager."""

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _begin(self) -> None:
        # Not pytest's folder: that belongs to root alone, and the proxy is somebody else.
        self.folder = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeguard-network-"))
        )
        self.folder.chmod(0o755)
        self.client, self.middle, self.outside = (Space(self._stack) for _ in range(3))
        self._wire()
        self.authority, leaf = make_certificates(self.folder, list(NAMES))
        self._witness = self.folder / "witness"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        server = self.outside.start(str(HERE / "outside.py"), str(leaf), str(self._witness), "o0", **pipes)
        self._publish()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        repository = self.folder / "workshop" / "repository"
        files = ("-m", "http.server", str(BUNDLES), "--bind", "127.0.0.1", "--directory", str(repository))
        self.middle.start(*files, **quiet)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

    def _wire(self) -> None:
        client, middle, outside = self.client, self.middle, self.outside
        middle.ip(f"link add m0 type veth peer name c0 netns {client.pid}")
        middle.ip(f"link add m1 type veth peer name o0 netns {outside.pid}")
        client.ip("""
            addr add 10.9.0.2/24 dev c0
            -6 addr add fd09::2/64 dev c0 nodad
            link set c0 up
            route add default via 10.9.0.1
        """)
        middle.ip("""
            addr add 10.9.0.1/24 dev m0
            -6 addr add fd09::1/64 dev m0 nodad
            addr add 10.8.0.1/24 dev m1
            -6 addr add fd08::1/64 dev m1 nodad
            link set m0 up
            link set m1 up
            route add default via 10.8.0.2
            -6 route add default via fd08::2
        """)
        outside.ip("""
            addr add 10.8.0.2/24 dev o0
            -6 addr add fd08::2/64 dev o0 nodad
            link set o0 up
            route add 10.9.0.0/24 via 10.8.0.1
            -6 route add fd09::/64 via fd08::1
        """)
        client.ip("-6 route add default via fd09::1")
        batch = "".join(f"addr add {a}/{128 if ':' in a else 32} dev lo\n" for a in DESTINATIONS)
        outside.run("ip", "-batch", "-", text=batch)
        middle.sysctl("ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1")
        for space in (client, middle):
            space.sysctl("ipv4/ping_group_range=0 2147483647")

    def _publish(self) -> None:
        """Bundles of environment `prod`, since a gateway listens beyond loopback."""
        before, workshop.ENVIRONMENT = workshop.ENVIRONMENT, "prod"
        try:
            made = workshop.Workshop(self.folder / "workshop")
            asyncio.run(made.ensure_root())
            asyncio.run(made.publish({"network.yaml": POLICY.encode()}))
        finally:
            workshop.ENVIRONMENT = before
        self.root = made.root_file.read_bytes()

    # The proxy

    def configure(self, name: str, *, listen: str, identity: str, admin: str = "") -> Path:
        """The configuration of a node, which it can read and no workload can."""
        folder = self.folder / name
        folder.mkdir(mode=0o755)
        names = "\n".join(f'"{host}" = ["{address}"]' for host, address in NAMES.items())
        values = {"listen": listen, "identity": identity, "admin": admin, "names": names, "folder": folder}
        text = CONFIG.format(**values, bundles=BUNDLES, authority=self.authority, resolver=RESOLVER)
        file = folder / "edgeguard.toml"
        file.write_text(text)
        (folder / "root.msgpack").write_bytes(self.root)
        os.chown(folder, PROXY, PROXY)
        return file

    def serve(self, file: Path, space: Space, door: tuple[str, int]) -> None:
        """Starts the proxy in the middle, as a user of its own, and waits until it serves somebody. Takes all rules away."""
        self.middle.run("nft", "flush", "ruleset")
        with (file.parent / "output.log").open("w") as output:
            process = self.middle.start(
                *("-m", "edgeguard", "run", "--config", str(file)),
                user=PROXY,
                cwd=file.parent,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )

        def ready() -> bool:
            said = (file.parent / "output.log").read_text()
            assert process.poll() is None, said
            asked = {"": ("connect", *door, "approved.test:443", str(self.authority))}
            return "enforces environment" in said and space.attempts(asked)[""] == "200 outside"

        wait_until(ready, "the proxy to serve", within_s=40)

    def edgeguard(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The command line in the middle, as root."""
        return self.middle.run(sys.executable, "-m", "edgeguard", *words, check=check)

    # What was seen outside

    @contextlib.contextmanager
    def watched(self):
        """A list that holds, afterwards, each packet that arrived outside meanwhile."""
        packets: list[tuple[str, int, int, bool, int]] = []
        mark = self._witness.stat().st_size
        yield packets
        time.sleep(0.15)
        with self._witness.open() as file:
            file.seek(mark)
            packets += [tuple(json.loads(line)) for line in file if line.endswith("\n")]
