import base64
import io
import json
import socket
import threading
import zipfile
from contextlib import ExitStack

import cv2
import numpy as np
import pytest

from conftest import DEFECT, GOOD, held, serving, wait_for

PNG = {"content-type": "image/png"}


def problem(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert "\n" not in body["detail"]
    return body["detail"]


class TestInspect:
    def test_one_image_as_the_body(self, client, station):
        answer = client.post("/inspect", params={"name": "007.png"}, content=DEFECT, headers=PNG)
        assert answer.status_code == 200
        body = answer.json()
        assert body["number"] == 1
        assert (body["path"], body["name"], body["verdict"], body["threshold"]) == ("007.png", "007.png", "reject", 0.3)
        assert body["model_id"] == station.line().inspector.model_id
        recorded = station.store.get(1).to_json()
        assert {key: body[key] for key in recorded} == json.loads(json.dumps(recorded))
        assert body.keys() - recorded.keys() == {"path", "elapsed_ms"}

    def test_several_images_in_a_form_in_their_order(self, client):
        files = [("image", ("a.png", GOOD, "image/png")), ("image", ("b.png", DEFECT)), ("image", ("c.png", b"text"))]
        results = client.post("/inspect", files=files).json()["results"]
        assert [(each["path"], each["verdict"]) for each in results] == [
            ("a.png", "pass"),
            ("b.png", "reject"),
            ("c.png", "reject"),
        ]
        assert results[2]["reason"].startswith("c.png is text")
        assert results[2]["score"] is results[2]["elapsed_ms"] is None

    def test_what_is_tried_by_hand_is_recorded_and_counts_for_nothing(self, client):
        assert client.post("/inspect", content=GOOD).json()["source"] == "http"
        assert client.post("/inspect?source=manual", content=DEFECT).json()["source"] == "manual"
        assert "source" in problem(client.post("/inspect?source=watch", content=GOOD), 422)
        assert [each["source"] for each in client.get("/history").json()["decisions"]] == ["manual", "http"]
        metrics = client.get("/metrics").text
        assert 'makel_decisions_total{decided_by="score",model="part",verdict="pass"} 1.0' in metrics
        assert 'verdict="reject"' not in metrics
        assert len(client.get("/models/part/thresholds").json()["recent"]) == 1

    def test_pictures_beside_the_verdict(self, client):
        body = client.post("/inspect?picture=mask&picture=overlay", content=DEFECT).json()
        mask = cv2.imdecode(np.frombuffer(base64.b64decode(body["mask_png"]), np.uint8), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (48, 80)
        assert int((mask == 255).sum()) == body["regions"][0]["area_px"]
        assert base64.b64decode(body["overlay_png"]).startswith(b"\x89PNG")
        assert client.post("/inspect?picture=mask", content=b"text").json()["mask_png"] is None

    def test_a_picture_alone(self, client):
        answer = client.post("/inspect?picture=overlay", content=DEFECT, headers={"accept": "image/png"})
        assert answer.headers["content-type"] == "image/png"
        assert answer.content.startswith(b"\x89PNG")
        assert json.loads(answer.headers["makel-decision"])["number"] == 1

    def test_no_image_is_refused(self, client, station):
        assert problem(client.post("/inspect"), 400).startswith("no image came")
        assert problem(client.post("/inspect", files={"x": b""}), 400).startswith("no image came")
        broken = {"content-type": "multipart/form-data; boundary=x"}
        problem(client.post("/inspect", content=b"nonsense", headers=broken), 400)
        problem(client.post("/inspect", content=GOOD, headers={"content-type": "multipart/form-data"}), 400)
        assert station.store.count() == 0

    def test_an_unknown_model_and_wrong_parameters(self, client):
        assert "there is no model 'x'" in problem(client.post("/inspect?model=x", content=GOOD), 404)
        assert "deadline_ms" in problem(client.post("/inspect?deadline_ms=-1", content=GOOD), 422)
        assert "is no name" in problem(client.post("/inspect?model=../x", content=GOOD), 400)

    def test_a_deadline_gives_a_reject(self, client, station):
        with held(station.line()):
            body = client.post("/inspect?deadline_ms=20", content=GOOD).json()
        assert (body["verdict"], body["reason"]) == ("reject", "no decision within 20 ms")

    def test_a_full_queue_is_503_with_retry_after(self, client, station):
        with held(station.line()):
            futures = [station.submit(GOOD, source="trigger") for _ in range(7)]
            answer = client.post("/inspect", content=GOOD)
            assert "part has 8 images under way" in problem(answer, 503)
            assert answer.headers["retry-after"] == "1"
        for future in futures:
            future.result(30)
        assert client.post("/inspect", content=GOOD).json()["number"] == 8

    def test_a_form_that_does_not_fit_whole_takes_back_what_was_not_begun(self, client, station):
        with held(station.line()):
            problem(client.post("/inspect", files=[("image", ("a.png", GOOD))] * 9), 503)
        assert station.line().drain(30)
        assert station.store.count() < 8

    def test_a_client_that_has_gone_takes_back_what_was_not_begun(self, client, station):
        with held(station.line()):
            ahead = [station.submit(GOOD, source="trigger") for _ in range(6)]
            wait_for(lambda: len(station.line()._waiting) == 2)  # no more are decoded ahead, so nothing later is begun
            address = (client.base_url.host, client.base_url.port)
            with socket.create_connection(address) as raw:
                head = f"POST /inspect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(GOOD)}\r\n\r\n"
                raw.sendall(head.encode() + GOOD)
                wait_for(lambda: station.line().depth == 8)
            wait_for(lambda: station.line().depth == 7)
        assert [future.result(30).decision.source for future in ahead] == ["trigger"] * 6
        assert station.line().drain(30)
        assert station.store.count() == 6


class TestLimits:
    def test_a_body_over_the_limit_is_refused_before_it_is_read(self, station):
        with serving(station, image_bytes=1000, held_bytes=5000) as client:
            assert "1001 bytes, at most 1000" in problem(client.post("/inspect", content=b"x" * 1001), 413)
            assert "at most 1000" in problem(client.post("/inspect", content=iter([b"x" * 600] * 3)), 413)
            assert client.post("/inspect", content=GOOD).status_code == 200

    def test_bodies_under_way_are_bounded_together(self, station):
        with serving(station, image_bytes=1000, held_bytes=999) as client:
            assert "hold 0 MB" in problem(client.post("/inspect", content=b"x" * 1000), 503)
            for _ in range(5):  # what was held is given back
                assert client.post("/inspect", content=b"x" * 999).status_code == 200

    def test_other_bodies_are_small(self, client):
        problem(client.post("/models/part/activate", content=b" " * (2**20 + 1)), 413)


class TestModels:
    def test_list_activate_and_roll_back(self, client, station, models):
        station.add("part", models["second"], by="test", role="engineer")
        (model,) = client.get("/models").json()["models"]
        assert (model["name"], model["active"], model["promised_false_reject"]) == ("part", 1, 0.25)
        assert [(each["version"], each["active"], each["problem"]) for each in model["versions"]] == [
            (1, True, ""),
            (2, False, ""),
        ]
        assert model["before"] is None
        assert client.post("/models/part/activate", json={"version": 2}).json()["version"] == 2
        assert client.get("/models/part").json()["before"] == 1
        assert client.post("/inspect", content=DEFECT).json()["verdict"] == "pass"
        assert client.get("/models/part").json()["image_threshold"] == 0.9
        assert client.post("/models/part/rollback").json()["version"] == 1
        assert client.post("/inspect", content=DEFECT).json()["verdict"] == "reject"
        assert problem(client.post("/models/part/rollback"), 400).startswith("version 1 of part has followed no other")
        assert "no version 7" in problem(client.post("/models/part/activate", json={"version": 7}), 404)
        assert "version" in problem(client.post("/models/part/activate", json={}), 422)

    def test_the_report_runs_in_a_sandbox(self, client):
        report = client.get("/models/part/report")
        assert report.text == "<p>report</p>"
        assert "sandbox" in report.headers["content-security-policy"]

    def test_a_zip_of_a_model_folder_becomes_a_version(self, client, station, models):
        packed = zipped(models["second"], "second/")
        answer = client.post("/models?name=part", content=packed, headers={"content-type": "application/zip"})
        assert answer.status_code == 201
        assert [each["version"] for each in answer.json()["versions"]] == [1, 2]
        assert client.post("/models?name=part", files={"model": packed}).status_code == 200
        assert client.post("/models?name=fresh", files={"model": zipped(models["second"])}).status_code == 201
        assert client.post("/inspect?model=fresh", content=DEFECT).json()["verdict"] == "pass"
        assert list(station.scratch().iterdir()) == []

    def test_a_zip_that_is_no_sound_model_is_refused(self, client, station, models):
        def detail(content):
            return problem(client.post("/models?name=part", content=content), 400)

        assert "no zip file" in detail(b"nonsense")
        assert "no model.json" in detail(zipped(models["first"] / "golden"))
        changed = zipped(models["second"], change="model.onnx")
        assert detail(changed) == (
            "the upload is not a sound model folder: model.onnx was changed after fitting: its SHA-256 is not the one "
            "in model.json. Restore the folder from a good copy, or fit again"
        )
        assert len(station.registry.versions("part")) == 1
        assert list(station.scratch().iterdir()) == []


def zipped(folder, prefix="", change=None):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                archive.writestr(prefix + name, path.read_bytes() + (b" " if name == change else b""))
    return packed.getvalue()


class TestHistory:
    @pytest.fixture(autouse=True)
    def parts(self, client):
        for index, image in enumerate([GOOD, DEFECT, GOOD, b"text", DEFECT]):
            client.post("/inspect", params={"name": f"part-{index}"}, content=image)

    def numbers(self, client, **filters):
        return [each["number"] for each in client.get("/history", params=filters).json()["decisions"]]

    def test_pages_and_filters(self, client):
        assert self.numbers(client) == [5, 4, 3, 2, 1]
        assert self.numbers(client, verdict="pass") == [3, 1]
        assert self.numbers(client, name="PART-2") == [3]
        assert self.numbers(client, model="other") == []
        assert self.numbers(client, until="2020-01-01") == []
        page = client.get("/history?limit=2").json()
        assert page["before"] == 4
        assert self.numbers(client, limit=3, before=page["before"]) == [3, 2, 1]
        assert client.get("/history?limit=5").json()["before"] is None
        assert "not a time" in problem(client.get("/history?since=yesterday"), 400)
        problem(client.get("/history?limit=0"), 422)

    def test_one_decision_its_image_and_pictures(self, client):
        assert client.get("/history/2").json()["name"] == "part-1"
        image = client.get("/history/2/image")
        assert (image.content, image.headers["content-type"]) == (DEFECT, "image/png")
        assert client.get("/history/2/overlay").content.startswith(b"\x89PNG")
        assert client.get("/history/2/mask").content.startswith(b"\x89PNG")
        text = client.get("/history/4/image")
        assert (text.content, text.headers["content-type"]) == (b"text", "application/octet-stream")
        assert text.headers["x-content-type-options"] == "nosniff"
        assert "no model answered for decision 4" in problem(client.get("/history/4/overlay"), 404)
        problem(client.get("/history/99"), 404)
        problem(client.get("/history/0"), 422)

    def test_an_answer_is_in_the_record(self, client):
        assert client.post("/history/2/answer", json={"answer": "good"}).json()["answer"] == "good"
        assert self.numbers(client, answer="good") == [2]
        assert client.post("/history/2/answer", json={"answer": None}).json()["answer"] is None
        assert self.numbers(client, answer="good") == []
        problem(client.post("/history/2/answer", json={}), 422)
        problem(client.post("/history/2/answer", json={"answer": "maybe"}), 422)
        problem(client.post("/history/99/answer", json={"answer": "good"}), 404)

    def test_the_live_stream_begins_with_what_was_missed(self, client, station):
        with client.stream("GET", "/events", headers={"last-event-id": "3"}) as stream:
            lines = stream.iter_lines()
            assert events(lines, 2) == [4, 5]
            station.answer(5, "good", "ada")
            assert events(lines, 1, "answer") == [5]
            station.decide(GOOD, source="trigger")
            assert events(lines, 1) == [6]

    def test_live_streams_are_bounded_and_leave_their_place(self, client):
        def listening():
            return sum(thread.name == "makel-listener" for thread in threading.enumerate())

        before = listening()  # drift listens as long as the station lives
        with ExitStack() as streams:
            lines = [streams.enter_context(client.stream("GET", "/events")).iter_lines() for _ in range(64)]
            assert {next(each) for each in lines} == {": makel"}
            assert "64 clients listen already" in problem(client.get("/events"), 503)
        wait_for(lambda: listens(client))
        wait_for(lambda: listening() == before)

    def test_a_live_stream_does_not_hold_up_the_end(self, station):
        with serving(station) as client, client.stream("GET", "/events") as stream:
            assert next(stream.iter_lines()) == ": makel"
            # leaving `serving` waits for the server


def listens(client):
    with client.stream("GET", "/events") as stream:
        return stream.status_code == 200


def events(lines, count, kind="decision"):
    numbers = []
    while len(numbers) < count:
        line = next(lines)
        if line.startswith("event: "):
            assert line == f"event: {kind}"
        if line.startswith("data: "):
            numbers.append(json.loads(line[6:])["number"])
    return numbers


class TestHealth:
    def test_alive_and_ready(self, client, station):
        assert client.get("/healthz").json() == {"alive": True}
        assert client.get("/readyz").json() == {"ready": True, "obstacles": [], "warnings": []}

    def test_a_damaged_folder_is_said_while_the_model_goes_on(self, client, station):
        path = station.registry.version("part").path / "report.html"
        path.write_text("changed")
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        assert "report.html was changed" in ready.json()["warnings"][0]
        assert "report.html was changed" in client.get("/models").json()["models"][0]["problem"]
        assert client.post("/inspect", content=GOOD).json()["verdict"] == "pass"

    def test_a_station_without_a_model_is_not_ready(self, tmp_path):
        from makel.station.station import Station

        with Station.open(tmp_path / "empty") as empty, serving(empty) as client:
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["obstacles"]) == (503, ["no model is served"])
            assert "add one first" in problem(client.post("/inspect", content=GOOD), 404)

    def test_numbers_for_prometheus(self, client, station):
        for image in (GOOD, DEFECT, b"text"):
            client.post("/inspect", content=image)
        text = client.get("/metrics").text
        for line in (
            'makel_decisions_total{decided_by="score",model="part",verdict="pass"} 1.0',
            'makel_decisions_total{decided_by="score",model="part",verdict="reject"} 1.0',
            'makel_decisions_total{decided_by="fail-safe",model="part",verdict="reject"} 1.0',
            'makel_latency_seconds_count{model="part"} 3.0',
            'makel_queue_depth{model="part"} 0.0',
            'makel_queue_limit{model="part"} 8.0',
            "makel_refused_total 0.0",
            "makel_journal_waiting 0.0",
        ):
            assert line in text.splitlines()
        assert f'model_id="{station.line().inspector.model_id}"' in text

    def test_further_gauges(self, station):
        from makel.station.access import Access, Tokens
        from makel.station.service import create_app

        metrics = create_app(station, Access(Tokens(station.folder / "tokens.json"))).state.metrics
        metrics.add_gauge("makel_drift", "Drift.", lambda: {"part": 0.25})
        assert b'makel_drift{model="part"} 0.25' in metrics.page()


def test_what_is_not_there_is_a_problem_document(client):
    problem(client.get("/nothing"), 404)
    problem(client.delete("/history"), 405)


def test_a_mistake_is_a_problem_document_without_its_details(client, station, monkeypatch):
    def mistake():
        raise RuntimeError("secret")

    monkeypatch.setattr(station, "warnings", mistake)
    assert problem(client.get("/readyz"), 500) == "a mistake in makel; the station's log has the details"


def test_every_error_in_the_description_is_a_problem_document(client):
    described = client.get("/openapi.json").json()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                if status.startswith(("4", "5")) and path != "/readyz":
                    assert list(response["content"]) == ["application/problem+json"], (path, method, status)
