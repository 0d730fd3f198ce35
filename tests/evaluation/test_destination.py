"""What --out may replace: an earlier report and its page. Whatever else lies there stays as it is."""

from pathlib import Path

import pytest
from exam_results import exam
from reported import a_run

from evaluation import check_destination, exam_page, write_report
from files import UnsuitableFileError
from training.report import write_run_page


def report_at(path: Path) -> Path:
    write_report(path, exam("rw"), {"description": "a model"})
    page = exam_page(exam("rw"), settings={"exam": "x"}, questions=[])
    path.with_suffix(".html").write_bytes(page.content())
    return path


def refused(*arguments: Path) -> str:
    with pytest.raises(UnsuitableFileError, match="name another --out") as caught:
        check_destination(*arguments)
    return str(caught.value)


def test_a_new_report_and_an_earlier_one_of_its_own(tmp_path):
    check_destination(tmp_path / "new" / "report.json")
    assert (tmp_path / "new").is_dir()
    check_destination(report_at(tmp_path / "report.json"))


@pytest.mark.parametrize("content", ['[{"question": "Which?"}]', '{"my": "precious"}', "", "{", "\x00\x00\x00"])
def test_any_other_file_is_refused(tmp_path, content):
    path = tmp_path / "exam.json"
    path.write_text(content)
    assert refused(path).startswith(f"{path}: there is a file of this name, and it is no report on an exam")
    assert path.read_text() == content


def test_the_page_of_a_training_run_is_refused(tmp_path):
    page = write_run_page(a_run(tmp_path / "run", 3))
    assert refused(page.with_suffix(".json")).startswith(f"{page}: the page would go here")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_whatever_has_the_pages_name_is_refused(tmp_path, make):
    make(tmp_path / "report.html")
    refused(tmp_path / "report.json")


def test_the_report_compared_with_is_refused_under_any_name(tmp_path):
    report = report_at(tmp_path / "report.json")
    (tmp_path / "same.json").symlink_to(report)
    assert "the report to --compare with" in refused(report, tmp_path / "same.json")
    check_destination(report, report_at(tmp_path / "other.json"))


def test_a_directory_that_cannot_be_made_shows_now(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        check_destination(tmp_path / "file" / "report.json")
