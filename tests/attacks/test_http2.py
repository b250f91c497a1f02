"""HTTP/2 to the proxy and behind it: every stream judged, every peer bounded, nothing smuggled on the way to HTTP/1.

Rows X05, A13, A14, S and P as far as HTTP/2 has spellings of its own.
"""

import asyncio
import contextlib
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import hpack
import pytest

from tests.attacks.multiplex import PREFACE, Answer, block, frame, request
from tests.attacks.test_open_connections import allow

SEEN = ", methods: [GET, POST], paths: [/x]"


class Client:
    """An HTTP/2 client that may say anything."""

    def __init__(self, reader, writer) -> None:
        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.state = h2.connection.H2Connection(config)
        self.state.initiate_connection()
        self.answers: dict[int, Answer] = {}
        self.ended: int | None = None
        """The error code of a GOAWAY, or -1 for an end without one."""

    def flush(self) -> None:
        self.writer.write(self.state.data_to_send())

    def ask(self, fields, body: bytes | None = None) -> Answer:
        stream = self.state.get_next_available_stream_id()
        self.state.send_headers(stream, fields, end_stream=body is None)
        if body:
            self.state.send_data(stream, body, end_stream=True)
        answer = self.answers[stream] = Answer()
        self.flush()
        return answer

    async def settle(self, within_s: float = 5.0) -> None:
        """Reads until every stream has ended, or the connection."""
        open_streams = set(self.answers)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(within_s):
                while open_streams and (data := await self.reader.read(65536)):
                    for event in self.state.receive_data(data):
                        if isinstance(event, h2.events.ConnectionTerminated):
                            self.ended = int(event.error_code)
                            return
                        stream = getattr(event, "stream_id", None)
                        if stream in open_streams and self.answers[stream].take(stream, event):
                            open_streams.discard(stream)
                    self.flush()
                if open_streams:
                    self.ended = -1


@pytest.fixture
async def server(rig):
    await rig.start()
    server = await rig.upstream("a.test")
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, SEEN))
    return server


async def client_of(rig, port: int) -> Client:
    return Client(*await rig.tunnel("a.test", port, alpn=("h2",)))


def own(port: int, *more, **changes):
    return request(f"a.test:{port}", changes.pop("path", "/x"), *more, **changes)


def without(fields, name: str):
    return [field for field in fields if field[0] != name]


def swapped(fields, name: str, value: str):
    return [(n, value if n == name else v) for n, v in fields]


