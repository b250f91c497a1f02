"""`edgeguard dev`: a developer's proxy that follows a folder, explains itself and runs commands."""

import contextlib
import http.client
import json
import re
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeguard.demo.client import Client
from edgeguard.demo.tokens import make_certificates
from tests.e2e.kit import NAMES, Recorder, edgeguard, plain_environment, wait_until
from tests.ports import free_port

HEAD = "edgeguard: 1\nmodule: dev\nowner: me\nrules:\n"


def rule(host, port, *more):
    lines = [f"  - id: {host.split('.')[0]}", "    effect: allow", f'    to: ["{host}:{port}"]']
    return "\n".join([*lines, '    resolves_to: ["127.0.0.0/8"]', *more, ""])


class Developer:
    """A running `edgeguard dev` over a policy folder."""

    def __init__(self, folder):
        self.folder = folder
        _, leaf = make_certificates(folder, [*NAMES])
        self.upstream = Recorder(leaf, folder)
        self.tls, self.http = self.upstream.tls, self.upstream.http
        table = "\n".join(f'"{name}" = ["127.0.0.1"]' for name in NAMES)
        (folder / "dev.toml").write_text(
            'environment = "dev"\n[upstream]\nca_file = "upstream-ca.pem"\n'
            f'[resolver]\nmode = "static"\n[resolver.static]\n{table}\n'
        )
        (folder / "policy").mkdir()
        self.log = folder / "dev.log"
        self.port = free_port()

    def write(self, *rules):
        file = self.folder / "policy/dev.yaml"
        temporary = self.folder / "dev.yaml"
        temporary.write_text(HEAD + "\n".join(rules))
        temporary.replace(file)

    def start(self):
        self.output = self.log.open("wb")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "edgeguard", "dev", "policy", "--config", "dev.toml"),
                *("--listen", f"127.0.0.1:{self.port}", "--state", "state"),
            ],
            cwd=self.folder,
            env={**plain_environment(), "COLUMNS": "200"},
            stdout=self.output,
            stderr=self.output,
        )
        wait_until(lambda: "listens at" in self.said() or self.process.poll() is not None, "dev to listen")
        assert self.process.poll() is None, self.said()
        return Client(self.port, self.folder / "state/authorities.pem")

    def said(self):
        return self.log.read_text()

    def after(self, change, words):
        """Makes a change and waits until the proxy says `words`; returns what it said since."""
        start = len(self.said())
        change()
        wait_until(lambda: words in self.said()[start:], f"{words!r} in {self.said()[start:]}")
        return self.said()[start:]

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(15)
        finally:
            self.process.kill()
            self.process.wait()
            self.output.close()
            self.upstream.close()


@pytest.fixture(scope="module")
def developer(tmp_path_factory):
    developer = Developer(tmp_path_factory.mktemp("dev"))
    developer.write(rule("tunnel.example", developer.tls), rule("git.example", developer.tls))
    developer.client = developer.start()
    yield developer
    assert developer.stop() == 0
    assert "Traceback" not in developer.said()


@contextlib.contextmanager
def kept(developer, host):
    """A tunnel that stays open; yields a function that sends one more request through it."""
    context = ssl.create_default_context(cafile=developer.folder / "state/authorities.pem")
    connection = http.client.HTTPSConnection("127.0.0.1", developer.port, context=context, timeout=5)
    connection.set_tunnel(host, developer.tls)
    connection.connect()
    connection.auto_open = 0  # a lost connection is an error, never opened again

    def ask():
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read()
        return response.status

    yield ask
    connection.close()


def test_an_edit_keeps_open_tunnels_that_stay_allowed_and_closes_the_others(developer):
    with kept(developer, "tunnel.example") as stays, kept(developer, "git.example") as goes:
        assert (stays(), goes()) == (200, 200)
        connections = developer.upstream.connections
        edit = (rule("tunnel.example", developer.tls), rule("later.example", developer.tls))
        developer.after(lambda: developer.write(*edit), "policy 2 rules")

        def later():
            return developer.client.https("later.example", developer.tls).status == 200

        wait_until(later, "the edit to take effect", within_s=5)
        assert stays() == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            goes()
        assert developer.client.https("git.example", developer.tls).reason == "host_not_allowed"
        # The tunnel that stayed is the one that was there: only later.example was dialled anew.
        assert developer.upstream.connections == connections + 1


