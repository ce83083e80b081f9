"""`cspsched trace fit`, `generate` and `sample`: from a trace to a profile and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cspsched.trace import describe, read_trace
from cspsched.trace.generators import load_profile, shipped_profiles
from tests.support.command_line import invoke


@pytest.fixture(autouse=True)
def _scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_trace_is_fitted_and_drawn_again(capsys):
    """The profile names its source, the summary its distances; what is drawn has the rate and the lengths."""
    fitted = invoke(
        capsys,
        "trace",
        "fit",
        "chat-2000",
        "-o",
        "new/mine.json",
        "--source",
        "our gateway",
        "--name",
        "ours",
    )
    drawn = invoke(
        capsys, "trace", "generate", "--profile", "new/mine.json", "--requests", "3k", "--out", "made.csv"
    )
    profile = load_profile("new/mine.json")
    made, given = describe(read_trace("made.csv")), describe(read_trace_named("chat-2000"))

    assert fitted.code == drawn.code == 0
    assert (profile.name, profile.source) == ("ours", "our gateway")
    assert profile.fit_date is not None
    assert [line.split()[0] for line in fitted.out.splitlines()] == [
        "prompt", "output", "Spearman", "arrivals", "dispersion", "dispersion",
    ]  # fmt: skip
    assert made.num_requests == 3000
    assert pytest.approx(given.rate_per_s, rel=0.1) == made.rate_per_s
    assert pytest.approx(given.prompt_tokens.mean, rel=0.1) == made.prompt_tokens.mean
    assert pytest.approx(given.output_tokens.mean, rel=0.1) == made.output_tokens.mean


def read_trace_named(name):
    from cspsched.trace.shipped import shipped_trace_path

    return read_trace(shipped_trace_path(name))


def test_json_of_a_fit_is_the_profile(capsys):
    """What is printed is what is written; mixtures have the components asked for."""
    outcome = invoke(capsys, "trace", "fit", "chat-2000", "-o", "mine.json", "--components", 2, "--json")

    assert json.loads(outcome.out) == json.loads(Path("mine.json").read_text())
    assert len(json.loads(outcome.out)["lengths"]["prompt"]["weights"]) == 2


def test_a_duration_has_as_many_requests_as_arrive(capsys):
    """Ten minutes at 2 requests/s; the same bytes twice."""
    arguments = ("trace", "generate", "--duration", "10min", "--rate", 2, "--seed", 3)
    first = invoke(capsys, *arguments, "--output", "a.csv", "--json")
    invoke(capsys, *arguments, "--output", "b.csv")
    data = json.loads(first.out)

    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()
    assert data["num_requests"] == len(read_trace("a.csv").requests)
    assert pytest.approx(1200, rel=0.1) == data["num_requests"]
    assert (data["profile"], data["rate_per_s"]) == ("chat", 2.0)


def test_lengths_can_be_those_of_another_profile(capsys):
    """The arrivals of chat with the lengths of tiny."""
    invoke(capsys, "trace", "generate", "--requests", 50, "--lengths", "tiny", "--output", "a.csv")

    assert max(request.prompt_tokens for request in read_trace("a.csv").requests) <= 40


def test_a_sample_says_what_it_is(capsys):
    """On stderr, and in JSON."""
    outcome = invoke(capsys, "trace", "sample", "chat-2000", "--requests", 5, "-o", "few.csv", "--json")
    how = "5 of 2,000 requests, drawn without replacement (seed 0)"

    assert outcome.code == 0
    assert json.loads(outcome.out)["how"] == how
    assert f"wrote 5 requests to few.csv: {how}\n" in outcome.err
    assert len(read_trace("few.csv").requests) == 5


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_trace_is_pictured(suffix, capsys):
    """The file is told and written, into a folder that is made."""
    outcome = invoke(capsys, "trace", "describe", "chat-2000", "--plot", f"new/picture{suffix}")

    assert outcome.code == 0
    assert f"wrote new/picture{suffix}\n" in outcome.err
    assert Path(f"new/picture{suffix}").stat().st_size > 10_000


def test_a_trace_has_a_load_on_a_named_device(capsys):
    """An interval, in text and JSON; without a word of the set-up there is none."""
    options = ("trace", "describe", "chat-2000", "--limit", 200)
    text = invoke(capsys, *options, "--device", "a100-80")
    data = json.loads(invoke(capsys, *options, "--kv-tokens", "64k", "--json").out)

    (line,) = [line for line in text.out.splitlines() if line.startswith("load")]
    assert line.split()[1:4] == [line.split()[1], "%", "to"]
    assert "no scheduler needs less" in line
    assert 0 < data["load"]["at_least"] < data["load"]["at_most"] < 1
    assert "load" not in json.loads(invoke(capsys, *options, "--json").out)


BROKEN = {
    "not there": ("generate --profile nope", 2, "no shipped profile is called 'nope'; there are "),
    "no such file": ("generate --profile nope.json", 1, "nope.json does not exist"),
    "two amounts": ("generate --requests 3 --duration 2s", 2, "expected one of num_requests and duration_s"),
    "too many": ("generate --requests 900000000", 2, "expected at least 1 and at most 100000000"),
    "nothing asked": (
        "sample tiny-12",
        2,
        "expected one of num_requests and rate_per_s (--requests, --rate)",
    ),
    "few": ("fit tiny-12", 1, "trace 'tiny-12' has 12 requests, expected at least 100 to fit a profile to"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_done_is_refused_and_nothing_written(case, capsys):
    """One line, and no file."""
    call, code, sentence = BROKEN[case]
    outcome = invoke(capsys, "trace", *call.split(), "--output", "out.csv")

    assert outcome.code == code
    assert sentence in outcome.err
    assert list(Path().iterdir()) == []


NOT_PROFILES = {
    "no object": ("[]", "expected a JSON object with schema 'cspsched/trace-profile/1', got list"),
    "no JSON": ("{", "no valid JSON"),
    "schema": ('{"schema": "cspsched/trace-profile/9"}', "schema is 'cspsched/trace-profile/9'"),
    "no name": ({"name": None}, "name: missing"),
    "unknown key": ({"colour": 1}, "colour: unknown key"),
    "code": ({"rate_per_s": "__import__('os')"}, "rate_per_s: input should be a valid number"),
    "text number": ({"rate_per_s": "5"}, "rate_per_s: input should be a valid number"),
    "infinite": ({"rate_per_s": 1e999}, "rate_per_s: input should be a finite number"),
    "negative": ({"arrivals": {"cv": -1}}, "arrivals.cv: input should be greater than or equal to 0.01"),
    "family": ({"arrivals": {"family": "pareto"}}, "arrivals.family: input should be 'gamma' or 'weibull'"),
    "few hours": ({"rate": {"hours": [1, 2]}}, "rate.hours: tuple should have at least 24 items"),
    "no hours": ({"rate": {"hours": [0] * 24}}, "rate: hours are all 0, expected a rate above 0"),
    "falling": (
        {"lengths": {name: {"kind": "quantiles", "tokens": [2, 1]} for name in ("prompt", "output")}},
        "lengths.prompt.quantiles: tokens falls, expected quantiles from the shortest to the longest",
    ),
    "kind": ({"lengths": {"prompt": {"kind": "pmf"}}}, "lengths.prompt: input tag 'pmf' found using 'kind'"),
    "both": (
        {
            "clients": [{"share": 1}],
            "sessions": {
                "mean_turns": 2,
                "gap_s": {"mu": 1, "sigma": 1},
                "new_tokens": {"kind": "quantiles", "tokens": [1, 1]},
            },
        },
        "the file: has clients and sessions, expected one of them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_PROFILES)
def test_a_file_that_is_no_profile_is_refused(case, capsys):
    """The line names the file and the key, and nothing of the file is evaluated."""
    content, sentence = NOT_PROFILES[case]
    if isinstance(content, dict):
        data = {"schema": "cspsched/trace-profile/1", "name": "n", "source": "s", **content}
        content = json.dumps({key: value for key, value in data.items() if value is not None})
    Path("p.json").write_text(content)
    outcome = invoke(capsys, "trace", "generate", "--profile", "p.json", "--output", "out.csv")

    assert outcome.code == 1
    assert "p.json" in outcome.err
    assert sentence in outcome.err
    assert not Path("out.csv").exists()


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_shipped_profile_is_whole(name):
    """Its name is the file's, it says its source, and what is written of it is what it is."""
    profile = load_profile(name)

    assert profile.name == name
    assert len(profile.source) > 20
    assert profile == type(profile).from_json(profile.to_json(), name)
