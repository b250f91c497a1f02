"""DNS servers: what they answer, fail to answer, and make up."""

import asyncio
import contextlib
import struct
import time

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from edgeguard.proxy import hostfiles
from edgeguard.proxy.hostfiles import HostFiles
from edgeguard.proxy.nameservers import RECORDS, servers_lookup
from edgeguard.proxy.resolver import ResolveError, Resolver
from edgeguard.verdict import Resolved

A, AAAA = dns.rdatatype.A, dns.rdatatype.AAAA


class Dns:
    """A recording DNS server on one port of 127.0.0.1, over UDP and TCP.

    `answer(query, kind, tcp)` returns a message, bytes, a list of those, or None for silence.
    """

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.peers = set()
        self.port = 0

    def replies(self, wire, tcp):
        query = dns.message.from_wire(wire)
        (question,) = query.question
        self.asked.append((question.name.to_text(), question.rdtype.name, "tcp" if tcp else "udp"))
        replies = self.answer(query, question.rdtype, tcp)
        for reply in replies if isinstance(replies, list) else [replies]:
            if reply is not None:
                yield reply if isinstance(reply, bytes) else reply.to_wire(max_size=65_535)

    async def __aenter__(self):
        loop, dns_server = asyncio.get_running_loop(), self

        class Udp(asyncio.DatagramProtocol):
            def connection_made(self, transport):
                self.transport = transport

            def datagram_received(self, data, addr):
                dns_server.peers.add(addr[1])
                for reply in dns_server.replies(data, False):
                    self.transport.sendto(reply, addr)

        async def tcp(reader, writer):
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                (size,) = struct.unpack("!H", await reader.readexactly(2))
                for reply in dns_server.replies(await reader.readexactly(size), True):
                    writer.write(struct.pack("!H", len(reply)) + reply)
                await writer.drain()
            writer.close()

        self._tcp = await asyncio.start_server(tcp, "127.0.0.1", 0)
        self.port = self._tcp.sockets[0].getsockname()[1]
        self._udp, _ = await loop.create_datagram_endpoint(Udp, local_addr=("127.0.0.1", self.port))
        return self

    async def __aexit__(self, *_):
        self._udp.close()
        self._tcp.close()
        await asyncio.sleep(0)

    def lookup(self, *others, **kwargs):
        servers = [("127.0.0.1", server.port) for server in (self, *others)]
        return servers_lookup(servers, **{"timeout_s": 1.0, "server_timeout_s": 0.1, **kwargs})


def records(query, *lines, rcode="NOERROR", authority=()):
    """A response with these records, as `name ttl type data`."""
    response = dns.message.make_response(query)
    response.set_rcode(dns.rcode.from_text(rcode))
    for section, texts in ((response.answer, lines), (response.authority, authority)):
        for line in texts:
            name, ttl, kind, *data = line.split()
            rrset = response.find_rrset(
                section,
                dns.name.from_text(name),
                1,
                dns.rdatatype.from_text(kind),
                create=True,
            )
            rrset.update(dns.rrset.from_text(name, int(ttl), "IN", kind, " ".join(data)))
            rrset.ttl = int(ttl)
    return response


SOA = "test. {} SOA ns.test. admin.test. 1 3600 600 86400 {}"


def both(four=("192.0.2.1",), six=("2001:db8::1",), ttl=60, name="api.test."):
    def answer(query, kind, tcp):
        found = {A: four, AAAA: six}[kind]
        return records(query, *(f"{name} {ttl} {kind.name} {address}" for address in found))

    return answer


async def test_both_families_are_asked_at_once_and_the_name_is_absolute():
    async with Dns(both(ttl=42)) as server:
        answer = await server.lookup()("api.test")
        assert set(answer.addresses) == {"192.0.2.1", "2001:db8::1"}
        assert (answer.ttl_s, answer.aliases) == (42.0, ())
        assert sorted(server.asked) == [("api.test.", "A", "udp"), ("api.test.", "AAAA", "udp")]
        assert len(server.peers) == 2  # a source port for each question