CASES = {
    "attack-A13-other": lambda p: swapped(own(p), ":authority", f"evil.test:{p}"),
    "attack-A13-port": lambda p: swapped(own(p), ":authority", "a.test:1"),
    "attack-A13-userinfo": lambda p: swapped(own(p), ":authority", f"a.test:{p}@evil.test"),
    "attack-A13-list": lambda p: swapped(own(p), ":authority", f"a.test:{p}, evil.test"),
    "attack-A13-host": lambda p: own(p, ("host", f"evil.test:{p}")),
    "attack-A13-two-hosts": lambda p: own(p, ("host", f"a.test:{p}"), ("host", f"evil.test:{p}")),
    "attack-A13-none": lambda p: without(own(p), ":authority"),
    "attack-A13-empty": lambda p: swapped(own(p), ":authority", ""),
    "attack-X05-two-authorities": lambda p: [(":authority", f"evil.test:{p}"), *own(p)],
    "attack-X05-two-paths": lambda p: [(":path", "/secret"), *own(p)],
    "attack-X05-two-methods": lambda p: [(":method", "DELETE"), *own(p)],
    "attack-X05-late-pseudo": lambda p: [*own(p), ("x", "y"), (":path", "/secret")],
    "attack-X05-unknown-pseudo": lambda p: [*own(p), (":evil", "x")],
    "attack-X05-status": lambda p: [*own(p), (":status", "200")],
    "attack-X05-no-path": lambda p: without(own(p), ":path"),
    "attack-X05-no-method": lambda p: without(own(p), ":method"),
    "attack-X05-no-scheme": lambda p: without(own(p), ":scheme"),
    "attack-X05-empty-path": lambda p: swapped(own(p), ":path", ""),
    "attack-X05-star": lambda p: swapped(own(p), ":path", "*"),
    "attack-X05-absolute": lambda p: swapped(own(p), ":path", f"https://evil.test:{p}/x"),
    "attack-X05-relative": lambda p: swapped(own(p), ":path", "x"),
    "attack-X05-scheme-http": lambda p: swapped(own(p), ":scheme", "http"),
    "attack-X05-scheme-ftp": lambda p: swapped(own(p), ":scheme", "ftp"),
    "attack-X05-scheme-crlf": lambda p: swapped(own(p), ":scheme", "https\r\nx: y"),
    "attack-X05-connect": lambda p: [(":method", "CONNECT"), (":authority", f"a.test:{p}")],
    "attack-X05-extended-connect": lambda p: [*own(p, method="CONNECT"), (":protocol", "websocket")],
    "attack-X05-protocol": lambda p: [*own(p), (":protocol", "websocket")],
    "attack-S01-lines-in-path": lambda p: swapped(own(p), ":path", "/x HTTP/1.1\r\nHost: evil.test\r\n\r\n"),
    "attack-S01-space-in-path": lambda p: swapped(own(p), ":path", "/x HTTP/1.1"),
    "attack-S01-space-in-method": lambda p: swapped(own(p), ":method", "GET /secret HTTP/1.1"),
    "attack-S01-lines-in-method": lambda p: swapped(own(p), ":method", "GET\r\nX: y"),
    "attack-S01-tab-in-method": lambda p: swapped(own(p), ":method", "GET\t"),
    "attack-S04-crlf": lambda p: own(p, ("x", "y\r\nhost: evil.test")),
    "attack-S04-lf": lambda p: own(p, ("x", "y\nz")),
    "attack-S04-cr": lambda p: own(p, ("x", "y\rz")),
    "attack-S04-nul": lambda p: own(p, ("x", "y\0z")),
    "attack-S04-name-crlf": lambda p: own(p, ("x\r\nhost", "y")),
    "attack-S04-name-lf-last": lambda p: own(p, ("x\n", "y")),
    "attack-S04-name-space": lambda p: own(p, ("x y", "z")),
    "attack-S04-name-colon": lambda p: own(p, ("x: y", "z")),
    "attack-S04-name-upper": lambda p: own(p, ("X-Upper", "z")),
    "attack-S04-name-empty": lambda p: own(p, ("", "z")),
    "attack-S04-name-high": lambda p: own(p, ("x\xe9", "z")),
    "attack-S06-connection": lambda p: own(p, ("connection", "close")),
    "attack-S06-keep-alive": lambda p: own(p, ("keep-alive", "5")),
    "attack-S06-proxy-connection": lambda p: own(p, ("proxy-connection", "x")),
    "attack-S06-te": lambda p: own(p, ("te", "gzip")),
    "attack-S08-upgrade": lambda p: own(p, ("upgrade", "websocket")),
    "attack-S03-te": lambda p: own(p, ("transfer-encoding", "chunked"), method="POST"),
    "attack-S03-alias": lambda p: own(p, ("transfer_encoding", "chunked"), method="POST"),
    "attack-S02-two-lengths": lambda p: own(p, ("content-length", "1"), ("content-length", "2"), method="POST"),
    "attack-S02-length-letters": lambda p: own(p, ("content-length", "x"), method="POST"),
    "attack-S02-length-plus": lambda p: own(p, ("content-length", "+1"), method="POST"),
    "attack-S02-length-lf": lambda p: own(p, ("content-length", "1\n"), method="POST"),
    "attack-S05-get": lambda p: own(p, ("content-length", "3")),
    "attack-S11-trace": lambda p: own(p, method="TRACE"),
    "attack-P01": lambda p: own(p, path="/x/../secret"),
    "attack-S18-fields": lambda p: own(p, *[(f"x-{n}", "y") for n in range(250)]),
    "attack-X05-list": lambda p: own(p, ("x", "y" * 40_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_a_request_that_must_not_go_on(rig, server, name):
    """Refused on its stream or with the whole connection, and either way on record."""
    client = await client_of(rig, server.port)
    before = len(rig.records)
    answer = client.ask(CASES[name](server.port), b"abc" if "S05" in name else None)
    await client.settle()
    assert client.ended is not None or answer.reset or answer.status in {400, 403, 421, 431}, vars(answer)
    assert server.heads == []
    assert [r.verdict for r in rig.records[before:]] == ["deny"]
    client.writer.close()
    await rig.idle()


async def test_each_stream_is_judged_by_itself(rig, server):
    """attack-A14, attack-S10: a refusal leaves its neighbours alone."""
    client = await client_of(rig, server.port)
    answers = [client.ask(own(server.port, path=path)) for path in ("/x", "/secret", "/x", "/secret", "/x")]
    answers.append(client.ask(swapped(own(server.port), ":authority", f"evil.test:{server.port}")))
    await client.settle()
    assert [a.status for a in answers] == [200, 403, 200, 403, 200, 421]
    client.writer.close()


async def raw(rig, port: int):
    return await rig.tunnel("a.test", port, alpn=("h2",))


async def goaway(reader) -> int | None:
    """The error code of the GOAWAY that ends the connection; None without one."""
    data = b""
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
        async with asyncio.timeout(5):
            while more := await reader.read(65536):
                data += more
    code = None
    while len(data) >= 9:
        size, kind = int.from_bytes(data[:3]), data[3]
        if kind == 7:
            code = int.from_bytes(data[13:17])
            assert size == 8  # no words of the engine
        data = data[9 + size :]
    return code


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(lambda p: b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", id="attack-X05-no-preface"),
        pytest.param(lambda p: frame(0, 0, 1, b"x"), id="attack-X05-data-first"),
        pytest.param(lambda p: (16_385).to_bytes(3) + bytes([0, 0]) + (1).to_bytes(4), id="attack-X05-frame-size"),
        pytest.param(lambda p: b"\xff\xff\xff" + bytes([1, 4]) + (1).to_bytes(4), id="attack-X05-frame-16m"),
        pytest.param(lambda p: frame(9, 4, 1, block(own(p))), id="attack-X05-continuation-first"),
        pytest.param(lambda p: frame(1, 0, 1, b"") + frame(9, 0, 1, b"") * 100, id="attack-X05-continuation-flood"),
        pytest.param(lambda p: frame(1, 0, 1, b"\x82") + frame(9, 0, 1, b"\x82" * 16_000) * 40, id="attack-X05-continuation-bytes"),
        pytest.param(lambda p: frame(1, 0, 1, block(own(p))) + frame(6, 0, 0, bytes(8)), id="attack-X05-interleaved"),
        pytest.param(lambda p: frame(1, 5, 1, b"\xff" * 100), id="attack-X05-hpack-noise"),
        pytest.param(lambda p: frame(1, 5, 1, b"\x40\x01x\x7f\x80\x1f" + bytes(4000) + b"\xbe" * 3000), id="attack-X05-hpack-bomb"),
        pytest.param(lambda p: frame(1, 5, 2, block(own(p))), id="attack-X05-even-stream"),
        pytest.param(lambda p: frame(5, 4, 1, (2).to_bytes(4) + block(own(p))), id="attack-X05-push-by-client"),
        pytest.param(lambda p: frame(8, 0, 0, (0).to_bytes(4)), id="attack-X05-window-zero"),
        pytest.param(lambda p: frame(8, 0, 0, (2**31 - 1).to_bytes(4)) * 2, id="attack-X05-window-overflow"),
        pytest.param(lambda p: frame(4, 0, 0, b"\x00\x04" + (2**31).to_bytes(4)), id="attack-X05-settings-window"),
        pytest.param(lambda p: frame(4, 0, 0, b"\x00"), id="attack-X05-settings-size"),
    ],
)  # fmt: skip
async def test_a_connection_that_breaks_the_protocol_ends_on_record(rig, server, frames):
    reader, writer = await raw(rig, server.port)
    begin = time.process_time()
    data = frames(server.port)
    writer.write(data if data.startswith(b"GET") else PREFACE + data)
    assert await goaway(reader) is not None
    assert time.process_time() - begin < 0.5
    assert server.heads == []
    assert [(r.verdict, r.reason) for r in rig.records if r.verdict == "deny"] == [
        ("deny", "malformed_request")
    ]
    writer.close()
    await rig.idle()


@pytest.mark.parametrize("door", ["edge", "regular"])
async def test_streams_that_are_reset_without_end(rig, server, door):
    """attack-X05: CVE-2023-44487, as the other way around (a client that makes the server reset, CVE-2025-8671)."""
    server.answer = lambda head: b""
    server.after = lambda reader, writer: reader.read()
    for how in ("client", "server"):
        reader, writer = await raw(rig, server.port)
        encoder = hpack.Encoder()
        writer.write(PREFACE)
        with contextlib.suppress(OSError):
            for stream in range(1, 1201, 2):
                writer.write(frame(1, 5, stream, encoder.encode(own(server.port))))
                writer.write(
                    frame(3, 0, stream, (8).to_bytes(4))
                    if how == "client"
                    else frame(8, 0, stream, (2**31 - 1).to_bytes(4)) * 2
                )
                await writer.drain()
                if stream % 40 == 1:
                    await asyncio.sleep(0)
        assert await goaway(reader) in {int(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM), None, 1}
        settled = [r for r in rig.records if r.verdict == "allow" and r.method]
        assert len(settled) <= 2 * (rig.settings.bounds.resets + 110)
        writer.close()
    await rig.idle()
    assert "capacity_exceeded" in {r.reason for r in rig.records}


async def test_a_client_that_cancels_some_requests_is_no_attacker(rig):
    """attack-X05: as many as it lets finish are free."""
    rig.bounds["resets"] = 5
    await rig.start()
    server = await rig.upstream("a.test")
    rig.enforce("rules:\n" + allow("a", "a.test", server.port, SEEN))
    client = await client_of(rig, server.port)
    for _ in range(20):
        done = client.ask(own(server.port))
        await client.settle()
        assert done.status == 200
        stream = client.state.get_next_available_stream_id()
        client.state.send_headers(stream, own(server.port), end_stream=True)
        client.state.reset_stream(stream, 8)
        client.flush()
        client.answers.clear()
    assert client.ended is None
    client.writer.close()


class Upstream2:
    """An upstream that speaks HTTP/2, as `talk` says."""

    def __init__(self, rig, talk, window: int = 65_535) -> None:
        self._rig, self._talk, self._window = rig, talk, window
        self.received = 0
        self.state: h2.connection.H2Connection | None = None

    async def start(self) -> "Upstream2":
        context = self._rig.certificates.server("a.test", alpn=("h2",))
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        self._writers: list[asyncio.StreamWriter] = []
        self._rig.stack.callback(self._stop)
        return self

    def _stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader, writer) -> None:
        self._writers.append(writer)
        state = self.state = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=False, validate_outbound_headers=False, header_encoding=False
            )
        )
        state.initiate_connection()
        state.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: self._window})
        writer.write(state.data_to_send())
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            while data := await reader.read(65536):
                for event in state.receive_data(data):
                    if isinstance(event, h2.events.DataReceived):
                        self.received += len(event.data)
                    self._talk(self, state, writer, event)
                writer.write(state.data_to_send())
        writer.close()


