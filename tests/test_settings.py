"""The configuration file: what is refused, with which words, and that the documents keep up."""

import re
from pathlib import Path

import pytest

from edgeguard.settings import Bounds, Settings, SettingsError, load_settings
from edgeguard.settings.load import MAX_FILE_BYTES, known_keys
from edgeguard.settings.reference import reference

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "config").glob("*.toml"))


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "edgeguard.toml"
        path.write_text(text)
        return path

    return write


def problems(path, environ=None):
    with pytest.raises(SettingsError) as caught:
        load_settings(path, environ or {})
    assert str(caught.value).count("\n") == len(caught.value.problems) - 1
    return [(p.line, p.key, p.message) for p in caught.value.problems]


# What is shipped and documented


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_file_loads(path):
    settings = load_settings(path, {})
    assert settings.trust.root == path.parent / "root.msgpack"


def test_four_roles_are_shipped():
    assert [path.name for path in SHIPPED] == ["dev.toml", "edge.toml", "gateway.toml", "sidecar.toml"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_commented_keys_of_a_shipped_file_load_too(path, tmp_path):
    """What stands behind a `#` is an example, so it has to be a good one."""
    (tmp_path / "secret").write_text("s")
    text = path.read_text().replace("/run/secrets/bundle-token", str(tmp_path / "secret"))
    text = re.sub(r"(?m)^#(?=[a-z0-9_]+ = |\[|\")", "", text)
    # Alternatives that exclude each other cannot all be on.
    for other in ("servers = []", 'mode = "system"', "static = {}"):
        text = text.replace(f"\n{other}\n", "\n")
    copy = tmp_path / path.name
    copy.write_text(text)
    load_settings(
        copy,
        {
            "EDGEGUARD_SCANNER_SECRET": "s",
            "EDGEGUARD_ALERT_TOKEN": "t",
            "EDGEGUARD_PARENT_CREDENTIALS": "u:p",
            "EDGEGUARD_LIMITS_PASSWORD": "p",
            "EDGEGUARD_LIMITS_SECRET": "s",
        },
    )


def test_every_key_is_in_a_shipped_file():
    found = set()
    for path in SHIPPED:
        section = ""
        for line in path.read_text().splitlines():
            if header := re.match(r"#?\[+([a-z_.]+)\]+", line):
                section = f"{header[1]}."
            elif key := re.match(r"#?([a-z0-9_]+) = ", line):
                found.add(section + key[1])
    assert found - {"resolver.static"} <= set(known_keys())
    assert set(known_keys()) <= found


def test_every_key_is_documented():
    text = (ROOT / "docs" / "configuration.md").read_text()
    for _, about, rows in reference():
        assert about in text
        for row in rows:
            assert f"| `{row.key}` | {row.type} | {row.default} | {row.about} |" in text
    listed = re.findall(r"(?m)^\| `([a-z0-9_]+)` \|", text)
    assert len(listed) == len(known_keys())


def test_every_key_says_what_it_means_and_every_limit_its_unit():
    for dotted, (model, name) in known_keys().items():
        field = model.model_fields[name]
        assert field.description, dotted
        if field.annotation is float or "Seconds" in str(field.annotation):
            assert name.endswith("_s"), dotted
        if "Size" in str(field.annotation):
            assert "_bytes" in name, dotted


# What is refused

LISTEN_FORM = 'write an address and a port, like "127.0.0.1:3128" or "[::1]:3128"'


def test_all_problems_of_a_file_come_at_once(write):
    path = write(
        'environment = "prod"\n'
        "[bounds]\n"
        "idel_s = 3\n"
        'head_bytes = "many"\n'
        "\n"
        "[listen]  # the front door\n"
        'address = "example.com:3128"\n'
        "drain_s = 3\n"
        "[[identity.cidr]]\n"
        'cidr = "10.0.0.0/8"\n'
        'client = "a"\n'
        "[[identity.cidr]]\n"
        'cidr = "10.0.0.1/8"\n'
    )
    assert sorted(problems(path)) == [
        (3, "bounds.idel_s", "unknown key; did you mean idle_s?"),
        (4, "bounds.head_bytes", 'must be a whole number, not "many"'),
        (
            7,
            "listen.address",
            "'example.com' is not an IP address; " + LISTEN_FORM,
        ),
        (8, "listen.drain_s", "unknown key; did you mean drain_s in [bounds]?"),
        (12, "identity.cidr.1.client", "is missing"),
        (
            13,
            "identity.cidr.1.cidr",
            '10.0.0.1/8 has host bits set; write a network like "10.0.0.0/8" or "fd00::/8"',
        ),
    ]


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("", None, "environment", 'write environment = "prod"'),
        ('enviroment = "prod"', 1, "enviroment", "did you mean environment?"),
        ('environment = "Prod!"', 1, "environment", "pattern"),
        ('environment = "p"\nzebra = 1', 2, "zebra", "known here: environment, listen"),
        ('environment = "p"\nbounds.idle_s = 0', 2, "bounds.idle_s", "greater than 0, not 0"),
        ('environment = "p"\nbounds.idle_s = inf', 2, "bounds.idle_s", "finite"),
        ('environment = "p"\nbounds.tunnels = 1.5', 2, "bounds.tunnels", "must be a whole number, not 1.5"),
        ('environment = "p"\nbounds.tunnels = true', 2, "bounds.tunnels", "must be a whole number, not true"),
        ('environment = "p"\nbounds = 3', 2, "bounds", "not 3"),
        ('environment = "p"\n[sync]\nurls = "https://a/"', 3, "sync.urls", "must be a list"),
        ('environment = "p"\n[sync]\nurls = ["http://a.example/"]', 3, "sync.urls", "must use https"),
        ('environment = "p"\n[sync]\nurls = ["https://u:p@a/"]', 3, "sync.urls", "not a plain URL"),
        ('environment = "p"\n[sync]\nurls = ["a"]', 3, "sync.urls", "not a plain URL"),
        ('environment = "p"\n[listen]\naddress = "127.0.0.1"', 3, "listen.address", "address and a port"),
        (
            'environment = "p"\n[listen]\naddress = "127.0.0.1:70000"',
            3,
            "listen.address",
            "address and a port",
        ),
        ('environment = "p"\n[listen]\naddress = "::1:80"', 3, "listen.address", "address and a port"),
        ('environment = "p"\n[admin]\naddress = "0.0.0.0:1"', 3, "admin.address", "0.0.0.0 is not loopback"),
        ('environment = "p"\n[admin]\naddress = "10.0.0.1:1"', 3, "admin.address", "not loopback"),
        ('environment = "p"\n[admin]\naddress = "unix:"', 3, "admin.address", "write a path"),
        (
            'environment = "dev"\n[listen]\naddress = "0.0.0.0:1"',
            1,
            "environment",
            "listens on loopback only",
        ),
        ('environment = "dev"\n[sync]\nurls = ["https://a/"]', 1, "environment", "from loopback only"),
        ('environment = "p"\n[resolver]\nmode = "servers"', 2, "resolver", "needs servers"),
        (
            'environment = "p"\n[resolver]\nservers = ["dns.example"]',
            3,
            "resolver.servers.0",
            "not a DNS server",
        ),
        (
            'environment = "p"\n[resolver]\nmode = "dns"',
            3,
            "resolver.mode",
            "'system', 'servers' or 'static'",
        ),
        (
            'environment = "p"\n[resolver.static]\n"a.b" = ["x"]',
            3,
            "resolver.static.a.b.0",
            "'x' is not an IP address",
        ),
        ('environment = "p"\n[user]\nheader = "X_User"', 3, "user.header", "lower-case"),
        ('environment = "p"\n[identity]\nstatic_groups = ["a"]', 2, "identity", "need static"),
        (
            'environment = "p"\n[[identity.cidr]]\ncidr = "10.0.0.0/8"\nclient = "a"\n[[identity.cidr]]\ncidr = "10.0.0.0/8"\nclient = "b"',
            2,
            "identity",
            "two entries",
        ),
        ('environment = "p"\n[[identity.secret]]\nclient = "a"', 2, "identity.secret.0", "exactly one of"),
        ('environment = "p"\n[essentials]\nhosts = ["vault"]', 3, "essentials.hosts.0", "vault.internal:443"),
        ('environment = "p"\n[evidence]\nlog = ""', 3, "evidence.log", "write a file name"),
        ('environment = "p"\n[bounds\n', 2, "", "not valid TOML"),
        ('environment = "p"\nenvironment = "q"\n', 2, "", "not valid TOML"),
        (
            'environment = "p"\n[sync]\nurls = [\n  "https://a/", # ]\n  "https://b/",\n]\npol_s = 1',
            7,
            "sync.pol_s",
            "did you mean poll_s?",
        ),
        (
            'environment = "p"\n[trust]\naudience = """\nidel_s = 1\n"""\nflor = 1',
            6,
            "trust.flor",
            "did you mean floor?",
        ),
    ],
)
def test_refused(write, text, line, key, words):
    found = problems(write(text))
    assert [(found[0][0], found[0][1])] == [(line, key)]
    assert words in found[0][2]


