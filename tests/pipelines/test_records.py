"""Done is a record written last, not a file that exists."""

from __future__ import annotations

import pytest

from pipelines.jobfolder import JobFolder
from pipelines.records import changed_parts, current, finish, read_record

PARTS = {"slide": "abc", "encoder": {"id": "x", "weights_sha256": "1"}}


@pytest.fixture
def job(tmp_path):
    return JobFolder(tmp_path / "job")


def test_an_output_is_current_only_for_the_parts_it_was_made_from(job):
    output = job.root / "20x" / "features_x" / "a.h5"
    finish(job, output, b"data", PARTS, {"n_tiles": 3})
    assert current(job, output, PARTS).facts == {"n_tiles": 3}
    other = {**PARTS, "encoder": {"id": "x", "weights_sha256": "2"}}
    assert current(job, output, other) is None
    assert changed_parts(read_record(job, output), other) == ["encoder.weights_sha256"]


def test_existing_without_a_record_is_not_done(job):
    output = job.root / "a.h5"
    output.parent.mkdir(parents=True)
    output.write_bytes(b"data")
    assert current(job, output, PARTS) is None


@pytest.mark.parametrize("damage", ["delete", "shorten", "torn record"])
def test_a_damaged_output_is_not_done(job, damage):
    output = job.root / "a.h5"
    finish(job, output, b"data", PARTS)
    if damage == "delete":
        output.unlink()
    elif damage == "shorten":
        output.write_bytes(b"dat")
    else:
        record = job.record(output)
        record.write_bytes(record.read_bytes()[:20])
    assert current(job, output, PARTS) is None


def test_a_death_between_output_and_record_is_seen(job, monkeypatch):
    """The old record must go before the new output comes, else it would vouch for it."""
    output = job.root / "a.h5"
    finish(job, output, b"data", PARTS)
    import pipelines.records as records

    monkeypatch.setattr(records, "_seal", lambda *_: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        finish(job, output, b"DATA", {**PARTS, "slide": "other"})
    assert current(job, output, PARTS) is None
