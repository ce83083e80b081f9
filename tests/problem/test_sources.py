"""What was compiled from other sources is not taken for what they are now."""

from pathlib import Path

import cspsched
from cspsched.problem.sources import source_version

PACKAGE = Path(cspsched.__file__).parent


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


def test_version_changes_with_any_of_several_folders(tmp_path):
    """What is compiled from two folders is compiled anew when one of them changes."""
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        (folder / "a.py").write_text("x = 1\n")
    before = source_version(*folders)
    (folders[1] / "a.py").write_text("x = 2\n")

    assert source_version(*folders) != before


def test_kept_functions_carry_the_version_of_their_part():
    """A function whose callees live in other files is compiled anew when one of those changes."""
    from cspsched.bounds.memory_price.kernel import least_costs
    from cspsched.compiled.jit import version_of
    from cspsched.exact.heuristics.plan_scheduler import run_plan

    assert run_plan.py_func.__qualname__ == f"run_plan_{version_of('cspsched.exact')}"
    assert least_costs.py_func.__qualname__ == f"least_costs_{version_of('cspsched.bounds')}"


def test_the_version_of_a_part_is_that_of_its_folder_and_of_what_all_share():
    """Files in folders of the part count too."""
    from cspsched.compiled.jit import version_of

    exact, shared = PACKAGE / "exact", PACKAGE / "compiled"

    assert (exact / "states" / "best_first.py").exists()
    assert version_of("cspsched.exact.states.best_first") == source_version(shared, exact)