async def test_only_the_sixth_version():
    async with Dns(both(four=())) as server:
        assert (await server.lookup()("api.test")).addresses == ("2001:db8::1",)


async def test_a_family_that_is_not_answered_is_not_waited_for():
    async with Dns(lambda q, kind, tcp: both()(q, kind, tcp) if kind == A else None) as server:
        before = time.monotonic()
        answer = await server.lookup(timeout_s=5.0, server_timeout_s=2.0)("api.test")
        assert time.monotonic() - before < 1.0
        assert answer.addresses == ("192.0.2.1",)
        assert answer.ttl_s == 5.0  # not the whole truth, so not for the whole TTL


async def test_an_answer_that_was_cut_is_asked_for_again_over_tcp():
    def answer(query, kind, tcp):
        response = both()(query, kind, tcp)
        if not tcp:
            response.answer.clear()
            response.flags |= dns.flags.TC
        return response

    async with Dns(answer) as server:
        assert set((await server.lookup()("api.test")).addresses) == {"192.0.2.1", "2001:db8::1"}
        assert [over for *_, over in sorted(server.asked)] == ["tcp", "udp"] * 2


async def test_a_thousand_records_cost_what_the_first_ones_cost():
    many = [f"198.51.{n >> 8}.{n & 255}" for n in range(1000)]

    def answer(query, kind, tcp):
        response = both(four=many, six=())(query, kind, tcp)
        if not tcp and kind == A:
            response.answer.clear()
            response.flags |= dns.flags.TC
        return response

    async with Dns(answer) as server:
        answer = await server.lookup(timeout_s=5, server_timeout_s=5)("api.test")
        assert len(answer.addresses) == RECORDS
        assert set(answer.addresses) <= set(many)


def other_id(query, kind, tcp):
    response = both(four=("203.0.113.66",), six=())(query, kind, tcp)
    response.id = query.id ^ 1
    return response


def other_question(query, kind, tcp):
    forged = dns.message.make_query("evil.test.", kind)
    forged.id = query.id
    return both(four=("203.0.113.66",), six=(), name="evil.test.")(forged, kind, tcp)


def other_owner(query, kind, tcp):
    return both(four=("203.0.113.66",), six=(), name="evil.test.")(query, kind, tcp)


def a_question(query, kind, tcp):
    return query


def cut_off(query, kind, tcp):
    return both()(query, kind, tcp).to_wire()[:-3]


def claims_many(query, kind, tcp):
    wire = both()(query, kind, tcp).to_wire()
    return wire[:6] + b"\xff\xff" * 3 + wire[12:]


def looping_name(query, kind, tcp):
    wire = query.to_wire()
    return wire[:2] + b"\x81\x80" + wire[4:6] + b"\0\1\0\0\0\0" + wire[12:25] + b"\xc0\x19" * 20


def garbage(query, kind, tcp):
    return query.to_wire()[:2] + b"\xff" * 40


FORGED = [other_id, other_question, a_question, cut_off, claims_many, looping_name, garbage]


@pytest.mark.parametrize("forge", FORGED)
async def test_what_is_no_answer_is_passed_over(forge):
    """Whoever can only send first does not win: the real answer still counts."""
    async with Dns(lambda *asked: [forge(*asked), both()(*asked)]) as server:
        assert set((await server.lookup()("api.test")).addresses) == {"192.0.2.1", "2001:db8::1"}


@pytest.mark.parametrize("forge", [*FORGED, lambda *_: None], ids=lambda f: f.__name__)
async def test_nothing_else_is_an_answer(forge):
    async with Dns(forge) as server:
        with pytest.raises(OSError, match=r"."):
            await server.lookup(timeout_s=0.12)("api.test")


async def test_records_of_another_name_are_nobodys():
    async with Dns(other_owner) as server:
        assert (await server.lookup()("api.test")).addresses == ()


