"""Every format: its sample is read right from any layout, comes back when written, and 15 variants of it."""

from __future__ import annotations

import gzip

import pytest

from cspsched.errors import UsageError
from cspsched.problem.request import Request
from cspsched.trace import read_trace, write_trace
from cspsched.trace.detect import format_called
from cspsched.trace.formats import FORMATS
from tests.support.command_line import invoke
from tests.support.trace_samples import HARMLESS, SAMPLES, VARIANTS, Sample, render

WRITTEN = [sample for sample in SAMPLES if sample.format != "sharegpt"]


def ids(sample: Sample) -> str:
    return sample.format


@pytest.fixture
def file_of(tmp_path):
    """Write bytes to a file with the suffix of a sample and return its path."""

    def write(sample, content):
        path = tmp_path / f"trace{sample.suffix}"
        path.write_bytes(content)
        return path

    return write


def fields(requests):
    return [(one.request_id, one.arrival_ns, one.prompt_tokens, one.output_tokens) for one in requests]


def test_there_is_a_sample_of_each_format():
    """All but that of client windows, which has no requests."""
    assert {sample.format for sample in SAMPLES} == {one.name for one in FORMATS} - {"servegen"}


@pytest.mark.parametrize("sample", SAMPLES, ids=ids)
def test_the_sample_is_recognised_and_read(sample, file_of):
    """Names, nanoseconds since the first arrival and lengths; a note says what it was taken for."""
    trace = read_trace(file_of(sample, sample.content))

    assert trace.format == sample.format
    assert fields(trace.requests) == sample.requests
    assert (sample.format == "native") == (not trace.notes)
    assert all(sample.format in note for note in trace.notes[:1])


@pytest.mark.parametrize("sample", SAMPLES, ids=ids)
def test_the_name_of_the_format_gives_the_same(sample, file_of):
    """`--format` in the place of a look at the columns."""
    path = file_of(sample, sample.content)

    assert read_trace(path, trace_format=sample.format).requests == read_trace(path).requests


@pytest.mark.parametrize("layout", ["csv", "lines", "list"])
@pytest.mark.parametrize("name", ["native", "azure", "burstgpt", "vidur", "splitwise", "llmservingsim-run"])
def test_a_format_is_read_from_every_layout(name, layout, tmp_path):
    """The columns make the format, not the layout; the digits of a float are those of its text."""
    (sample,) = (one for one in SAMPLES if one.format == name)
    path = tmp_path / "trace.dat"
    path.write_text(render(sample.rows, layout), encoding="utf-8")

    assert fields(read_trace(path).requests) == sample.requests


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".parquet"])
@pytest.mark.parametrize("sample", WRITTEN, ids=ids)
def test_what_is_written_is_read_again(sample, suffix, file_of, tmp_path):
    """The same requests, prefixes too, plain, packed or as Parquet; nothing is lost."""
    requests = read_trace(file_of(sample, sample.content)).requests
    path = tmp_path / f"again{suffix}"
    losses = write_trace(requests, path, format_called(sample.format))

    assert losses == ()
    assert read_trace(path, trace_format=sample.format).requests == requests


@pytest.mark.parametrize("sample", WRITTEN, ids=ids)
def test_a_written_file_is_recognised(sample, file_of, tmp_path):
    """As the format that it was written in, without being told."""
    write_trace(
        read_trace(file_of(sample, sample.content)).requests, tmp_path / "again", format_called(sample.format)
    )

    assert read_trace(tmp_path / "again").format == sample.format


@pytest.mark.parametrize("name", ["sharegpt", "servegen"])
def test_some_formats_are_not_written(name, tmp_path):
    """Text of conversations and rates of clients cannot be made of requests."""
    request = Request(request_id="a", arrival_ns=0, prompt_tokens=1, output_tokens=1)
    with pytest.raises(UsageError, match=f"format {name} .* is read and not written"):
        write_trace([request], tmp_path / "trace", format_called(name))

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variant", HARMLESS)
@pytest.mark.parametrize("sample", SAMPLES, ids=ids)
def test_a_harmless_variant_is_read_as_the_sample(sample, variant, file_of):
    """A byte-order mark, Windows' line ends, a missing last newline, rows in another order."""
    trace = read_trace(file_of(sample, VARIANTS[variant](sample)))

    assert fields(trace.requests) == sample.requests


