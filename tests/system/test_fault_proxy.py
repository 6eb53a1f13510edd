"""Each fault of the proxy really happens, as a plain HTTP client sees it; the rest passes whole."""

from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse, IncompleteRead

import pytest

from mixer_dist.config import StorageConfig
from mixer_dist.storage import Storage
from tests.fault_proxy import CODES, Fault, FaultProxy
from tests.swift import Swift

CONTENT = bytes(range(256)) * 400
FAR = 70_001


@pytest.fixture(scope="module")
def file_url(swift: Swift) -> str:
    """An object that holds CONTENT."""
    url = f"{swift.new_bucket()}/shard-000001.tar"
    swift.storage().write(url, CONTENT)
    return url


class Client:
    """One connection to a proxy, with the right to read one object."""

    def __init__(self, proxy: FaultProxy, url: str) -> None:
        storage = Storage({"s3://": StorageConfig(endpoint_url=proxy.url)})
        file_system, path = storage.open(url)
        self.target = file_system.sign(path).removeprefix(proxy.url)
        self.connection = HTTPConnection(proxy.url.removeprefix("http://"), timeout=10)

    def get(self, **headers: str) -> HTTPResponse:
        self.connection.request("GET", self.target, headers=headers)
        return self.connection.getresponse()


@pytest.fixture
def client(proxy: FaultProxy, file_url: str) -> Iterator[Client]:
    made = Client(proxy, file_url)
    yield made
    made.connection.close()


def received(reply: HTTPResponse) -> tuple[bytes, Exception | None]:
    """What came of a body, and what ended it early."""
    pieces = []
    try:
        while piece := reply.read1():
            pieces.append(piece)
    except (OSError, IncompleteRead) as error:
        return b"".join(pieces), error
    return b"".join(pieces), None


def test_a_signed_request_passes_and_many_share_a_connection(proxy, client):
    assert client.get().read() == CONTENT
    used = client.connection.sock
    for start in range(0, 5000, 1000):
        reply = client.get(Range=f"bytes={start}-{start + 9}")
        assert (reply.status, reply.read()) == (206, CONTENT[start : start + 10])
    assert client.connection.sock is used
    assert [(one.range, one.num_bytes) for one in proxy.seen("shard-000001")[:2]] == [
        (None, len(CONTENT)),
        ("bytes=0-9", 10),
    ]


def test_a_reset_breaks_the_connection_within_the_body(proxy, client):
    proxy.fail(Fault("reset", after_bytes=FAR))
    body, error = received(client.get())
    assert isinstance(error, ConnectionResetError)
    assert CONTENT.startswith(body) and len(body) <= FAR


def test_a_truncated_body_ends_before_its_content_length(proxy, client):
    proxy.fail(Fault("truncated", after_bytes=FAR))
    reply = client.get()
    assert int(reply.headers["Content-Length"]) == len(CONTENT)
    with pytest.raises(IncompleteRead) as caught:
        reply.read()
    assert caught.value.partial == CONTENT[:FAR]


def test_a_short_body_agrees_with_its_content_length(proxy, client):
    proxy.fail(Fault("short", after_bytes=FAR))
    reply = client.get()
    assert int(reply.headers["Content-Length"]) == FAR
    assert reply.read() == CONTENT[:FAR]


def test_a_stalled_body_stays_open_without_another_byte(proxy, client):
    client.connection.timeout = 3
    proxy.fail(Fault("stall", after_bytes=FAR))
    body, error = received(client.get())
    assert isinstance(error, TimeoutError)
    assert body == CONTENT[:FAR]


def test_a_slow_body_comes_whole_in_small_pieces(proxy, client):
    proxy.fail(Fault("slow", after_bytes=len(CONTENT) - 30, bytes_per_s=100))
    reply = client.get()
    assert reply.read(len(CONTENT) - 30) == CONTENT[:-30]
    assert [reply.read1() for _ in range(3)] == [CONTENT[-30:-20], CONTENT[-20:-10], CONTENT[-10:]]


def test_a_flipped_body_differs_in_one_bit_of_one_byte(proxy, client):
    proxy.fail(Fault("flipped", after_bytes=FAR))
    body = client.get().read()
    assert len(body) == len(CONTENT) and body[FAR] == CONTENT[FAR] ^ 1
    assert body[:FAR] + body[FAR + 1 :] == CONTENT[:FAR] + CONTENT[FAR + 1 :]


def test_a_replaced_object_is_another_one_of_the_same_size(proxy, client):
    original = client.get()
    original.read()
    proxy.fail(Fault("replaced"))
    reply = client.get()
    assert reply.headers["ETag"] != original.headers["ETag"]
    assert reply.headers["Content-Length"] == original.headers["Content-Length"]
    assert all(new != old for new, old in zip(reply.read(), CONTENT, strict=True))


@pytest.mark.parametrize("status", CODES)
def test_a_refused_request_gets_s3s_error_and_the_next_one_passes(proxy, client, status):
    proxy.fail(Fault("refused", status=status, count=2))
    for _ in range(2):
        reply = client.get()
        assert reply.status == status and CODES[status].encode() in reply.read()
    assert client.get().read() == CONTENT
    assert [one.fault is not None for one in proxy.seen()] == [True, True, False]


def test_a_fault_meets_only_what_it_names(proxy, client):
    proxy.fail(Fault("refused", match="shard-000002"))
    proxy.fail(Fault("refused", methods=("HEAD", "PUT")))
    assert client.get().read() == CONTENT
    proxy.fail(Fault("refused", match="shard-000001", status=403))
    assert client.get().status == 403
    proxy.heal()
    client.connection.close()
    assert client.get().read() == CONTENT


def test_a_lost_reply_to_an_upload_is_made_good(swift, proxy):
    """Through the proxy a storage writes, and a fault can be about writing."""
    storage = Storage({"s3://": StorageConfig(endpoint_url=proxy.url)})
    file_url = f"{swift.new_bucket()}/file"
    proxy.fail(Fault("refused", methods=("PUT",), count=1))
    storage.write(file_url, CONTENT)
    assert swift.storage().read(file_url) == CONTENT
    assert len(proxy.seen(method="PUT")) == 2