def test_missing_file_names_the_command_that_writes_one(tmp_path):
    ((line, _, message),) = problems(tmp_path / "none.toml")
    assert line is None
    assert "No such file" in message
    assert "edgeguard init" in message


def test_folder_huge_and_binary_files(tmp_path, write):
    assert "Is a directory" in problems(tmp_path)[0][2]
    assert "larger" in problems(write("#" * (MAX_FILE_BYTES + 1)))[0][2]
    binary = tmp_path / "b.toml"
    binary.write_bytes(b'environment = "p"\n\xff')
    assert problems(binary) == [(2, "", "is not UTF-8 text")]


# Secrets


def test_secret_from_file_and_environment(write, tmp_path):
    (tmp_path / "token").write_text("from-file\n")
    path = write('environment = "p"\n[sync]\ntoken = { file = "token" }\n')
    settings = load_settings(path, {})
    assert settings.sync.token.get_secret_value() == "from-file"
    assert "from-file" not in repr(settings)
    path = write('environment = "p"\n[sync]\ntoken = { env = "T" }\n')
    assert load_settings(path, {"T": "from-env"}).sync.token.get_secret_value() == "from-env"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('"hunter2"', "never stands in the file"),
        ('{ file = "a", env = "b" }', "never stands in the file"),
        ('{ value = "hunter2" }', "never stands in the file"),
        ("{ file = 1 }", "never stands in the file"),
        ('{ env = "NOT_SET" }', "NOT_SET is not set"),
        ('{ env = "EMPTY" }', "empty"),
        ('{ file = "not-there" }', "cannot read"),
        ('{ file = "binary" }', "not UTF-8"),
    ],
)
def test_bad_secret_is_refused_without_showing_it(write, tmp_path, value, words):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    path = write(f'environment = "p"\n[sync]\ntoken = {value}\n')
    ((line, key, message),) = problems(path, {"EMPTY": "\n"})
    assert (line, key) == (3, "sync.token")
    assert words in message
    assert "hunter2" not in message


