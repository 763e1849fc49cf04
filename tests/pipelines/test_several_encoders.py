"""Several encoders in one pass: what each gives is what it gives alone, and tiles are read once."""

from __future__ import annotations

import numpy as np
import pytest
from _command import slidemil, slidemil_json

import wsi
from pipelines.config import load_settings
from pipelines.encoding import encoders_of
from pipelines.errors import UsageError
from pipelines.features import read_features

COMMON = ("--set", "quality=false", "--set", "processes=0", "--limit", 2, "--stain", "macenko")
BOTH = ("--encoder", "descriptors,test_resnet", "--weights", ",random")


def features(job):
    return {path.relative_to(job).as_posix(): read_features(path) for path in job.glob("*/features_*/*.h5")}


@pytest.fixture
def slides(cohort):
    return cohort.slides[0].path.parent


def test_each_gives_what_it_gives_alone_and_tiles_are_read_once(slides, tmp_path, monkeypatch):
    read = []
    stream = wsi.stream
    monkeypatch.setattr(wsi, "stream", lambda sources, **more: read.append(stream(sources, **more)) or read[-1])
    code, said = slidemil_json("extract", slides, "-o", tmp_path / "both", *COMMON, *BOTH)
    assert (code, said["slides"]["done"], len(said["outputs"])) == (0, 2, 4)
    assert len(read) == 1, "one stream for both"
    for encoder, weights in (("descriptors", ()), ("test_resnet", ("--weights", "random"))):
        alone = ("extract", slides, "-o", tmp_path / encoder, *COMMON, "--encoder", encoder, *weights)
        assert slidemil(*alone)[0] == 0
    both = features(tmp_path / "both")
    apart = features(tmp_path / "descriptors") | features(tmp_path / "test_resnet")
    assert both.keys() == apart.keys()
    for name, found in both.items():
        assert found.passport == apart[name].passport
        assert np.array_equal(found.xy, apart[name].xy)
        if "descriptors" in name:
            assert np.array_equal(found.features, apart[name].features)
        else:  # alone, stain and normalization are one pass
            assert np.allclose(found.features, apart[name].features, atol=2e-2)


def test_a_second_encoder_is_added_and_then_nothing_is_left_to_do(slides, tmp_path):
    job = tmp_path / "job"
    assert slidemil("extract", slides, "-o", job, *COMMON)[0] == 0
    code, said = slidemil_json("extract", slides, "-o", job, *COMMON, *BOTH)
    assert (code, said["slides"]["done"], len(features(job))) == (0, 2, 4)
    code, said = slidemil_json("extract", slides, "-o", job, *COMMON, *BOTH)
    assert (code, said["slides"]["skipped"]) == (0, 2)
    next(job.glob("*/features_test_resnet/*.h5")).unlink()
    code, said = slidemil_json("extract", slides, "-o", job, *COMMON, *BOTH)
    assert (code, said["slides"]["done"], said["slides"]["skipped"], len(features(job))) == (0, 1, 1, 4)


@pytest.mark.parametrize(
    ("encoder", "weights", "words"),
    [("descriptors,resnet18", "a.pt", "1 files for 2 encoders"), ("resnet18,resnet18", "a.pt,b.pt", "twice")],
)
def test_encoders_and_weights_that_do_not_fit_are_refused(encoder, weights, words):
    settings = load_settings(options={"encoder": encoder, "weights": weights}).extract
    with pytest.raises(UsageError, match=words):
        encoders_of(settings, offline=True)