async def test_an_upload_to_a_shut_window_stops_the_client(rig):
    """attack-S18: what the upstream does not take, the client keeps."""
    await rig.start()

    def talk(upstream, state, writer, event):
        if isinstance(event, h2.events.StreamEnded):
            state.send_headers(event.stream_id, [(b":status", b"200")], end_stream=True)

    upstream = await Upstream2(rig, talk, window=0).start()
    rig.enforce("rules:\n" + allow("a", "a.test", upstream.port, SEEN))
    client = await client_of(rig, upstream.port)
    stream = client.state.get_next_available_stream_id()
    client.state.send_headers(stream, own(upstream.port, method="POST"))
    client.flush()
    size, sent = 12_000_000, 0

    async def pump(within_s: float) -> None:
        nonlocal sent
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while sent < size or stream not in done:
                    room = min(client.state.local_flow_control_window(stream), 16_384, size - sent)
                    if room > 0:
                        client.state.send_data(stream, bytes(room), end_stream=sent + room == size)
                        sent += room
                        client.flush()
                        await client.writer.drain()
                        continue
                    for event in client.state.receive_data(await client.reader.read(65536)):
                        if isinstance(event, h2.events.StreamEnded):
                            done.add(event.stream_id)
                    client.flush()

    done: set[int] = set()
    await pump(1.0)
    assert sent <= rig.settings.bounds.stream_bytes
    assert upstream.received <= 65_535  # before the window was shut
    state, writer = upstream.state, upstream._writers[0]
    state.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
    state.increment_flow_control_window(2**31 - 1 - 65_535)
    writer.write(state.data_to_send())
    await pump(10.0)
    assert (sent, upstream.received) == (size, size)
    client.writer.close()
    await rig.idle()