def test_secret_in_the_wrong_field_is_not_shown(write):
    path = write('environment = "p"\n[[identity.secret]]\nclient = "a"\nsha256 = "hunter2"\n')
    assert "hunter2" not in problems(path)[0][2]


# What the values become


def test_paths_start_at_the_folder_of_the_file(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    settings = load_settings(
        write('environment = "p"\n[evidence]\nlog = "d.jsonl"\n[admin]\naddress = "unix:run/a.sock"\n'), {}
    )
    assert settings.trust.state_dir == tmp_path / "state"
    assert settings.interception.ca_dir == tmp_path / "state" / "ca"
    assert settings.evidence.log == str(tmp_path / "d.jsonl")
    assert settings.admin.address == f"unix:{tmp_path}/run/a.sock"
    moved = load_settings(write('environment = "p"\n[trust]\nstate_dir = "/var/lib/e"\n'), {})
    assert moved.interception.ca_dir == Path("/var/lib/e/ca")
    assert moved.evidence.log == "-"


def test_values_are_normalised(write):
    settings = load_settings(
        write(
            'environment = "p"\nlisten.address = "[::1]:0"\n[sync]\nurls = ["https://a/b", "http://[::1]:81/"]\n'
            'poll_s = 1\n[resolver]\nmode = "servers"\nservers = ["::1", "10.0.0.53"]\n'
        ),
        {},
    )
    assert (settings.listen.tcp, settings.listen.exposed) == (("[::1]:0",), None)
    assert settings.sync.urls == ("https://a/b/", "http://[::1]:81/")
    assert settings.sync.poll_s == 1.0
    assert settings.resolver.servers == ("::1", "10.0.0.53")


def test_settings_are_frozen_and_build_without_a_file():
    settings = Settings(environment="p", bounds=Bounds(tunnels=3))
    assert settings.bounds.tunnels == 3
    with pytest.raises(ValueError, match="frozen"):
        settings.bounds.tunnels = 4
