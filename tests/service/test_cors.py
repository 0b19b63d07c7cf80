"""Access from pages of other origins: none by default, and no more than `CORS_ORIGINS` allows."""

from __future__ import annotations

import httpx
import pytest

from tests.service.chromium import PROGRAM, Chromium
from tests.service.client import Client
from tests.service.conftest import Serve
from tests.service.served import Served

KEY = "k3y-0123456789"
APP, OTHER = "https://app.example.org", "https://other.example.org"
ASKING = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}


def allowed(headers: httpx.Headers) -> dict[str, str]:
    """The headers of CORS among these."""
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


def test_without_origins_no_page_of_another_site_is_served(worker: Client) -> None:
    """By default a preflight request is like any other request, which is refused, and answers allow no origin."""
    with Served(worker.operations) as served, served.client(Origin=APP) as client:
        for answer in (client.options("/embed", headers=ASKING), client.post("/embed", json={"texts": ["a"]})):
            assert (answer.status_code, allowed(answer.headers), answer.headers.get("vary")) == (403, {}, None)
        assert client.get("/livez").status_code == 200


def test_with_a_key_the_origin_is_the_business_of_the_browser(serve: Serve) -> None:
    """A request with the key is answered whatever its origin, and the answer allows none."""
    operations = serve(API_KEY=KEY).operations
    with Served(operations) as served, served.client(Origin=APP, Authorization=f"Bearer {KEY}") as client:
        answer = client.post("/embed", json={"texts": ["a"]})
        assert (answer.status_code, allowed(answer.headers)) == (200, {})
        assert client.options("/embed", headers=ASKING).status_code == 405


def test_a_named_origin_reads_answers_and_no_other_does(serve: Serve) -> None:
    """The page of a named origin gets a preflight answer without the key, and can read answers and errors."""
    with Served(serve(API_KEY=KEY, CORS_ORIGINS=f"{APP},http://localhost:3000").operations) as served:
        with served.client(Origin=APP) as client:
            asked = client.options("/embed", headers=ASKING)
            assert (asked.status_code, asked.content) == (204, b"")
            assert allowed(asked.headers) == {
                "access-control-allow-origin": APP,
                "access-control-allow-methods": "DELETE, GET, HEAD, POST",
                "access-control-allow-headers": "authorization,x-stainless-os",
                "access-control-expose-headers": "Location, Preference-Applied, Retry-After, X-Request-ID, X-Warning",
                "access-control-max-age": "7200",
            }
            assert asked.headers["x-request-id"]
            refused = client.post("/embed", json={"texts": ["a"]})
            assert refused.status_code == 401
            assert client.options("/embed").status_code == 401  # not a preflight request
            answer = client.post("/embed", json={"texts": ["a"]}, headers={"Authorization": f"Bearer {KEY}"})
            assert answer.status_code == 200
            for response in (answer, refused, client.get("/livez")):
                assert response.headers["access-control-allow-origin"] == APP
                assert "x-request-id" in response.headers["access-control-expose-headers"].lower()
                assert "access-control-allow-credentials" not in response.headers
                assert "Origin" in response.headers["vary"]
        for origin in (OTHER, "null", APP + ".evil.example", APP + ":444", ""):
            with served.client(Origin=origin) as client:
                response = client.options("/embed", headers=ASKING)
                assert (response.status_code, allowed(response.headers)) == (401, {})
                assert allowed(client.get("/livez").headers) == {}
                assert "Origin" in client.get("/livez").headers["vary"]


def test_every_origin_may_be_allowed(serve: Serve) -> None:
    """With `*` answers do not depend on the origin; a list of headers that could split the answer is left out."""
    with Served(serve(API_KEY=KEY, CORS_ORIGINS="*").operations) as served, served.client(Origin=OTHER) as client:
        asked = client.options("/embed", headers={**ASKING, "Access-Control-Request-Headers": "a;b"})
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, "*")
        assert "access-control-allow-headers" not in asked.headers
        assert "vary" not in client.get("/livez").headers


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_a_page_of_another_origin_searches_in_a_browser(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A browser lets the page of a named origin send its key and read the answer, and that of another origin not."""
    with (
        Served(serve().operations) as own,
        Served(serve().operations) as other,
        Served(serve(API_KEY=KEY, CORS_ORIGINS=own.url).operations) as served,
        Chromium(tmp_path_factory.mktemp("cors")) as browser,
    ):
        ask = f"""fetch("{served.url}/embed", {{
            method: "POST",
            body: '{{"texts": ["a"], "vectors": ["dense"]}}',
            headers: {{ "Content-Type": "application/json", "Authorization": "Bearer {KEY}" }},
        }}).then((answer) => [answer.status, Boolean(answer.headers.get("x-request-id"))], () => "refused")"""
        for page, outcome in ((own, [200, True]), (other, "refused")):
            browser.open(f"{page.url}/openapi.json")  # a document without a policy of its own
            assert browser.run(ask) == outcome