async def test_an_upload_waits_for_its_verdict_in_the_window(rig, server):
    """attack-S18"""
    go, resolve = asyncio.Event(), rig.names.resolve

    async def slow(host):
        await go.wait()
        return await resolve(host)

    client = await client_of(rig, server.port)
    rig.names.resolve = slow
    assert client.state.remote_settings.initial_window_size in {65_535, rig.settings.bounds.stream_bytes}
    client.ask(own(server.port))
    await client.settle()
    assert client.state.remote_settings.initial_window_size == rig.settings.bounds.stream_bytes
    assert client.state.remote_settings.max_frame_size == 16_384
    assert client.state.remote_settings.max_header_list_size == rig.settings.bounds.head_bytes
    go.set()
    client.writer.close()


async def answers_of(rig, talk) -> tuple[Client, Answer]:
    await rig.start()
    upstream = await Upstream2(rig, talk).start()
    rig.enforce("rules:\n" + allow("a", "a.test", upstream.port, SEEN))
    client = await client_of(rig, upstream.port)
    answer = client.ask(own(upstream.port))
    await client.settle()
    client.writer.close()
    await rig.idle()
    return client, answer


async def test_a_push_of_the_upstream_is_refused(rig):
    """attack-X05"""

    def talk(upstream, state, writer, event):
        if isinstance(event, h2.events.RequestReceived):
            pushed = block(request("a.test", "/pushed"))
            writer.write(state.data_to_send() + frame(5, 4, event.stream_id, (2).to_bytes(4) + pushed))

    client, answer = await answers_of(rig, talk)
    assert answer.status in {502, None}
    assert 2 not in client.answers


