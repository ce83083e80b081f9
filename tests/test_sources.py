"""What was compiled from other sources is not taken for what they are now."""

from cspsched.problem.sources import source_version


def test_version_changes_with_any_source_below_a_folder(tmp_path):
    """Content counts, wherever the file is; other files do not."""
    (tmp_path / "inner").mkdir()
    source = tmp_path / "inner" / "a.py"
    source.write_text("x = 1\n")
    before = source_version(tmp_path)
    (tmp_path / "notes.txt").write_text("more")

    assert source_version(tmp_path) == before
    source.write_text("x = 2\n")
    assert source_version(tmp_path) != before


def test_kernels_of_the_exact_searches_carry_the_version():
    """A function whose callees live in other files is compiled anew when one of those changes."""
    from cspsched.exact.heuristics.plan_scheduler import run_plan
    from cspsched.exact.jit import VERSION

    assert run_plan.py_func.__qualname__ == f"run_plan_{VERSION}"
