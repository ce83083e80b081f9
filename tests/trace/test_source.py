"""Files, archives and standard input."""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from cspsched.errors import InputError, TraceError
from cspsched.trace import read_trace
from cspsched.trace.source import read_source, stem_of

TEXT = b"arrival_s,prompt_tokens,output_tokens\n0,5,3\n1,7,1\n"


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: pa.compress(data, codec="zstd", asbytes=True)])
@pytest.mark.parametrize("name", ["trace.csv.gz", "trace.csv"])
def test_an_archive_is_known_by_its_first_bytes(pack, name, tmp_path):
    """Whatever the suffix is, the trace is called by the name without it."""
    (tmp_path / name).write_bytes(pack(TEXT))
    trace = read_trace(tmp_path / name)

    assert len(trace.requests) == 2
    assert trace.name == "trace"


def test_several_members_of_gzip_are_one_text(tmp_path):
    """As `cat a.gz b.gz` makes them."""
    (tmp_path / "trace.gz").write_bytes(gzip.compress(TEXT[:45]) + gzip.compress(TEXT[45:]))

    assert read_source(tmp_path / "trace.gz").data == TEXT


@pytest.mark.parametrize("cut", [5, -1, -10])
def test_a_cut_off_zstandard_archive_is_refused(cut, tmp_path):
    """It says that the archive is damaged, not what its text is."""
    (tmp_path / "trace.zst").write_bytes(pa.compress(TEXT * 1000, codec="zstd", asbytes=True)[:cut])

    with pytest.raises(TraceError, match=r"trace\.zst is packed and damaged \(.*\); pack or fetch it again"):
        read_trace(tmp_path / "trace.zst")


def test_standard_input(monkeypatch):
    """`-` is standard input, packed or not; messages call it so."""
    for data in (TEXT, gzip.compress(TEXT)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert len(read_trace("-").requests) == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(TraceError, match="standard input is empty"):
        read_trace("-")


@pytest.mark.parametrize("order", ["utf-16", "utf-16-le"])
def test_utf_16_is_named(order, tmp_path):
    """Where its mark says so; without it zeros stand between the letters."""
    (tmp_path / "trace.csv").write_bytes(TEXT.decode().encode(order))
    with pytest.raises((InputError, TraceError)) as caught:
        read_trace(tmp_path / "trace.csv")

    if order == "utf-16":
        assert str(caught.value).endswith("is no UTF-8 text but UTF-16; save it as UTF-8")


@pytest.mark.parametrize(
    ("name", "stem"), [("a.csv", "a"), ("a.csv.gz", "a"), ("a.b.jsonl.zst", "a.b"), ("a", "a"), ("a.gz", "a")]
)
def test_the_name_of_a_trace(name, stem):
    """The file's name without its suffixes."""
    assert stem_of(Path(name)) == stem
