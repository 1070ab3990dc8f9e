"""API keys and web pages of other origins."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from fake_model import asynchronous
from serving import SPEECH, body, serving

from csm_hybrid.server.access import OPEN_PATHS

PAGE = "https://example.org"
STREAM = "/v1/audio/speech/stream"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type",
}


@asynchronous
async def test_any_of_the_keys_opens_and_nothing_else_does() -> None:
    async with serving(api_keys=("first", "second")) as served:
        for header, status in (
            ("Bearer first", 200),
            ("bearer second", 200),
            ("Bearer third", 401),
            ("Bearer ", 401),
            ("Bearer firs", 401),
            ("Basic first", 401),
            ("Bearer \u00fc\u00df".encode().decode("latin-1"), 401),
            ("first", 401),
        ):
            async with served.client.post(SPEECH, json=body(), headers={"Authorization": header}) as answer:
                assert answer.status == status, header
                if status == 401:
                    assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
        for path in (SPEECH, "/v1/models", "/metrics", STREAM, "/nothing"):
            async with served.client.get(path) as answer:
                assert answer.status == 401, path


@asynchronous
async def test_what_clients_probe_without_a_key_stays_open() -> None:
    async with serving(api_keys=("key",)) as served:
        for path in OPEN_PATHS:
            async with served.client.get(path) as answer:
                assert answer.status == 200


@asynchronous
async def test_without_keys_any_key_will_do() -> None:
    headers = {"Authorization": "Bearer x"}
    async with serving() as served, served.client.post(SPEECH, json=body(), headers=headers) as answer:
        assert answer.status == 200


@asynchronous
async def test_pages_of_a_named_origin_may_ask() -> None:
    async with serving(cors_origins=(PAGE,), api_keys=("key",)) as served:
        async with served.client.options(SPEECH, headers=PREFLIGHT) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            assert "POST" in answer.headers["Access-Control-Allow-Methods"]
            assert answer.headers["Access-Control-Allow-Headers"] == "content-type"
            assert answer.headers.getall("Vary") == ["Access-Control-Request-Headers", "Origin"]
        headers = {"Origin": PAGE, "Authorization": "Bearer key"}
        async with served.client.post(SPEECH, json=body(), headers=headers) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            assert answer.headers["Vary"] == "Origin"
        async with served.client.post(SPEECH, json=body(), headers={"Origin": PAGE}) as answer:
            assert answer.status == 401
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE, "a page must be able to read its error"


@pytest.mark.parametrize("origins", [(), ("https://other.example",)])
@asynchronous
async def test_pages_of_other_origins_may_not(origins: tuple[str, ...]) -> None:
    async with serving(cors_origins=origins) as served:
        async with served.client.options(SPEECH, headers=PREFLIGHT) as answer:
            assert answer.status == 403
            assert "Access-Control-Allow-Origin" not in answer.headers
        async with served.client.post(SPEECH, json=body(), headers={"Origin": PAGE}) as answer:
            assert "Access-Control-Allow-Origin" not in answer.headers
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await served.client.ws_connect(STREAM, headers={"Origin": PAGE})


# What openai-node 6 asks for in a browser.
OPENAI_NODE = "authorization,content-type," + ",".join(
    f"x-stainless-{name}"
    for name in ("arch", "lang", "os", "package-version", "retry-count", "runtime", "runtime-version", "timeout")
)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (OPENAI_NODE, OPENAI_NODE),
        ("x-request-id , openai-beta", "x-request-id , openai-beta"),
        (None, "Authorization, Content-Type, X-Request-Id"),
        ("", "Authorization, Content-Type, X-Request-Id"),
        ("a b", "Authorization, Content-Type, X-Request-Id"),
        ("a,,b", "Authorization, Content-Type, X-Request-Id"),
        ("\xe4", "Authorization, Content-Type, X-Request-Id"),
    ],
)
@asynchronous
async def test_a_page_may_send_the_headers_that_it_asks_for(asked: str | None, told: str) -> None:
    """OpenAI's own client for pages sends headers that no list here had."""
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    headers |= {} if asked is None else {"Access-Control-Request-Headers": asked}
    async with serving(cors_origins=(PAGE,)) as served, served.client.options(SPEECH, headers=headers) as answer:
        assert (answer.status, answer.headers["Access-Control-Allow-Headers"]) == (204, told)


