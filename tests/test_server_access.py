"""API keys and web pages of other origins."""

from __future__ import annotations

import aiohttp
import pytest
from serving import SPEECH, body, serving
from standin import asynchronous

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
            assert "Content-Type" in answer.headers["Access-Control-Allow-Headers"]
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
