"""`cspsched improve` and `cspsched bracket`: tables, JSON, files, and what they refuse."""

from __future__ import annotations

import json

import pytest

from cspsched.improve.rivals import REFERENCE_SET
from tests.support.command_line import invoke
from tests.support.pages import undocumented

SMALL = (
    "chat-2000",
    "--limit",
    "14",
    "--kv-tokens",
    "9000",
    "--heuristics",
    "vllm",
    "sarathi",
    "--steps",
    "60",
)


def test_improve_says_who_found_what(capsys):
    """Best policy, improved value, bound and gap stand in the table; the talk is on stderr."""
    outcome = invoke(capsys, "improve", *SMALL)

    assert outcome.code == 0
    for word in ("best policy", "improved", "bound", "gain", "certified gap", "60 steps"):
        assert word in outcome.out
    assert "simulating vllm" in outcome.err


def test_improve_as_json_saved_and_checked(capsys, tmp_path):
    """The JSON agrees with the saved schedule, which the referee accepts and `compare` takes as a row."""
    saved = tmp_path / "better.json"
    outcome = invoke(capsys, "improve", *SMALL, "--json", "--save", saved)
    data = json.loads(outcome.out)
    result = json.loads(saved.read_text(encoding="utf-8"))

    assert data["schema"] == "cspsched/improvement/1"
    assert data["bound_ns"] <= data["improved_ns"] <= data["best_policy_ns"]
    assert result["primal_ns"] == data["improved_ns"]
    assert result["found_by"] == data["found_by"]
    assert invoke(capsys, "check", saved).code == 0


def test_improve_resumes_from_its_state(capsys, tmp_path):
    """Two runs of 30 and of 60 steps in all give what one of 60 gives."""
    state = tmp_path / "state.json"
    invoke(capsys, "improve", *SMALL[:-1], "30", "--resume", state)
    resumed = json.loads(invoke(capsys, "improve", *SMALL, "--resume", state, "--json").out)
    whole = json.loads(invoke(capsys, "improve", *SMALL, "--json").out)

    assert resumed == whole


def test_a_time_limit_ends_the_search(capsys):
    """The stop reason says so."""
    data = json.loads(invoke(capsys, "improve", *SMALL[:-2], "--time-limit", "0s", "--json").out)

    assert (data["stop_reason"], data["steps"]) == ("time limit", 0)


def test_bracket_names_both_ends(capsys):
    """The text has the interval, the certificate, the search, and each policy with its excess."""
    outcome = invoke(capsys, "bracket", *SMALL)

    assert outcome.code == 0
    assert "optimal mean latency in [" in outcome.out
    assert "L by certificate" in outcome.out
    assert "U by" in outcome.out
    assert "clairvoyant" in outcome.out
    assert [line.split()[0] for line in outcome.out.splitlines()[-2:]] == ["vllm", "sarathi"]


def test_bracket_as_json(capsys):
    """Ends and excesses fit together."""
    data = json.loads(invoke(capsys, "bracket", *SMALL, "--objective", "makespan", "--json").out)

    assert data["schema"] == "cspsched/bracket/1"
    assert data["low_ns"] <= data["high_ns"]
    for row in data["policies"]:
        assert row["excess_at_least"] == pytest.approx(row["value_ns"] / data["high_ns"] - 1)
        assert row["excess_at_most"] == pytest.approx(row["value_ns"] / data["low_ns"] - 1)


@pytest.mark.parametrize(("name", "begin"), [("b.png", b"\x89PNG"), ("b.svg", b"<?xml")])
def test_bracket_draws_a_picture(name, begin, capsys, tmp_path):
    """The picture has the format of its name."""
    outcome = invoke(capsys, "bracket", *SMALL, "--picture", tmp_path / name)

    assert outcome.code == 0
    assert (tmp_path / name).read_bytes().startswith(begin)


def test_an_unknown_picture_format_is_refused(capsys, tmp_path):
    """The error names the file and what to do."""
    outcome = invoke(capsys, "bracket", *SMALL, "--picture", tmp_path / "b.xyz")

    assert outcome.code == 1
    assert "b.xyz" in outcome.err
    assert ".png" in outcome.err


def test_what_cannot_be_written_is_refused_before_the_search(capsys, tmp_path):
    """A place that cannot be written is found out at once."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    outcome = invoke(capsys, "improve", *SMALL, "--save", tmp_path / "file" / "s.json")

    assert outcome.code == 1
    assert "simulating" not in outcome.err


def test_compare_takes_its_upper_end_from_the_search(capsys):
    """With steps a large trace is held against a schedule that is better than every policy's."""
    arguments = ("chat-2000", "--limit", "60", "--scale-rate", "1000", "--kv-tokens", "9000", "--json")
    plain = json.loads(invoke(capsys, "compare", *arguments, "--steps", "0").out)
    improved = json.loads(invoke(capsys, "compare", *arguments, "--steps", "100").out)

    assert plain["reference"]["best_known_by"] in REFERENCE_SET
    assert improved["reference"]["best_known_ns"] < plain["reference"]["best_known_ns"]
    assert improved["reference"]["bound_ns"] == plain["reference"]["bound_ns"]
    assert all(row["excess_at_least"] > 0 for row in improved["policies"])


@pytest.mark.parametrize("command", ["improve", "bracket"])
def test_every_field_is_documented(command, capsys, tmp_path):
    """Every field of the JSON and of the state file stands in the formats page."""
    state = tmp_path / "state.json"
    data = json.loads(invoke(capsys, command, *SMALL, "--json", "--resume", state).out)

    assert list(undocumented(data)) == []
    assert list(undocumented(json.loads(state.read_text(encoding="utf-8")))) == []


