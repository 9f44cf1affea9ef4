"""Who may change something over HTTP: ComfyUI's own page and what is no page, whatever else a request says of itself."""

import pytest
from aiohttp.test_utils import make_mocked_request
from node_files import node_file

http_requests = node_file("http_requests")
HOST = "192.168.1.5:8188"


def is_let_in(**headers):
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        http_requests.check_origin(make_mocked_request("POST", "/", headers={"Host": HOST} | given))
    except http_requests.Refusal as refusal:
        assert refusal.status == 403
        return False
    return True


@pytest.mark.parametrize(
    "headers",
    [
        {},  # curl, a script
        {"Origin": f"http://{HOST}"},
        {"Origin": f"https://{HOST.upper()}"},
        {"Sec_Fetch_Site": "same-origin", "Origin": f"http://{HOST}"},
        {"Sec_Fetch_Site": "same-origin", "Origin": "https://behind.a.proxy.example"},
        {"Sec_Fetch_Site": "none"},
    ],
)
def test_the_own_page_and_programs_are_let_in(headers):
    assert is_let_in(**headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://192.168.1.5"},  # another port is another page
        {"Origin": f"http://{HOST}.evil.example"},
        {"Origin": f"http://{HOST}@evil.example"},
        {"Origin": f"http://evil.example/{HOST}"},
        {"Origin": f"ftp://{HOST}"},
        {"Origin": "http://["},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Origin": f"http://{HOST}"},
        {"Sec_Fetch_Site": "cross-site", "Origin": f"http://{HOST}"},
        {"Sec_Fetch_Site": ""},
        {"Sec_Fetch_Site": "same-origin, cross-site"},
    ],
)
def test_other_pages_are_not(headers):
    assert not is_let_in(**headers)
