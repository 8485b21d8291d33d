"""Many requests at once: batches, and what happens when there are too many or they take too long."""

from __future__ import annotations

import contextlib
import http.client
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rectangles import RectangleBackend, opened, scene

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from running import ask, encoded, form, post, serving

from dfine_jax.errors import UserError
from dfine_jax.server.engine import Engine
from dfine_jax.server.limits import Limits

PNG = encoded(scene(96, 64, ("red", 8, 8, 40, 30), ("blue", 50, 20, 90, 60)))


class Gated(RectangleBackend):
    """Runs when the gate is open; takes batches of any size."""

    compiles_per_shape = False

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()

    def predict(self, images):
        self.entered.set()
        assert self.gate.wait(20)
        return super().predict(images)

    def prepare(self, shape):
        self.gate.set()


class Failing(RectangleBackend):
    def predict(self, images):
        raise UserError("/secret/model.onnx: the runtime fails on images")


def until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def waiting(port):
    return ask(port, "GET", "/health").json["waiting"]


@pytest.mark.parametrize(("batch", "runs"), [(4, [1, 4, 2]), (1, [1] * 7)])
def test_what_arrives_while_the_network_runs_is_the_next_batch(batch, runs):
    backend = Gated()
    wanted = ["?classes=red", "?classes=blue", "?threshold=1", "", "?classes=green", ""]
    with serving(Engine(opened(backend), threshold=0.3, batch=batch)) as port, ThreadPoolExecutor(7) as clients:
        first = clients.submit(post, port, PNG)
        assert backend.entered.wait(10)
        later = [clients.submit(post, port, PNG, query) for query in wanted]
        until(lambda: waiting(port) == len(wanted))
        backend.gate.set()
        names = [[entry["name"] for entry in job.result().json["objects"]] for job in [first, *later]]
        health = ask(port, "GET", "/health").json
    both = ["red", "blue"]
    assert names == [both, ["red"], ["blue"], [], both, [], both]
    assert backend.batches == runs
    assert (health["runs"], health["pictures"], health["requests"]) == (len(runs), 7, 0)


def test_an_incomplete_batch_waits_where_it_is_told_to():
    backend = Gated()
    backend.gate.set()
    with serving(Engine(opened(backend), batch=2, wait_ms=5000)) as port, ThreadPoolExecutor(2) as clients:
        begun = time.monotonic()
        list(clients.map(lambda _: post(port, PNG), range(2)))
    assert backend.batches == [2] and time.monotonic() - begun < 4  # full, so it waits no longer


def test_pictures_of_one_request_share_a_run():
    backend = Gated()
    body, kind = form(*[("file", PNG, f"{i}.png") for i in range(3)])
    with serving(Engine(opened(backend), threshold=0.3, batch=4)) as port, ThreadPoolExecutor(2) as clients:
        first = clients.submit(post, port, PNG)
        assert backend.entered.wait(10)
        later = clients.submit(post, port, body, Content_Type=kind)
        until(lambda: waiting(port) == 3)
        backend.gate.set()
        assert len(later.result().json["results"]) == 3 and first.result().status == 200
    assert backend.batches == [1, 3]


def test_too_many_requests_are_told_to_come_back():
    backend = Gated()
    limits = Limits(requests=2)
    with serving(Engine(opened(backend)), limits) as port, ThreadPoolExecutor(2) as clients:
        taken = [clients.submit(post, port, PNG) for _ in range(2)]
        until(lambda: ask(port, "GET", "/health").json["requests"] == 2)
        refused = post(port, PNG)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert refused.json == {"error": "2 requests are in progress, which is the limit; try again"}
        backend.gate.set()
        assert [job.result().status for job in taken] == [200, 200]
        assert post(port, PNG).status == 200


def test_a_request_that_takes_too_long_is_given_up():
    backend = Gated()
    with serving(Engine(opened(backend)), Limits(seconds=0.4)) as port:
        late = post(port, PNG)
        assert (late.status, late.headers["retry-after"]) == (503, "1") and "no answer within 0.4 s" in late.json[
            "error"
        ]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with contextlib.closing(connection):
            connection.putrequest("POST", "/detect")
            connection.putheader("Content-Length", "1000")
            connection.endheaders(b"only the beginning")
            answer = connection.getresponse()
            assert answer.status == 408 and b"did not arrive within 0.4 s" in answer.read()
        backend.gate.set()
        until(lambda: post(port, PNG).status == 200)


def test_nobody_computes_for_clients_that_have_left():
    backend = Gated()
    with serving(Engine(opened(backend))) as port, ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, port, PNG)
        assert backend.entered.wait(10)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/detect", PNG)
        until(lambda: waiting(port) == 1)
        connection.close()
        until(lambda: ask(port, "GET", "/health").json["requests"] == 1)
        backend.gate.set()
        assert first.result().status == 200 and post(port, PNG).status == 200
    assert backend.batches == [1, 1]


def test_a_network_that_fails_is_the_servers_fault_and_says_nothing_of_its_files(caplog):
    with serving(Engine(opened(Failing()))) as port, caplog.at_level(logging.ERROR):
        answer = post(port, PNG)
        assert answer.status == 500
        assert answer.json == {"error": "the server has failed at this; its log says why"}
        assert post(port, b"x").status == 415  # it lives on
    assert any("the runtime fails" in str(record.exc_info) for record in caplog.records)


def test_requests_in_progress_are_answered_before_the_end():
    backend = Gated()
    with ThreadPoolExecutor(1) as clients:
        with serving(Engine(opened(backend))) as port:
            last = clients.submit(post, port, PNG)
            assert backend.entered.wait(10)
            threading.Timer(0.5, backend.gate.set).start()
        assert last.result().status == 200


def test_the_log_has_a_line_for_each_request_without_its_parameters(caplog):
    with caplog.at_level(logging.INFO, "dfine_jax.server"), serving(Engine(opened(), threshold=0.3)) as port:
        post(port, PNG, "?threshold=0.31415", Authorization="Bearer hunter2")
        body, kind = form(("file", b"x", "private.png"))
        post(port, body, Content_Type=kind)
        ask(port, "GET", "/a%0Ab")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("dfine_jax.server")]
    assert len(lines) == 3 and not any("\n" in line for line in lines)
    assert lines[0].startswith("127.0.0.1 POST /detect 200 ") and lines[0].endswith(" ms 1 picture, 2 objects")
    assert "/a%0Ab 404" in lines[2]
    assert not any(secret in line for line in lines for secret in ("0.31415", "hunter2", "private"))


def test_settings_that_cannot_be_are_one_line():
    fixed = opened()._replace(batch=1)
    with pytest.raises(UserError, match="the file runs batches of 1 and no others"):
        Engine(fixed, batch=8)
    assert Engine(fixed).batch == 1 and Engine(opened()._replace(batch=4)).batch == 4
    with pytest.raises(UserError, match="batch 0 must be at least 1"):
        Engine(opened(), batch=0)
    with pytest.raises(UserError, match="must lie between 0 and 10000"):
        Engine(opened(), wait_ms=-1)
    with pytest.raises(UserError, match="seconds=0 must be positive"):
        Limits(seconds=0)
