"""Every key of the configuration file, as frozen models.

A limit is a named field whose name ends in its unit: `_s` seconds, `_bytes` bytes, otherwise a count.
The docstring below each field is the text of `docs/configuration.md`; a test keeps the two equal.
Policy is not configured here: rules come only from a signed bundle.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from edgeguard.policy.names import is_address
from edgeguard.settings.values import (
    Address,
    AnchoredPath,
    Cidr,
    Count,
    Host,
    Name,
    Ports,
    Seconds,
    Secret,
    Sha256,
    Size,
    anchored,
    header_name,
    host_port,
    is_loopback,
    near,
    origin_url,
    parent_permitted,
    proxy_url,
    server,
    split_address,
    split_origin,
    split_proxy,
    store_url,
    unix_path,
    web_url,
)

OVERFLOW_ID = 65_534
"""The user or group that stands for all that cannot be mapped (user_namespaces(7))."""


class Section(BaseModel):
    """What all sections share: frozen, strict, closed, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ListenTls(Section):
    """TLS between clients and the proxy itself. It is for the door `address`, and it never looks into tunnels."""

    certificate: AnchoredPath
    """Certificate chain that clients are shown (PEM), the leaf first."""
    key: AnchoredPath
    """Private key of the certificate (PEM, without a password)."""
    client_auth: Literal["off", "optional", "required"] = "off"
    """Whether clients are asked for a certificate. `optional`: who shows none is identified otherwise; a bad one is refused in any case."""
    client_ca: AnchoredPath | None = None
    """Certificate authorities whose client certificates count (PEM). No public authority belongs here."""
    client_crl: AnchoredPath | None = None
    """Revocation lists (PEM) of every authority in `client_ca`. When set, a chain without a current list is refused."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.client_auth == "off") != (self.client_ca is None):
            raise ValueError(
                'client_auth = "optional" or "required" needs client_ca, the authorities that count, and only they use it'
            )
        if self.client_crl is not None and self.client_ca is None:
            raise ValueError("client_crl needs client_ca")
        return self


class Listen(Section):
    """Where clients connect."""

    address: str = "127.0.0.1:3128"
    """HTTP proxy: address and port, or `unix:` and a path. An address, not a name; port 0 lets the kernel choose. Empty: none."""
    socks: str = ""
    """SOCKS5 proxy: address and port. Empty: none."""
    transparent: str = ""
    """Connections that the packet filter redirects here: address and port. Empty: none."""
    reverse: str = ""
    """Visitors of one's own sites (`[[site]]`), who know of no proxy: address and port. Empty: none."""
    socket_mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] = "0660"
    """Permissions of a unix socket, in octal."""
    proxy_protocol_from: tuple[Cidr, ...] = ()
    """Load balancers that begin each connection with a PROXY header (version 1 or 2). Required from these, refused from everybody else."""
    backlog: Count = 1024
    """Connections that the kernel may queue before they are accepted."""
    tls: ListenTls | None = None
    """TLS between clients and the proxy itself."""

    @field_validator("address", "socks", "transparent", "reverse")
    @classmethod
    def _checked(cls, text: str, info: ValidationInfo) -> str:
        if not text:
            return text
        if text.startswith("unix:") and info.field_name == "address":
            return unix_path(text, info)
        split_address(text)
        return text

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not (self.address or self.socks or self.transparent or self.reverse):
            raise ValueError(
                "a node without a door is of no use; give address, socks, transparent or reverse"
            )
        if self.tls is not None and not self.address:
            raise ValueError("[listen.tls] is for the door address, which is empty")
        return self

    @property
    def tcp(self) -> tuple[str, ...]:
        """The doors that are reached over a network, as address and port."""
        doors = (self.address, self.socks, self.transparent, self.reverse)
        return tuple(a for a in doors if a and not a.startswith("unix:"))

    @property
    def exposed(self) -> str | None:
        """An address, not loopback, on which a door stands; None where only this host can connect."""
        return next((h for h, _ in map(split_address, self.tcp) if not is_loopback(h)), None)

    @property
    def permissions(self) -> int:
        """`socket_mode` as a number."""
        return int(self.socket_mode, 8)


