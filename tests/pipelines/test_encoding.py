"""The encoder of a job: its self-check, its licence, several devices at once."""

from __future__ import annotations

import json
import resource
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from _command import digests, slidemil, slidemil_json

from mil import create_encoder
from pipelines import encoding
from pipelines.config import load_settings
from pipelines.encoding import check_device, devices_of, encoder_of, self_check, settled
from pipelines.errors import EnvironmentFault, UsageError
from pipelines.features import read_features, read_passport


def test_an_encoder_whose_tiles_touch_each_other_keeps_the_batch_size_in_its_passport():
    encoder = create_encoder("test_resnet", weights="random", device="cpu")
    self_check(encoder)
    assert encoder.passport()["batch_size"] is None
    passes = []
    encoder.module.register_forward_hook(lambda module, inputs, out: passes.append(out) or out + inputs[0].mean())
    self_check(encoder)
    assert len(passes) == 2, "so few that no encoder is too slow for it"
    assert encoder.passport()["batch_size"] == encoder.batch_size
    assert "other features" in encoder.notes[0]


@pytest.mark.parametrize(("name", "refused"), [("virchow2", "forbids"), ("gpfm", "may forbid"), ("descriptors", "")])
def test_commercial_only_refuses_by_licence(name, refused):
    settings = load_settings(options={"encoder": name, "commercial_only": True, "device": "cpu"}).extract
    if not refused:
        assert encoder_of(settings, offline=True).id == name
        return
    with pytest.raises(UsageError, match=refused):
        encoder_of(settings, offline=True)


def test_a_batch_size_that_is_not_given_is_found():
    settings = load_settings(options={"batch_size": 0}).extract
    encoder = create_encoder("descriptors")
    assert settled(settings, encoder).batch_size == 64