@pytest.mark.parametrize("forge", [other_id, other_question, garbage, lambda *_: b"\0"])
async def test_over_tcp_what_is_no_answer_is_a_failure(forge):
    def answer(query, kind, tcp):
        if tcp:
            return forge(query, kind, tcp)
        response = records(query)
        response.flags |= dns.flags.TC
        return response

    async with Dns(answer) as server:
        with pytest.raises(OSError, match=r"."):
            await server.lookup(timeout_s=0.12)("api.test")


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "NOTIMP", "FORMERR"])
async def test_a_server_that_cannot_is_followed_by_the_next(rcode):
    async with Dns(lambda q, *_: records(q, rcode=rcode)) as broken, Dns(both()) as good:
        answer = await broken.lookup(good)("api.test")
        assert len(answer.addresses) == 2
        assert len(broken.asked) == len(good.asked) == 2


async def test_a_silent_server_is_followed_by_the_next_in_time():
    async with Dns(lambda *_: None) as silent, Dns(both()) as good:
        before = time.monotonic()
        assert len((await silent.lookup(good)("api.test")).addresses) == 2
        assert 0.09 < time.monotonic() - before < 0.9


async def test_a_port_without_a_server_is_followed_by_the_next_at_once():
    async with Dns(both()) as good:
        async with Dns(both()) as gone:
            pass
        before = time.monotonic()
        answer = await gone.lookup(good, timeout_s=5, server_timeout_s=5)("api.test")
        assert len(answer.addresses) == 2
        assert time.monotonic() - before < 2


async def test_a_lost_packet_is_asked_for_again():
    lost = set()

    def answer(query, kind, tcp):
        if kind not in lost:
            lost.add(kind)
            return None
        return both()(query, kind, tcp)

    async with Dns(answer) as server:
        assert len((await server.lookup()("api.test")).addresses) == 2


@pytest.mark.parametrize(
    ("authority", "ttl_s"), [([SOA.format(900, 30)], 30.0), ([SOA.format(20, 300)], 20.0), ([], 300.0)]
)
@pytest.mark.parametrize("rcode", ["NXDOMAIN", "NOERROR"])
async def test_no_address_for_as_long_as_the_zone_says(rcode, authority, ttl_s):
    async with Dns(lambda q, *_: records(q, rcode=rcode, authority=authority)) as server:
        assert await server.lookup()("api.test") == ((), ttl_s, ())


async def test_one_family_that_fails_is_not_taken_for_none():
    def answer(query, kind, tcp):
        return records(query, rcode="SERVFAIL" if kind == A else "NOERROR")

    async with Dns(answer) as server:
        with pytest.raises(OSError, match=r"."):
            await server.lookup()("api.test")


async def test_the_chain_of_aliases_is_told_and_its_shortest_ttl_counts():
    def answer(query, kind, tcp):
        return records(
            query,
            "api.test. 300 CNAME Edge.CDN.test.",
            "edge.cdn.test. 20 CNAME a_1.pop.test.",
            *(["a_1.pop.test. 600 A 192.0.2.1"] if kind == A else []),
            authority=[SOA.format(3, 3)],
        )

    async with Dns(answer) as server:
        answer = await server.lookup()("api.test")
        assert answer == (("192.0.2.1",), 20.0, ("edge.cdn.test", "a_1.pop.test"))
        assert (await Resolver(server.lookup()).resolve("api.test")).aliases == answer.aliases
        assert type(await Resolver(server.lookup()).resolve("api.test")) is Resolved


@pytest.mark.parametrize("length", [1, 40], ids=["loop", "long"])
async def test_a_chain_has_an_end(length):
    def answer(query, kind, tcp):
        links = [f"n{n}.test. 60 CNAME n{(n + 1) % length}.test." for n in range(length)]
        return records(query, "api.test. 60 CNAME n0.test.", *links)

    async with Dns(answer) as server:
        with pytest.raises(OSError, match=r"."):
            await server.lookup(timeout_s=0.12)("api.test")


