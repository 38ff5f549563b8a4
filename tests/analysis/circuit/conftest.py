import pytest
from stories import Planted


@pytest.fixture(scope="session")
def picture_case(tmp_path_factory):
    return Planted(tmp_path_factory.mktemp("planted"), "image")


@pytest.fixture(scope="session")
def sound_case(tmp_path_factory):
    return Planted(tmp_path_factory.mktemp("planted"), "audio")