def test_devices_with_commas_and_all(monkeypatch):
    assert devices_of("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices_of("all") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(EnvironmentFault, match="0 CUDA devices"):
        encoder_of(load_settings(options={"device": "all"}).extract, offline=True)
    with pytest.raises(UsageError, match="tpu"):
        encoder_of(load_settings(options={"device": "cpu,tpu"}).extract, offline=True)


def test_two_devices_share_a_job_and_give_what_one_gives(cohort, tmp_path):
    """Each slide is made by one of them; nothing in the job tells by which."""
    slides = cohort.slides[0].path.parent
    common = ("--set", "quality=false", "--set", "processes=0", "--limit", 4)
    code, one = slidemil_json("extract", slides, "-o", tmp_path / "one", "--device", "cpu", *common)
    assert code == 0
    code, two = slidemil_json("extract", slides, "-o", tmp_path / "two", "--device", "cpu,cpu", *common)
    assert (code, two["slides"]["failed"]) == (0, 0), two
    assert two["slides"]["done"] + two["slides"]["skipped"] == one["slides"]["done"] == 4
    runs = [json.loads(path.read_text()) for path in (tmp_path / "two" / "runs").glob("*.json")]
    assert len(runs) == 2
    assert sum(run["outcome"]["slides"]["done"] for run in runs) == 4
    left, right = digests(tmp_path / "one"), digests(tmp_path / "two")
    for told in ("job.yaml", ".done/job.yaml.json"):  # they say which devices were asked for
        left.pop(told), right.pop(told)
    assert left == right


@pytest.mark.skipif(find_spec("openvino") is None, reason="the extra `openvino` is not installed")
def test_openvino_is_a_device_whose_features_are_those_of_the_cpu(cohort, tmp_path):
    """They may be mixed, so a job that was begun with it goes on without."""
    slides, job = cohort.slides[0].path.parent, tmp_path / "job"
    quick = ("--set", "quality=false", "--set", "processes=0", "--encoder", "test_vit", "--weights", "random")
    code, one = slidemil_json("extract", slides, "-o", job, "--device", "openvino", *quick, "--limit", 1)
    assert (code, one["slides"]["done"]) == (0, 1)
    code, two = slidemil_json("extract", slides, "-o", job, "--device", "cpu", *quick, "--limit", 2)
    assert (code, two["slides"]["done"], two["slides"]["skipped"]) == (0, 1, 1)
    files = sorted(job.glob("*/features_test_vit/*.h5"))
    assert sorted(read_passport(file)["device"] for file in files) == ["cpu", "openvino"]
    assert slidemil("check", *files)[0] == 0
    code, _ = slidemil_json("extract", slides, "-o", tmp_path / "torch", "--device", "cpu", *quick, "--limit", 1)
    done = next(file for file in files if read_passport(file)["device"] == "openvino")
    ours, wanted = (read_features(path) for path in (done, *(tmp_path / "torch").glob(f"*/*/{done.name}")))
    assert ours.passport["backend"] == "openvino"
    assert np.array_equal(ours.xy, wanted.xy)
    off = np.abs(ours.features.astype(float) - wanted.features.astype(float)).max()
    assert off <= 2**-9 * np.abs(wanted.features).max(), "two steps of float16"


def test_openvino_that_is_not_installed_is_said_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(encoding.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'slidemil\[openvino\]'"):
        encoder_of(load_settings(options={"device": "openvino"}).extract, offline=True)
    with pytest.raises(UsageError, match="write auto, cpu, cuda, or"):
        check_device("openvino")  # what trains or transfers stains is torch's


def test_the_verbs_of_encoders_answer():
    code, text = slidemil("encoders", "list", "--commercial-only")
    assert code == 0
    assert "hoptimus0" in text
    assert "uni_v1" not in text
    code, found = slidemil_json("encoders", "show", "uni")
    assert (code, found["id"], found["page"]) == (0, "uni_v1", "https://huggingface.co/MahmoodLab/UNI")
    assert slidemil("encoders", "show", "unii")[0] == 2


def test_verify_keeps_a_fingerprint_and_sees_other_numbers(tmp_path):
    kept = tmp_path / "print.json"
    assert slidemil("encoders", "verify", "test_vit", "--weights", "random", "-o", kept)[0] == 0
    assert slidemil("encoders", "verify", "test_vit", "--weights", "random", "--expect", kept)[0] == 0
    assert slidemil("encoders", "verify", "test_vit", "--weights", "random:1", "--expect", kept)[0] == 7
    told = json.loads(kept.read_text())
    told["features"] = (np.array(told["features"]) + 0.5).tolist()
    kept.write_text(json.dumps(told))
    code, text = slidemil("encoders", "verify", "test_vit", "--weights", "random", "--expect", kept)
    assert (code, "gives other features" in text) == (7, True)


def test_weights_pulled_are_the_files_of_the_cache(tmp_path, monkeypatch):
    from mil.encoders import weights

    cached = tmp_path / "cache" / "GPFM.pth"
    cached.parent.mkdir()
    cached.write_bytes(b"tensors")
    monkeypatch.setattr(weights, "from_hub", lambda repo, names, encoder: cached)
    code, found = slidemil_json("encoders", "pull", "gpfm", "-o", tmp_path / "out")
    assert (code, found["size"]) == (0, 7)
    assert (tmp_path / "out" / "GPFM.pth").read_bytes() == b"tensors"
    assert json.loads((tmp_path / "out" / "encoder.json").read_text())["sha256"] == found["sha256"]
    (tmp_path / "file").touch()
    assert slidemil("encoders", "pull", "gpfm", "-o", tmp_path / "file")[0] == 5
    cached.write_bytes(bytes(500_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # it stands in for a full disk
        code, text = slidemil("encoders", "pull", "gpfm", "-o", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, "no room: 0.5 MB are needed" in " ".join(text.split())) == (5, True), text
    assert (tmp_path / "out" / "GPFM.pth").read_bytes() == b"tensors", "what was there stays, and nothing half"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["GPFM.pth", "encoder.json"]
