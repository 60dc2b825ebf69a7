"""One real etcd's data for all tests of the tool."""

import pytest

from tests.utl import tools


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    return tools.make_source(tmp_path_factory.mktemp("source"))