def test_a_mistake_is_shown_and_changes_nothing(developer):
    developer.write(rule("tunnel.example", developer.tls))
    wait_until(lambda: developer.client.https("tunnel.example", developer.tls).status == 200, "tunnel")
    with kept(developer, "tunnel.example") as stays:
        assert stays() == 200
        wrong = rule("tunnel.example", developer.tls, "    efect: allow")
        said = developer.after(lambda: developer.write(wrong), "not applied")
        assert re.search(r"dev\.yaml:\d+:\d+.*efect", said), said
        assert stays() == 200
        assert developer.client.https("tunnel.example", developer.tls).status == 200
        mended = rule("tunnel.example", developer.tls)
        developer.after(
            lambda: developer.write(mended, rule("later.example", developer.tls)), "policy 2 rules"
        )
        assert stays() == 200


def test_a_rule_that_a_refusal_suggests_makes_the_request_pass(developer):
    """Host, plain HTTP, method and path; all suggestions together are one valid policy."""
    client, tls, plain = developer.client, developer.tls, developer.http
    inspected = rule("site.example", tls, "    methods: [GET]", '    paths: ["/ok/**"]')
    developer.after(lambda: developer.write(inspected), "policy 1 rules")
    wait_until(lambda: client.https("site.example", tls, "/ok/x").status == 200, "site")
    requests = (
        lambda: client.https("evil.example", tls),
        lambda: client.http("plain.example", plain, "/status?q=1"),
        lambda: client.https("site.example", tls, '/other/"quoted"/%7Euser'),
        lambda: client.https("site.example", tls, "/ok/x", method="DELETE"),
    )
    rules = []
    for request in requests:
        developer.after(lambda request=request: _refused(request()), "would allow just that")
        time.sleep(0.2)  # the rest of it
        said = developer.said()[developer.said().rindex("would allow just that") :]
        lines = [line for line in said.splitlines()[1:] if line.startswith("  ")]
        # The upstreams of this test live on loopback, which no suggestion opens by itself.
        rules.append("\n".join([*lines, '    resolves_to: ["127.0.0.0/8"]', ""]))
    developer.after(lambda: developer.write(inspected, *rules), "policy 5 rules")
    wait_until(lambda: requests[0]().status == 200, "the suggestions to take effect")
    assert [request().status for request in requests] == [200, 200, 200, 200]
    # And nothing more than that.
    assert client.https("site.example", tls, "/other/x").reason == "path_not_allowed"
    assert client.https("later.example", tls).reason == "host_not_allowed"


def _refused(seen):
    assert seen.status == 403, seen


def dev(developer, *words, state="command-state", env=None):
    return edgeguard(
        *("dev", "policy", "--config", "dev.toml", "--state", state, "-q", "--", *words),
        cwd=developer.folder,
        env=env,
    )


def test_a_command_gets_the_proxy_and_the_authorities_and_gives_its_exit_code(developer):
    developer.write(rule("site.example", developer.tls, '    paths: ["/ok/**"]'))
    program = (
        "import json, os, sys, urllib.request\n"
        f"body = urllib.request.urlopen('https://site.example:{developer.tls}/ok/page').read()\n"
        "print(json.dumps([json.loads(body)['path'], dict(os.environ)]))\n"
        "sys.exit(7)\n"
    )
    done = dev(developer, sys.executable, "-c", program, env={"NO_PROXY": "*"})
    assert done.returncode == 7, done.stderr
    path, environment = json.loads(done.stdout)  # nothing of ours on standard output
    assert path == "/ok/page"
    proxy = environment["HTTPS_PROXY"]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", proxy)
    assert {environment[name] for name in ("HTTP_PROXY", "https_proxy", "http_proxy", "ALL_PROXY")} == {proxy}
    assert environment["NO_PROXY"] == ""
    authorities = {
        environment[name]
        for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "NODE_EXTRA_CA_CERTS")
    }
    assert len(authorities) == 1
    assert Path(authorities.pop()).is_file()


def test_a_command_that_is_refused_sees_why(developer, needs):
    curl = needs("curl")
    done = dev(developer, curl, "-sS", f"https://evil.example:{developer.tls}/")
    assert done.returncode not in {0, 1}
    assert "response 403" in done.stderr
    assert "host_not_allowed" in done.stderr
    assert "id: allow-evil-example" in done.stderr


def test_a_command_that_does_not_exist(developer):
    done = dev(developer, "no-such-command")
    assert done.returncode == 127
    assert "no-such-command" in done.stderr
    assert "Traceback" not in done.stderr