class Site(Section):
    """A site of one's own, which the door `reverse` stands in front of."""

    name: Host
    """What visitors ask for. It has to be their server name (SNI) and their Host; rules see it as the host."""
    port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    """The port that visitors ask for, which rules see, wherever the door itself listens. Unset: 443 with a certificate, 80 without."""
    certificate: AnchoredPath | None = None
    """The site's own certificate chain (PEM), the leaf first. Read again when the file changes. Unset: the site is served without TLS."""
    key: AnchoredPath | None = None
    """Private key of the certificate (PEM, without a password). Unset: it stands in `certificate`."""
    origin: Annotated[str, AfterValidator(origin_url)]
    """Where the site is served from, like `https://10.0.0.5:8443` or `http://127.0.0.1:8080`. A private address is reached only if the rule that allows the site says so with `resolves_to`."""
    origin_name: Host | None = None
    """Name that the certificate of an https origin must have. Unset: `name`."""
    forwarded: Literal["off", "forwarded", "x-forwarded-for"] = "off"
    """Which field tells the origin the visitor's address: `Forwarded` (RFC 7239) or `X-Forwarded-For` with `X-Forwarded-Proto`. What visitors send under any such name is removed in any case."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.key is not None and self.certificate is None:
            raise ValueError("key needs certificate")
        if self.origin_name is not None and split_origin(self.origin)[0] != "https":
            raise ValueError("origin_name is for an https origin")
        if is_address(self.name):
            raise ValueError("a site has a name: clients never send an address as the server name")
        return self

    @property
    def public_port(self) -> int:
        """The port that visitors ask for."""
        return self.port or (80 if self.certificate is None else 443)


class Trust(Section):
    """Whose signatures count, and where the proof is kept."""

    root: AnchoredPath = Path("root.msgpack")
    """File of the root of trust that this node starts from."""
    state_dir: AnchoredPath = Path("state")
    """Folder for the verified bundles and the high-water marks. Must belong to edgeguard alone (mode 0700)."""
    audience: str = ""
    """Which audience this node belongs to. A bundle that names audiences and not this one is refused."""
    floor: Annotated[int, Field(ge=0, lt=1 << 53)] = 0
    """Lowest bundle version that is accepted, even by a node without state."""
    manifest: Literal["off", "required"] = "off"
    """`required`: only the bundle that the head's release manifest names is accepted."""
    app: str = ""
    """Digest of the application's image (`sha256:` and 64 hexadecimal digits). A release manifest must name it; implies `manifest = "required"`."""

    @field_validator("app")
    @classmethod
    def _digest(cls, text: str) -> str:
        if text and re.fullmatch(r"sha256:[0-9a-f]{64}", text) is None:
            raise ValueError(
                f'{text[:80]!r} is no image digest; write one like "sha256:" and 64 hexadecimal digits'
            )
        return text


