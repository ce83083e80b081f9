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


def test_version_changes_with_any_of_several_folders(tmp_path):
    """What is compiled from two folders is compiled anew when one of them changes."""
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        (folder / "a.py").write_text("x = 1\n")
    before = source_version(*folders)
    (folders[1] / "a.py").write_text("x = 2\n")

    assert source_version(*folders) != before