async def test_interim_answers_without_end(rig):
    """attack-S18"""

    def talk(upstream, state, writer, event):
        if isinstance(event, h2.events.RequestReceived):
            for _ in range(200):
                state.send_headers(event.stream_id, [(b":status", b"103"), (b"link", b"</x>")])

    _, answer = await answers_of(rig, talk)
    assert answer.status == 502


async def test_trailers_of_an_answer(rig):
    """attack-S06: gRPC's go on; what belongs into a head does not."""
    seen: dict[bytes, bytes] = {}

    def talk(upstream, state, writer, event):
        if isinstance(event, h2.events.RequestReceived):
            state.send_headers(event.stream_id, [(b":status", b"200")])
            state.send_data(event.stream_id, b"ok")
            trailers = [
                (b"grpc-status", b"0"),
                (b"set-cookie", b"evil=1"),
                (b"alt-svc", b"h3"),
                (b"edgeguard-reason", b"x"),
                (b"content-length", b"9"),
            ]
            state.send_headers(event.stream_id, trailers, end_stream=True)

    take = Answer.take

    def taking(self, stream, event):
        if isinstance(event, h2.events.TrailersReceived):
            seen.update(event.headers)
        return take(self, stream, event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Answer, "take", taking)
        _, answer = await answers_of(rig, talk)
    assert answer.status == 200
    assert seen == {b"grpc-status": b"0"}