class Sync(Section):
    """How bundles are fetched."""

    urls: tuple[str, ...] = ()
    """Bundle servers, tried in order. HTTPS, except on loopback."""
    ca_file: AnchoredPath | None = None
    """Certificate authorities for the bundle server (PEM). Unset: certifi's."""
    token: Secret | None = None
    """Bearer token for the bundle server, as `{ file = "..." }` or `{ env = "..." }`."""
    poll_s: Seconds = 15.0
    """Time between polls when the server does not support long polling."""
    long_poll_s: Annotated[float, Field(ge=0, le=600)] = 30.0
    """How long the server may hold a request for the head until it changes; also the longest that a new root may go unseen. 0: never ask for it."""
    deadline_s: Seconds = 10.0
    """Total time for one answer, from connecting to the last byte; a long poll's waiting comes on top."""
    min_rate_bytes_s: Size = 1024
    """Slower answers are given up, so that a trickle cannot freeze a node."""
    backoff_max_s: Seconds = 60.0
    """Longest pause after repeated failures. Pauses are jittered."""
    head_bytes: Size = 65_536
    """Largest head envelope."""
    root_bytes: Size = 262_144
    """Largest root envelope."""
    bundle_bytes: Size = 16_777_216
    """Largest bundle envelope."""
    reconcile_s: Seconds = 60.0
    """Time between comparisons that read the state folder and the tables in memory whole. Every poll makes a quick one."""

    @field_validator("urls")
    @classmethod
    def _https(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            host = parts.hostname
            if host is None or parts.query or parts.fragment or parts.username is not None:
                raise ValueError(f'{url!r} is not a plain URL; write one like "https://bundles.example.com/"')
            if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
                raise ValueError(f"{url!r} must use https: only a server on loopback may use http")
        return tuple(url if url.endswith("/") else f"{url}/" for url in urls)


class CidrClient(Section):
    """Clients known by their source address."""

    cidr: Cidr
    """Source network. Of several that match, the longest prefix counts."""
    client: Name
    """Name that rules use in `clients`."""
    groups: tuple[Name, ...] = ()
    """Groups that the client belongs to."""
    claims: tuple[Name, ...] = ()
    """Claims that the client holds, as rules use them in `claims`."""


class SecretClient(Section):
    """Clients known by a secret in `Proxy-Authorization`: a bearer token, or the password of user `client`."""

    client: Name
    """Name that rules use in `clients`."""
    sha256: Sha256 | None = None
    """SHA-256 of the secret in lower-case hexadecimal. The secret should be 128 random bits or more."""
    secret: Secret | None = None
    """The secret itself, as `{ file = "..." }` or `{ env = "..." }`. Give this or `sha256`."""
    groups: tuple[Name, ...] = ()
    """Groups that the client belongs to."""
    claims: tuple[Name, ...] = ()
    """Claims that the client holds, as rules use them in `claims`."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.sha256 is None) == (self.secret is None):
            raise ValueError("give exactly one of sha256 and secret")
        return self


class CertificateClient(Section):
    """Clients known by a certificate that `[listen.tls]` has verified: one of its alternative names, exactly. The common name never counts."""

    uri: (
        Annotated[str, Field(min_length=3, max_length=2048, pattern=r"^[a-z][a-z0-9+.-]*:[!-~]+$")] | None
    ) = None
    """The URI of the certificate, like `spiffe://example.org/ns/build/sa/runner`. Give this or `dns`."""
    dns: Host | None = None
    """A DNS name of the certificate. Wildcards in certificates match nothing."""
    client: Name
    """Name that rules use in `clients`."""
    groups: tuple[Name, ...] = ()
    """Groups that the client belongs to."""
    claims: tuple[Name, ...] = ()
    """Claims that the client holds, as rules use them in `claims`."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.uri is None) == (self.dns is None):
            raise ValueError("give exactly one of uri and dns")
        return self


class PeerClient(Section):
    """Clients known by the user of the process at the other end of a unix socket, as the kernel says."""

    uid: Annotated[int, Field(ge=0, lt=1 << 32)] | None = None
    """User id."""
    gid: Annotated[int, Field(ge=0, lt=1 << 32)] | None = None
    """Primary group id. With `uid` both must match; the first entry that matches counts."""
    client: Name
    """Name that rules use in `clients`."""
    groups: tuple[Name, ...] = ()
    """Groups that the client belongs to."""
    claims: tuple[Name, ...] = ()
    """Claims that the client holds, as rules use them in `claims`."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.uid is None and self.gid is None:
            raise ValueError("give uid or gid, or both")
        if OVERFLOW_ID in {self.uid, self.gid}:
            raise ValueError(
                f"{OVERFLOW_ID} is what the kernel shows of every user of another namespace; give the client an id of its own"
            )
        return self


class Identity(Section):
    """Who a client is. Order: certificate, then secret, then unix peer, then source network, then static, then unknown."""

    static: Name | None = None
    """Name of the client behind every connection that nothing else identifies: the workload of a sidecar."""
    static_groups: tuple[Name, ...] = ()
    """Groups of the static client."""
    static_claims: tuple[Name, ...] = ()
    """Claims of the static client."""
    cidr: tuple[CidrClient, ...] = ()
    """Clients known by their source address."""
    secret: tuple[SecretClient, ...] = ()
    """Clients known by a secret in `Proxy-Authorization`."""
    certificate: tuple[CertificateClient, ...] = ()
    """Clients known by a certificate."""
    peer: tuple[PeerClient, ...] = ()
    """Clients known by their user on this host."""

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        if self.static is None and (self.static_groups or self.static_claims):
            raise ValueError("static_groups and static_claims need static, the name of that client")
        networks = [entry.cidr for entry in self.cidr]
        for network in networks:
            if networks.count(network) > 1:
                raise ValueError(f"two entries of [[identity.cidr]] name {network}; keep one")
        names = [entry.uri or entry.dns for entry in self.certificate]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two entries of [[identity.certificate]] name {name}; keep one")
        return self


class PlainHeaders(Section):
    """Header fields without a signature that say who the person is. Nobody is believed unless listed."""

    clients: tuple[Name, ...] = ()
    """Clients whose word counts, by the names that `[identity]` gives them. Only proxies and gateways that remove what their own users send."""
    headers: dict[
        Annotated[str, AfterValidator(header_name)],
        Annotated[
            str,
            Field(
                pattern=r"^(age_at_least|age_at_most|age_over_[0-9]{2}|age_verified|age_band|age_assurance|birthdate|region)$"
            ),
        ],
    ] = Field(default_factory=dict)
    """What each field says, like `{ "x-age-band" = "age_band" }`. Fields of these names, from whomever and in any spelling (`_` and `.` for `-`), never reach the upstream."""
    assurance: Literal["self_declared", "guardian_declared", "estimated", "inferred", "verified"] = (
        "self_declared"
    )
    """How well such an age is known, unless a field says `age_assurance`."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        said = list(self.headers.values())
        twice = [claim for claim in said if said.count(claim) > 1]
        if twice:
            raise ValueError(f"two fields say {twice[0]}; keep one")
        return self


class User(Section):
    """The person behind a request: a signed token in a header of each request."""

    header: Annotated[str, AfterValidator(header_name)] = "edgeguard-user"
    """Header that carries the token. It and its spellings (`_` and `.` for `-`) never reach the upstream."""
    cookie: Annotated[str, Field(pattern=r"^([!#$%&'*+.^_`|~0-9A-Za-z-]{1,128})?$")] = ""
    """Cookie that may carry the token instead, for people at browsers; like `__Host-edgeguard-user`. It never reaches the upstream. Empty: none."""
    region: str = ""
    """Region of people whose token names none, like `DE` or `US-TX`. Empty: unknown."""
    jwks_dir: AnchoredPath = Path("jwks")
    """Folder of the key files that issuers of the policy name as `jwks_file`. Changes are seen within seconds."""
    jwks_refresh_s: Seconds = 600.0
    """Time between fetches of an issuer's `jwks_url`."""
    jwks_cooldown_s: Seconds = 30.0
    """Shortest time between two fetches, however many tokens with unknown keys arrive."""
    jwks_max_age_s: Seconds = 86_400.0
    """Keys that could not be fetched anew for this long are no longer believed."""
    jwks_bytes: Size = 65_536
    """Largest JWKS document."""
    jwks_deadline_s: Seconds = 5.0
    """Total time of one fetch, resolving included."""
    plain: PlainHeaders = PlainHeaders()
    """Header fields without a signature."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.header in self.plain.headers:
            raise ValueError(f"{self.header} carries the token, so it can be no plain header as well")
        return self


class Resolver(Section):
    """How names become addresses."""

    mode: Literal["system", "servers", "static"] = "system"
    """`system`: `/etc/hosts`, then the servers of `/etc/resolv.conf`; `servers`: the ones below; `static`: only the table below. Names are absolute in every mode: search domains are not applied."""
    servers: tuple[Annotated[str, AfterValidator(server)], ...] = ()
    """DNS servers for mode `servers`, asked in order: an address, or an address and a port."""
    nat64_prefixes: tuple[Cidr, ...] = ()
    """NAT64 prefixes of this network besides 64:ff9b::/96, so that embedded IPv4 addresses are judged."""
    static: dict[Host, tuple[Address, ...]] = Field(default_factory=dict)
    """Names with fixed addresses. They come first in every mode."""
    timeout_s: Seconds = 5.0
    """Total time for one name."""
    server_timeout_s: Seconds = 1.0
    """Time that one server gets before the next one is asked, or the same again."""
    cache_names: Count = 4096
    """Names whose answers are remembered."""
    cache_max_s: Seconds = 60.0
    """Longest time an answer is remembered, whatever its TTL says."""
    negative_max_s: Seconds = 10.0
    """Longest time it is remembered that a name has no address."""
    history_s: Seconds = 600.0
    """How long the transparent door takes an address for one that a name had, after it was last answered."""

    @model_validator(mode="after")
    def _servers_given(self) -> Self:
        if (self.mode == "servers") != bool(self.servers):
            raise ValueError('mode "servers" needs servers = ["192.0.2.53"], and only that mode uses them')
        return self


class ParentProxy(Section):
    """A parent proxy: upstreams are reached through its CONNECT, which names the address that was checked and never the host."""

    address: Annotated[str, AfterValidator(proxy_url)] = ""
    """Where the parent listens: `host:port`, or `https://host:port` where it speaks TLS. Empty: upstreams are dialled directly."""
    allow_internal: bool = False
    """Whether the parent may stand on loopback or in private space. Metadata addresses never."""
    credentials: Secret | None = None
    """`user:password` for the parent, sent as Basic; as `{ file = "..." }` or `{ env = "..." }`."""
    ca_file: AnchoredPath | None = None
    """Certificate authorities for a parent that speaks TLS (PEM). Unset: certifi's."""
    no_proxy: tuple[Annotated[str, AfterValidator(near)], ...] = ()
    """What is dialled directly all the same: hosts as rules write them (`host`, `*.host`, `**.host`), addresses and networks."""

    @property
    def host(self) -> str:
        return split_proxy(self.address)[1]

    @property
    def port(self) -> int:
        return split_proxy(self.address)[2]

    @property
    def tls(self) -> bool:
        return split_proxy(self.address)[0] == "https"

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.address:
            if self.model_fields_set - {"address"}:
                raise ValueError('needs address, like "proxy.example.com:3128"')
            return self
        if self.ca_file is not None and not self.tls:
            raise ValueError("ca_file is for a parent that speaks TLS; write its address with https://")
        secret = "a:b" if self.credentials is None else self.credentials.get_secret_value()
        if ":" not in secret or not secret.isprintable():
            raise ValueError('credentials are a user and a password, like "proxy-user:secret"')
        if is_address(self.host) and not parent_permitted(self.host, internal=self.allow_internal):
            raise ValueError(
                f"{self.host} is not a public address; where the parent is meant to stand there, set allow_internal = true"
                if parent_permitted(self.host, internal=True)
                else f"{self.host} is no address of a proxy"
            )
        return self


class Upstream(Section):
    """How upstream servers are reached and verified."""

    ca_file: AnchoredPath | None = None
    """Certificate authorities for upstreams (PEM). Unset: certifi's, never the image's store."""
    proxy: ParentProxy = ParentProxy()
    """A parent proxy."""


class Replies(Section):
    """What refusals tell people, besides the reason."""

    help_url: Annotated[str, AfterValidator(web_url)] = ""
    """Where people find help. Problem types are fragments of it."""
    verify_url: Annotated[str, AfterValidator(web_url)] = ""
    """Where a person can show their age: a link on the page of an age gate."""
    blocked_by: Annotated[str, AfterValidator(web_url)] = ""
    """Who blocks, in the `Link` of a 451 (RFC 7725). Empty: `help_url`."""


class Interception(Section):
    """Inspecting TLS where the policy needs it."""

    ca_dir: AnchoredPath = Path("state/ca")
    """Folder of the interception certificate authority; made at first start. Unset: `ca` in `trust.state_dir`."""
    leaf_certificates: Count = 1024
    """Leaf certificates kept in memory."""


class Evidence(Section):
    """The decision log."""

    log: str = "-"
    """File that decisions are appended to, as JSON lines. `-`: standard output."""
    queue_records: Count = 65_536
    """Records that may wait for the writer. When full, new work is refused: nothing passes unrecorded."""
    sync_s: Seconds = 1.0
    """Time between flushes to the disk."""
    paths: Literal["keep", "omit"] = "keep"
    """Whether paths of requests are logged. The query never is."""

    @field_validator("log")
    @classmethod
    def _anchor(cls, text: str, info: ValidationInfo) -> str:
        if not text:
            raise ValueError('write a file name, or "-" for standard output')
        return text if text == "-" else str(anchored(Path(text), info))


class Admin(Section):
    """Health, status and metrics: read-only."""

    address: str = "127.0.0.1:9901"
    """Loopback address and port, or `unix:` and a path. Empty: none."""

    @field_validator("address")
    @classmethod
    def _local(cls, text: str, info: ValidationInfo) -> str:
        if not text:
            return text
        if text.startswith("unix:"):
            return unix_path(text, info)
        host, _ = split_address(text)
        if not is_loopback(host):
            raise ValueError(f'{host} is not loopback; write "127.0.0.1:9901", "[::1]:9901" or "unix:/path"')
        return text


class Alerts(Section):
    """Who is told when something is wrong that no honest server, signer or disk explains."""

    webhook: str = ""
    """Address that each alarm is posted to, as JSON. HTTPS, except on loopback. Empty: alarms go to the log only."""
    token: Secret | None = None
    """Bearer token for the webhook, as `{ file = "..." }` or `{ env = "..." }`."""
    ca_file: AnchoredPath | None = None
    """Certificate authorities for the webhook (PEM). Unset: certifi's."""
    cooldown_s: Seconds = 300.0
    """The same alarm is sent once in this time; the next one says how many there were."""
    attempts: Count = 6
    """Tries for one alert, with jittered pauses."""
    deadline_s: Seconds = 10.0
    """Total time for one try."""

    @field_validator("webhook")
    @classmethod
    def _https(cls, text: str) -> str:
        parts = urlsplit(text)
        host = parts.hostname
        if not text:
            return text
        if host is None or parts.fragment or parts.username is not None:
            raise ValueError(
                f'{text!r} is not a plain URL; write one like "https://alerts.example.com/edgeguard"'
            )
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
            raise ValueError(f"{text!r} must use https: only a webhook on loopback may use http")
        return text


class Essentials(Section):
    """What a closed node may still reach, as far as the root of trust lists it too."""

    hosts: tuple[Annotated[str, AfterValidator(host_port)], ...] = ()
    """Hosts with ports, like `vault.internal:443`."""


class Limits(Section):
    """Where rate limits count, for the scopes that others share."""

    host_table: AnchoredPath = Path("state/limits.table")
    """File of the counters of scope `host`, which all processes map that name it. Unset: `limits.table` in `trust.state_dir`."""
    host_slots: Count = 65_536
    """Keys of scope `host` that the table holds when it is made. Further keys share one overflow bucket for each limit."""
    host_lock_s: Seconds = 0.05
    """Longest wait for another process that works on the same counter. Then `on_store_error` counts for a second."""
    store: Annotated[str, AfterValidator(store_url)] = ""
    """Valkey or Redis server for scope `fleet`: `valkeys://HOST:PORT/0` (TLS), `valkey://HOST:PORT/0` or `unix:///PATH`. Empty: none, and limits of that scope follow their `on_store_error`."""
    cluster: bool = False
    """Whether the store is a cluster; `store` names one of its nodes."""
    username: str = ""
    """Name at the store."""
    password: Secret | None = None
    """Password at the store, as `{ file = "..." }` or `{ env = "..." }`."""
    ca_file: AnchoredPath | None = None
    """Certificate authorities for the store (PEM). Unset: certifi's."""
    secret: Secret | None = None
    """Key that turns clients into the names of counters, the same on all nodes. Unset: derived from the root file, so that nodes with the same file agree."""
    timeout_s: Seconds = 0.05
    """Time for one answer of the store. The first that is late opens the breaker: nobody waits any more until the store answers again."""
    retry_s: Seconds = 0.25
    """Pause before a store that is down is tried again, in the background; doubled up to `retry_max_s`."""
    retry_max_s: Seconds = 5.0
    """Longest such pause."""
    lease_s: Seconds = 0.5
    """Longest time for which a node holds quota of a fleet limit ahead of its use."""
    peers: Count = 1
    """How many nodes share the store, for `on_store_error: local_share` while none has been seen. If more are seen, those count."""
    peers_s: Seconds = 5.0
    """Time between two beats of a node at the store. One that misses three is gone, and so are its seats."""

    @model_validator(mode="after")
    def _store_given(self) -> Self:
        if not self.store and (self.cluster or self.username or self.password is not None):
            raise ValueError('cluster, username and password need store = "valkeys://limits.internal:6379/0"')
        return self


class Netfilter(Section):
    """The packet filter beside the proxy: `edgeguard netfilter` makes its rules of this and of the doors. The proxy itself does not read it."""

    shape: Literal["sidecar", "gateway"] = "sidecar"
    """`sidecar`: the workload shares this network namespace. `gateway`: clients route through this host."""
    user: Annotated[int, Field(gt=0, lt=OVERFLOW_ID)] = 65_532
    """User id that edgeguard runs as, and nobody else: its own traffic passes. Never root."""
    dns: Literal["refused", "resolver"] = "refused"
    """Whether the workload may ask DNS: not at all, or the servers of `[resolver]`. Questions carry data out; only clients of the door `transparent` need them."""
    redirect_ports: Ports = ("1-65535",)
    """TCP ports that are redirected to the door `transparent`, where there is one. Everything else is refused."""
    local_ports: Ports = ()
    """Ports of this host, TCP and UDP, that the workload may reach besides the doors and the admin address, like `["8080", "9000-9010"]`."""
    inbound_ports: Ports = ()
    """TCP ports of the workload on which others may connect to it: its service, its probes."""
    log: bool = False
    """Whether the kernel logs what is refused, ten lines a second at most."""


class Bounds(Section):
    """Every limit of the traffic's way."""

    head_bytes: Size = 32_768
    """Largest request head: request line and headers."""
    hello_bytes: Size = 16_384
    """Largest TLS ClientHello."""
    head_s: Seconds = 10.0
    """Time for a client to send a whole request head."""
    hello_s: Seconds = 10.0
    """Time for a client to send its ClientHello after CONNECT."""
    handshake_s: Seconds = 5.0
    """Time for a client to finish what comes before its first request: a PROXY header, TLS to the proxy."""
    server_first_s: Seconds = 1.0
    """A redirected client that says nothing for this long waits for its server; only a rule with `protocol: tcp` for the address lets it."""
    dial_s: Seconds = 10.0
    """Time to connect to an upstream, all its addresses together."""
    dial_addresses: Count = 8
    """Addresses of one name that are tried."""
    idle_s: Seconds = 600.0
    """A tunnel in which nothing moved for this long is closed."""
    half_closed_s: Seconds = 60.0
    """Time that a tunnel lives on after one side has finished."""
    drain_s: Seconds = 10.0
    """Time that open work gets to finish at shutdown."""
    connections: Count = 20_000
    """Open client connections."""
    tunnels: Count = 10_000
    """Open tunnels."""
    tunnels_per_client: Count = 2_000
    """Open tunnels of one client."""
    relay_bytes: Size = 65_536
    """Bytes that are read at once from one side of a tunnel, once much has come. Up to 1.75 times as many may wait for a reader that stalls."""
    headers: Count = 200
    """Header fields of one request."""
    answer_head_bytes: Size = 262_144
    """Largest head of an upstream's answer, interim answers included."""
    waiting_bytes: Size = 8_388_608
    """Bytes of answers that may wait for one client that does not read them."""
    stream_bytes: Size = 1_048_576
    """Bytes of one upload that may wait for its verdict or its upstream; also the window of an HTTP/2 stream."""
    resets: Count = 100
    """HTTP/2 requests that one connection may abandon, besides as many as it lets finish."""
    limit_keys: Count = 65_536
    """Rate-limit keys kept in memory, for each limit. Further keys share one overflow bucket."""
    token_bytes: Size = 8_192
    """Largest user token."""
    token_cache: Count = 4_096
    """Verified user tokens that are remembered until they expire."""


class Settings(Section):
    """One node's configuration."""

    environment: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    """Environment whose bundles this node accepts. `dev` accepts published test keys, on loopback only."""
    listen: Listen = Listen()
    """Where clients connect."""
    site: tuple[Site, ...] = ()
    """Sites of one's own, behind the door `reverse`."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that serve the same doors, under one supervisor. With more than one, `connections`, `tunnels` and `tunnels_per_client` of `[bounds]` are shared out evenly, rate limits of scope `process` hold for each worker alone, and each worker writes a decision log of its own: `decisions.jsonl` becomes `decisions.1.jsonl` and so on."""
    trust: Trust = Trust()
    """Whose signatures count, and where the proof is kept."""
    sync: Sync = Sync()
    """How bundles are fetched."""
    identity: Identity = Identity()
    """Who a client is."""
    user: User = User()
    """The person behind a request."""
    resolver: Resolver = Resolver()
    """How names become addresses."""
    upstream: Upstream = Upstream()
    """How upstream servers are verified."""
    replies: Replies = Replies()
    """What refusals tell people, besides the reason."""
    interception: Interception = Interception()
    """Inspecting TLS where the policy needs it."""
    evidence: Evidence = Evidence()
    """The decision log."""
    admin: Admin = Admin()
    """Health, status and metrics."""
    alerts: Alerts = Alerts()
    """Who is told when something is wrong."""
    essentials: Essentials = Essentials()
    """What a closed node may still reach."""
    limits: Limits = Limits()
    """Where rate limits count."""
    netfilter: Netfilter = Netfilter()
    """The packet filter beside the proxy."""
    bounds: Bounds = Bounds()
    """Every limit of the traffic's way."""

    @model_validator(mode="after")
    def _sites_have_a_door(self) -> Self:
        if bool(self.site) != bool(self.listen.reverse):
            raise ValueError('[[site]] and [listen] reverse = "0.0.0.0:8443" need each other')
        kinds = [(site.name, site.certificate is None) for site in self.site]
        for name, clear in kinds:
            if kinds.count((name, clear)) > 1:
                raise ValueError(
                    f"two entries of [[site]] name {name} {'without' if clear else 'with'} TLS; keep one"
                )
        return self

    @model_validator(mode="after")
    def _dev_stays_home(self) -> Self:
        if self.environment == "dev":
            if self.listen.exposed is not None:
                raise ValueError(
                    f"the environment dev trusts published keys, so it listens on loopback only, not on {self.listen.exposed}"
                )
            for url in self.sync.urls:
                if not is_loopback(urlsplit(url).hostname or ""):
                    raise ValueError(f"the environment dev takes bundles from loopback only, not from {url}")
        return self
