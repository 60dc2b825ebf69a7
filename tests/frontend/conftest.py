import pytest

from tests.frontend.member import Frontend
from tests.frontend.rawh2 import Client


@pytest.fixture(scope="module")
def frontend():
    """One frontend with an echoing member for tests that do not disturb it."""
    with Frontend() as started:
        yield started


@pytest.fixture
def bystander(frontend):
    """A connection that has to be served before and after whatever the test does to another one."""
    with Client(frontend.port) as client:

        def served():
            stream, data = client.call(b"\x0a\x01b")
            client.send(data)
            headers, body = client.answer(stream)
            assert (headers["grpc-status"], body) == ("0", b"\0\0\0\0\x03\x0a\x01b")

        served()
        yield served
        served()
