"""A zygote for the whole suite."""

import pytest
from kill_shop import Zygote


@pytest.fixture(scope="session")
def zygote():
    process = Zygote()
    yield process
    process.close()
