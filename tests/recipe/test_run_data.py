"""What `[data]` means."""

import data.miniature
from recipe import MINIATURE, data_files


def test_data_files(tmp_path):
    assert data_files(str(tmp_path), ("a.json:10", "b.json", "c:d.json")) == [
        (tmp_path / "a.json", 10),
        (tmp_path / "b.json", None),
        (tmp_path / "c:d.json", None),
    ]
    assert data_files(MINIATURE, ("a.json",)) == [(data.miniature.folder() / "a.json", None)]