BRIEF = (
    "chat-2000",
    "--limit",
    "14",
    "--kv-tokens",
    "9000",
    "--heuristics",
    "vllm",
    "sarathi",
    "--steps",
    "20",
)
LIMITS = ("--ttft-slo", "40ms", "--tpot-slo", "8ms")


@pytest.mark.parametrize("objective", ["ttft", "mean-tpot", "misses", "max-itl"])
def test_brackets_of_other_objectives(objective, capsys):
    """Each has both ends, what is left between them, and no policy below the lower end."""
    data = json.loads(invoke(capsys, "bracket", *BRIEF, *LIMITS, "--objective", objective, "--json").out)

    assert data["objective"] == objective
    assert 0 <= data["low_ns"] <= data["high_ns"] <= min(row["value_ns"] for row in data["policies"])
    assert data["why_open"]
    assert list(undocumented(data)) == []


def test_tpot_alone_is_closed_by_serving_one_by_one(capsys):
    """No request decodes faster than alone, so the bracket of the mean TPOT has next to no width."""
    data = json.loads(invoke(capsys, "bracket", *BRIEF, "--objective", "mean-tpot", "--json").out)

    assert "one by one" in data["found_by"]
    assert data["gap"] < 0.001


def test_misses_are_requests(capsys):
    """They are counted, not timed; a policy cannot be a share of none."""
    outcome = invoke(capsys, "bracket", *BRIEF, "--objective", "misses", "--ttft-slo", "40ms")

    assert outcome.code == 0
    assert "optimal misses in [" in outcome.out
    assert "missed]" in outcome.out


def test_misses_without_limits_say_what_to_do(capsys):
    """A trace without limits has nothing to miss."""
    outcome = invoke(capsys, "bracket", *BRIEF, "--objective", "misses")

    assert outcome.code == 1
    assert "ttft_limit_s" in outcome.err


def test_several_brackets_are_the_single_ones(capsys):
    """In one call, in processes: a list with each bracket as it is alone."""
    arguments = ("bracket", *BRIEF, "--json", "--objective")
    both = json.loads(invoke(capsys, *arguments, "makespan", "ttft", "--executor", "processes").out)
    single = [json.loads(invoke(capsys, *arguments, name).out) for name in ("makespan", "ttft")]

    assert both["schema"] == "cspsched/bracket-list/1"
    assert [one.pop("warnings") for one in (both, *single)] == [[], [], []]
    assert both["brackets"] == [{"batch_times": "given", **one} for one in single]
    assert list(undocumented(both)) == []


def test_a_bracket_at_both_ends_of_the_error_band(capsys):
    """Fast batches lower both ends, slow ones raise them."""
    found = json.loads(invoke(capsys, "bracket", *BRIEF, "--uncertainty", "--json").out)["brackets"]
    given, fast, slow = found

    assert [one["batch_times"] for one in found] == ["given", "fast", "slow"]
    assert fast["low_ns"] < given["low_ns"] < slow["low_ns"]
    assert fast["high_ns"] < given["high_ns"] < slow["high_ns"]


def test_the_page_has_pictures_and_the_curve(capsys, tmp_path):
    """The folder holds page, JSON, bracket and curve; the text says how far policies are off."""
    outcome = invoke(capsys, "bracket", *BRIEF, "--out", tmp_path, "--curve-points", "3")
    data = json.loads((tmp_path / "bracket.json").read_text(encoding="utf-8"))

    assert "vllm is above the optimum by at least" in outcome.out
    assert (tmp_path / "curve-mean-latency.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "bracket.html").read_text(encoding="utf-8")
    assert "data:image/png;base64" in page
    assert "mean latency, over time</h2>" in page
    assert 'data-bands="0"' in page
    assert data["curve"]["bounds_ns"][-1] <= data["low_ns"]
    for policy, row in zip(data["curve"]["policies_ns"], data["policies"], strict=True):
        assert policy["values_ns"][-1] == row["value_ns"]
        columns = zip(
            data["curve"]["bounds_ns"], data["curve"]["best_known_ns"], policy["values_ns"], strict=True
        )
        assert all(bound <= best <= value for bound, best, value in columns)
    assert list(undocumented(data)) == []


def test_a_curve_of_one_moment_is_not_drawn(capsys, tmp_path):
    """Where all requests are there at 0 there is nothing to draw over time."""
    tight = ("--cost", "infermax-70b", "--kv-tokens", "64", "--block-tokens", "1", "--steps", "5")
    outcome = invoke(capsys, "bracket", "burst-6", *tight, "--out", tmp_path)

    assert outcome.code == 0
    assert [path.name for path in tmp_path.glob("*.png")] == ["bracket-mean-latency.png"]


def test_one_file_for_many_brackets_is_refused(capsys, tmp_path):
    """--picture and --save are for one bracket."""
    arguments = ("bracket", *BRIEF, "--uncertainty", "--picture", tmp_path / "b.png")
    outcome = invoke(capsys, *arguments)

    assert outcome.code == 2 or "one bracket" in outcome.err
    assert "one bracket" in outcome.err


def test_several_seeds_are_as_good_as_the_best(capsys):
    """The best of three seeds, in processes, is no worse than the first alone, and steps add up."""
    one = json.loads(invoke(capsys, "improve", *BRIEF, "--json").out)
    three = json.loads(
        invoke(capsys, "improve", *BRIEF, "--json", "--seeds", "3", "--executor", "processes").out
    )

    assert three["improved_ns"] <= one["improved_ns"]
    assert three["steps"] == 3 * one["steps"]


def test_a_state_is_of_one_seed(capsys, tmp_path):
    """Several seeds cannot share a state file."""
    outcome = invoke(capsys, "improve", *BRIEF, "--seeds", "2", "--resume", tmp_path / "s.json")

    assert outcome.code != 0
    assert "one seed" in outcome.err