async def test_ttls_reach_the_cache():
    async with Dns(both(ttl=0)) as server:
        resolver = Resolver(server.lookup())
        await asyncio.gather(resolver.resolve("api.test"), resolver.resolve("api.test"))
        assert len(server.asked) == 2
        await resolver.resolve("api.test")
        assert len(server.asked) == 4
        server.answer = both(ttl=1)
        await resolver.resolve("api.test")
        assert resolver.known("api.test") is not None
        assert len(server.asked) == 6


async def test_attack_D03_private_and_public_come_out_together_to_be_judged():
    async with Dns(both(four=("10.0.0.1", "192.0.2.1"), six=("fd00::1",))) as server:
        assert set(await Resolver(server.lookup()).resolve("api.test")) == {
            "10.0.0.1",
            "192.0.2.1",
            "fd00::1",
        }


async def test_attack_D13_no_server_no_address():
    async with Dns(both()) as gone:
        pass
    with pytest.raises(ResolveError):
        await Resolver(gone.lookup(timeout_s=0.12)).resolve("api.test")


# The host's files


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(hostfiles, "CHECK_S", 0.0)
    (tmp_path / "hosts").write_text(
        "127.0.0.1 localhost\n"
        "192.0.2.7  Db.Internal db  # a comment, 50% of it\n"
        "2001:DB8::7 db.internal\n"
        "fe80::1%eth0 zone.internal\n"
        "nonsense line here\n\n"
        "192.0.2.8 b\xe4d..name ok.internal\n",
        encoding="latin-1",
    )
    (tmp_path / "resolv.conf").write_text("search evil.search\noptions ndots:5\nnameserver 127.0.0.1\n")

    def make(port):
        return HostFiles(
            timeout_s=1.0,
            server_timeout_s=0.1,
            hosts=tmp_path / "hosts",
            resolv_conf=tmp_path / "resolv.conf",
            port=port,
        )

    return make


@pytest.mark.parametrize(
    ("name", "addresses"),
    [("db.internal", ("192.0.2.7", "2001:db8::7")), ("db", ("192.0.2.7",)), ("localhost", ("127.0.0.1",))],
)
async def test_the_hosts_file_comes_first(files, name, addresses):
    async with Dns(both()) as server:
        assert (await files(server.port)(name)).addresses == addresses
        assert server.asked == []


@pytest.mark.parametrize("name", ["api.internal", "api", "zone.internal"])
async def test_search_domains_are_not_for_names_that_were_judged(files, name):
    """An allowed `api.internal` never becomes `api.internal.evil.search`, not even when it is unknown."""

    def answer(query, kind, tcp):
        evil = query.question[0].name.to_text().endswith("evil.search.")
        return both()(query, kind, tcp) if evil else records(query, rcode="NXDOMAIN")

    async with Dns(answer) as server:
        assert (await files(server.port)(name)).addresses == ()
        assert {asked for asked, *_ in server.asked} == {f"{name}."}


async def test_the_files_are_followed(files, tmp_path):
    async with Dns(both()) as server:
        lookup = files(server.port)
        assert len((await lookup("api.test")).addresses) == 2
        (tmp_path / "hosts").write_text("192.0.2.9 api.test\n")
        assert (await lookup("api.test")).addresses == ("192.0.2.9",)
        (tmp_path / "hosts").unlink()
        (tmp_path / "resolv.conf").write_text("nameserver not-an-address\n")
        with pytest.raises(OSError, match="names no server"):
            await lookup("api.test")
        (tmp_path / "resolv.conf").unlink()
        with pytest.raises(OSError, match="names no server"):
            await lookup("api.test")
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        assert len((await lookup("api.test")).addresses) == 2


async def test_this_hosts_own_files():
    assert "127.0.0.1" in (await HostFiles(timeout_s=1.0, server_timeout_s=1.0)("localhost")).addresses
