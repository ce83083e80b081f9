"""Public traces are downloaded from a server of this test, never from the network."""

from __future__ import annotations

import gc
import hashlib
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from cspsched.errors import InputError, UsageError
from cspsched.trace.fetch import PublicTrace, fetch_trace, public_traces
from tests.support.places import DATA

CONTENT = b"request_id,arrival_s,prompt_tokens,output_tokens\nr0,0,3,4\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAMES = {
    "azure-2023-code": "azure2023_code.csv",
    "azure-2023-conv": "azure2023_conv.csv",
    "mooncake-conversation": "mooncake_fast25_conversation.jsonl",
    "mooncake-synthetic": "mooncake_fast25_synthetic.jsonl",
}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words):
        del words


@pytest.fixture
def server(tmp_path):
    """A server of files, and how often it was asked."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "mine.csv").write_bytes(CONTENT)
    made = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def registry_of(url, sha256=SHA256):
    one = PublicTrace(title="t", url=url, sha256=sha256, size_bytes=len(CONTENT), licence="none", cite="none")
    return {"mine": one}


def needs_pooch():
    pytest.importorskip("pooch", reason="the extra fetch is not installed")


def test_a_trace_is_fetched_once(server, place):
    """The bytes are those of the server; what is there already is not asked for again."""
    needs_pooch()
    path = fetch_trace("mine", registry=registry_of(f"{server}/mine.csv"))
    assert path.read_bytes() == CONTENT
    assert [one.name for one in place.iterdir()] == ["mine.csv"]

    assert fetch_trace("mine", registry=registry_of("http://127.0.0.1:1/mine.csv")) == path


def test_it_is_written_where_it_is_asked(server, tmp_path):
    """Into a folder that is made."""
    needs_pooch()
    path = fetch_trace("mine", tmp_path / "new" / "a.csv", registry=registry_of(f"{server}/mine.csv"))

    assert (tmp_path / "new" / "a.csv").read_bytes() == path.read_bytes() == CONTENT


def test_another_file_than_that_of_the_registry_is_refused_and_not_kept(server, place):
    """A wrong checksum: one line, nothing left."""
    needs_pooch()
    with pytest.raises(
        InputError, match=r"is not the file of the registry: its SHA-256 is not 0+; nothing was kept"
    ):
        fetch_trace("mine", registry=registry_of(f"{server}/mine.csv", "0" * 64))

    assert list(place.iterdir()) == []


# pooch leaves the connection of a refused request to the collector of garbage.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("url", ["{server}/none.csv", "http://127.0.0.1:1/mine.csv"])
def test_what_cannot_be_fetched_is_said(url, server, place):
    """Not there, or no server: one line with the address, nothing left."""
    needs_pooch()
    with pytest.raises(InputError, match=r"cannot be fetched: .* \(is there a network\?\)$") as caught:
        fetch_trace("mine", registry=registry_of(url.format(server=server)))

    assert "\n" not in str(caught.value)
    assert list(place.iterdir()) == []
    del caught
    gc.collect()


def test_a_file_in_the_way_is_kept(place):
    """A file of the same name that is something else is not overwritten."""
    (place / "mine.csv").write_text("my own")
    with pytest.raises(UsageError, match=r"mine\.csv exists and is not mine; move it"):
        fetch_trace("mine", registry=registry_of("http://127.0.0.1:1/mine.csv"))

    assert (place / "mine.csv").read_text() == "my own"


def test_without_pooch_the_command_to_install_it_is_said(monkeypatch):
    """One line."""
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(UsageError) as caught:
        fetch_trace("mine", registry=registry_of("http://127.0.0.1:1/mine.csv"))

    assert (
        str(caught.value) == "trace fetch needs pooch, which is not installed: pip install 'cspsched[fetch]'"
    )


def test_an_unknown_name_is_refused():
    """The names that there are, are named."""
    with pytest.raises(
        UsageError, match="no public trace is called 'x'; there are azure-2023-code, azure-2023-conv"
    ):
        fetch_trace("x")


@pytest.mark.skipif(not DATA.is_dir(), reason="the public traces are not beside the checkout")
@pytest.mark.parametrize("name", public_traces())
def test_the_registry_has_the_checksums_of_the_files(name):
    """SHA-256 and size of our copy of each file, at a commit named by all its digits."""
    content = (DATA / "traces" / NAMES[name]).read_bytes()
    one = public_traces()[name]

    assert hashlib.sha256(content).hexdigest() == one.sha256
    assert len(content) == one.size_bytes
    assert len(one.url.split("/")[5]) == 40
