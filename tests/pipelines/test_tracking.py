"""Epochs in TensorBoard and on an MLflow server: the same figures, and the job is the same without."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from _command import digests, slidemil, slidemil_json

from pipelines.errors import EnvironmentFault
from pipelines.tracking import MLflow


class Server(HTTPServer):
    """Answers as MLflow's REST API does, and keeps what it was told."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.told = []
        self.known = False


class Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.removeprefix("/api/2.0/mlflow/")
        if path == "experiments/create" and self.server.known:
            return self.answer({"error_code": "RESOURCE_ALREADY_EXISTS"}, 400)
        self.server.known = True
        self.server.told.append((path, body))
        return self.answer({"experiment_id": "7", "run": {"info": {"run_id": "r1"}}})

    def do_GET(self):
        assert self.path.endswith("experiments/get-by-name?experiment_name=slidemil")
        self.answer({"experiment": {"experiment_id": "7"}})

    def answer(self, body, code=200):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    found = Server()
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    thread.join(5)
    found.server_close()


def test_both_show_the_epochs_of_the_job_and_change_none_of_its_files(job, labels, server, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    command = ("train", job, "-l", labels, "--head", "mean", "--epochs", 3, "--name", "t")
    assert slidemil(*command)[0] == 0
    plain = digests(job)
    code, said = slidemil_json(*command, "--set", "track=tensorboard,mlflow")
    assert (code, said["new"]) == (0, False)  # who is shown the epochs makes no other model
    for _ in range(2):  # the second time the server knows the experiment
        server.told.clear()
        code, said = slidemil_json(*command, "--force", "--set", "track=tensorboard,mlflow")
        assert code == 0, said
    assert digests(job) == plain
    history = json.loads((job / "models" / "t" / "config.json").read_text())["training"]["history"]
    sent = [(m["key"], m["step"], m["value"]) for _, b in server.told for m in b.get("metrics", ()) if m["step"]]
    wanted = {(key, e["number"], e[key]) for e in history for key in ("train_loss", "validation_loss", "lr")}
    assert wanted <= set(sent)
    run = dict(server.told)
    assert run["runs/create"]["experiment_id"] == "7"
    assert run["runs/update"]["status"] == "FINISHED"
    shown = events.EventAccumulator(str(job / "logs" / "tensorboard" / "t")).Reload()
    losses = [one.value for one in shown.Scalars("validation_loss")][-3:]
    assert losses == pytest.approx([e["validation_loss"] for e in history], rel=1e-6)
    assert shown.Scalars("held_out_auc")


def test_a_server_that_does_not_answer_or_is_not_named_is_told(job, labels, monkeypatch):
    with pytest.raises(EnvironmentFault, match="no MLflow server answers there"):
        MLflow("http://127.0.0.1:9", "m", {})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, said = slidemil("train", job, "-l", labels, "--name", "u", "--set", "track=mlflow")
    assert (code, "MLFLOW_TRACKING_URI" in said) == (2, True)
    code, said = slidemil("train", job, "-l", labels, "--set", "track=paper")
    assert (code, "track must be tensorboard, mlflow" in said) == (2, True)