BROKEN = [name for name in VARIANTS if name not in HARMLESS]
LEFT_OUT = ("NaN", "negative", "10^12 tokens", "mixed types")
"""A conversation that is no text has no lengths, and is left out; it has no numbers that could be wrong."""


def is_read(sample: Sample, variant: str) -> bool:
    """Whether a variant has a right reading: a row twice has, where rows have no names."""
    return (variant == "repeated" and sample.name is None) or (
        sample.format == "sharegpt" and variant in LEFT_OUT
    )


REFUSED = [(sample, variant) for sample in SAMPLES for variant in BROKEN if not is_read(sample, variant)]
READ = [(sample, variant) for sample in SAMPLES for variant in BROKEN if is_read(sample, variant)]


@pytest.mark.parametrize(("sample", "variant"), REFUSED, ids=lambda one: getattr(one, "format", one))
def test_a_broken_variant_is_refused_in_one_line(sample, variant, file_of, tmp_path, capsys):
    """The line names the file, exit code 1, and nothing is written."""
    path = file_of(sample, VARIANTS[variant](sample))
    outcome = invoke(capsys, "trace", "convert", path, tmp_path / "out.csv")
    last = outcome.err.splitlines()[-1]

    assert (outcome.code, outcome.out) == (1, "")
    assert last.startswith(f"error: {path}")
    assert "internal" not in outcome.err
    assert outcome.err.count("error: ") == 1
    assert len(last) < 600
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("sample", "variant"), READ, ids=lambda one: getattr(one, "format", one))
def test_a_variant_with_a_right_reading(sample, variant, file_of):
    """A row twice is two requests; a conversation without text is left out, and told."""
    trace = read_trace(file_of(sample, VARIANTS[variant](sample)))

    if variant == "repeated":
        assert fields(trace.requests)[:-1] == sample.requests
        assert trace.requests[-1].prompt_tokens == trace.requests[-2].prompt_tokens
    else:
        assert len(trace.requests) == len(sample.requests) - 1
        assert "1 of 3 conversations have no two turns and are left out" in trace.notes


CELLS = {
    "finer unit": ("arrival", 1),
    "NaN": ("prompt", 1),
    "negative": ("output", 1),
    "10^12 tokens": ("prompt", 2),
    "mixed types": ("output", 2),
}


@pytest.mark.parametrize("variant", CELLS)
@pytest.mark.parametrize("sample", WRITTEN, ids=ids)
def test_the_refusal_of_a_cell_names_place_column_and_remedy(sample, variant, file_of, capsys):
    """Line of text, entry of a list or request of a run; the column as the file calls it."""
    role, row = CELLS[variant]
    path = file_of(sample, VARIANTS[variant](sample))
    place = {
        "csv": f"line {row + 2}",
        "lines": f"line {row + 1}",
        "list": f"entry {row + 1}",
        "lists": f"request {row + 1}",
    }
    said = invoke(capsys, "trace", "describe", path).err.splitlines()[-1]

    assert said.startswith(f"error: {path} {place[sample.layout]}: {getattr(sample, role)} is ")
    assert ", expected " in said
    assert "(drop the row" in said


@pytest.mark.parametrize("sample", SAMPLES, ids=ids)
@pytest.mark.parametrize("length", [1, 5, 20, -1])
def test_a_damaged_archive_is_refused(sample, length, tmp_path, capsys):
    """Cut off anywhere, or with another byte in the middle."""
    packed = bytearray(gzip.compress(sample.content))
    if length < 0:
        packed[len(packed) // 2] ^= 0xFF
    path = tmp_path / "trace.gz"
    path.write_bytes(bytes(packed) if length < 0 else bytes(packed[:-length]))
    outcome = invoke(capsys, "trace", "describe", path)

    assert outcome.code == 1
    assert f"error: {path} is packed and damaged" in outcome.err