@pytest.mark.parametrize("origin", ["http://[", "http://[x]", "null", "http://\u2100.example"])
@asynchronous
async def test_an_origin_that_is_no_url_is_a_foreign_one(origin: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as served, served.client.get(STREAM, headers={**UPGRADE, "Origin": origin}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (403, "origin_not_allowed")
    assert not [record for record in caplog.records if record.exc_info]


@asynchronous
async def test_a_page_that_the_server_is_reached_by_may_open_a_websocket() -> None:
    async with serving() as served:
        own = f"http://{served.host}:{served.port}"
        async with served.client.ws_connect(STREAM, headers={"Origin": own}):
            pass
    async with serving(cors_origins=("*",)) as served, served.client.ws_connect(STREAM, headers={"Origin": PAGE}):
        pass


@asynchronous
async def test_a_page_cannot_post_without_being_asked_first() -> None:
    """A body of another type than JSON needs no preflight, so it must not be taken for a request."""
    async with serving() as served:
        headers = {"Origin": PAGE, "Content-Type": "text/plain"}
        async with served.client.post(SPEECH, data=b'{"input": "x"}', headers=headers) as answer:
            assert answer.status == 415


KEY_PROTOCOL = "openai-insecure-api-key."


@asynchronous
async def test_a_pages_websocket_brings_its_key_as_a_subprotocol(caplog: pytest.LogCaptureFixture) -> None:
    """A browser can set no other header, and fails when none of what it offers is chosen."""
    async with serving(api_keys=("first", "s.e-c_r~et")) as served:
        for offered in (
            ["realtime", KEY_PROTOCOL + "s.e-c_r~et"],
            [KEY_PROTOCOL + "s.e-c_r~et", "realtime", "openai-beta.realtime-v1"],
        ):
            async with served.client.ws_connect(STREAM, protocols=offered) as line:
                assert line.protocol == "realtime"
                await line.send_json({"type": "text", "text": "Hello there."})
                await line.send_json({"type": "flush"})
                assert (await line.receive_json())["type"] == "started"
    assert "s.e-c_r~et" not in caplog.text


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        ([], f"realtime and {KEY_PROTOCOL}KEY"),
        (["realtime"], "did not provide"),
        (["realtime", KEY_PROTOCOL], "did not provide"),
        (["realtime", KEY_PROTOCOL + "secre"], "not correct"),
        (["realtime", "secret"], "did not provide"),
        (["realtime", KEY_PROTOCOL.upper() + "secret"], "did not provide"),
    ],
)
@asynchronous
async def test_no_other_subprotocol_opens(offered: list[str], words: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(api_keys=("secret",)) as served:
        headers = {**UPGRADE, **({"Sec-WebSocket-Protocol": ", ".join(offered)} if offered else {})}
        async with served.client.get(STREAM, headers=headers) as answer:
            assert answer.status == 401
            assert words in (await answer.json())["error"]["message"]
            assert "Sec-WebSocket-Protocol" not in answer.headers
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await served.client.ws_connect(STREAM, protocols=offered)
    assert "secre" not in caplog.text


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@asynchronous
async def test_a_header_comes_before_a_subprotocol_and_only_a_websocket_has_one() -> None:
    async with serving(api_keys=("secret",)) as served:
        protocols = ["realtime", KEY_PROTOCOL + "secret"]
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await served.client.ws_connect(STREAM, protocols=protocols, headers={"Authorization": "Bearer wrong"})
        headers = {"Sec-WebSocket-Protocol": ", ".join(protocols)}
        async with served.client.post(SPEECH, json=body(), headers=headers) as answer:
            assert answer.status == 401


@pytest.mark.parametrize("lines", [[KEY_PROTOCOL + "secret"], [KEY_PROTOCOL + "secret", "realtime"]])
@asynchronous
async def test_a_key_is_never_told_again(lines: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """aiohttp logs the subprotocols of one who offers none that is known."""
    async with serving(api_keys=("secret",)) as served:
        reader, writer = await asyncio.open_connection(served.host, served.port)
        head = [f"GET {STREAM} HTTP/1.1", f"Host: {served.host}"]
        head += [f"{name}: {value}" for name, value in UPGRADE.items()]
        head += [f"Sec-WebSocket-Protocol: {line}" for line in lines]
        writer.write("\r\n".join([*head, "", ""]).encode())
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.close()
        assert answer.startswith("HTTP/1.1 101")
        assert "secret" not in answer
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("value", "words"),
    [("secret\x01", "Invalid header value"), ("secret" + "x" * 70_000, "Got more than")],
)
@asynchronous
async def test_a_broken_header_is_logged_without_what_is_in_it(
    value: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with serving(api_keys=("secret",)) as served:
        reader, writer = await asyncio.open_connection(served.host, served.port)
        writer.write(f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {value}\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.0 400")
    (told,) = [record.fields["error"] for record in caplog.records if record.getMessage() == "refused"]
    assert words in told
    assert "secret" not in told


@asynchronous
async def test_a_key_of_any_bytes_is_compared() -> None:
    async with serving(api_keys=("secret",)) as served:
        reader, writer = await asyncio.open_connection(served.host, served.port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        writer.close()
