"""What strangers may do to a station over the network, and that whoever behaves well is served meanwhile."""

import asyncio
import io
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import ExitStack, contextmanager

import pytest
from test_service import problem

from conftest import DEFECT, GOOD, SETTINGS, held, serving, wait_for
from makel.errors import MakelError, Overloaded, StalledError, UnauthorisedError
from makel.station import http_protocol, limits, line
from makel.station.access import Access, Tokens
from makel.station.archive import unpack
from makel.station.declared import Declared
from makel.station.fitting import obstacle
from makel.station.service import create_app
from makel.station.station import Station


@contextmanager
def connection(client):
    """A bare connection to a client's station."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as opened:
        yield opened


def request(method="GET", path="/healthz", *headers):
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", "")).encode()


def answer(opened):
    """All that comes until the station closes the connection."""
    said = b""
    try:
        while block := opened.recv(2**16):
            said += block
    except ConnectionResetError:
        pass
    return said


class TestBeforeAnybodyIsKnown:
    def test_silent_connections_make_room(self, client, monkeypatch):
        monkeypatch.setattr(http_protocol, "MAX_CONNECTIONS", 8)
        assert client.get("/healthz").status_code == 200  # kept alive, and answered: it stays
        with ExitStack() as opened:
            silent = [opened.enter_context(connection(client)) for _ in range(20)]
            assert client.post("/inspect", content=GOOD).status_code == 200
            cut_off = [_is_closed(each) for each in silent]
        assert 12 <= sum(cut_off) <= 14
        assert cut_off[0] > cut_off[-1]  # those that waited longest

    def test_a_request_that_never_ends_its_headers_is_cut_off(self, client, monkeypatch):
        monkeypatch.setattr(http_protocol, "_HEADERS_S", 0.3)
        for start in (b"", b"GET / HTTP/1.1\r\nHo", b"\r\n\r\n", request() + b"GET"):
            with connection(client) as opened:
                opened.sendall(start)
                answer(opened)  # ends

    def test_empty_lines_after_an_answer_keep_nothing_open(self, client, monkeypatch):
        monkeypatch.setattr(http_protocol, "_HEADERS_S", 0.5)
        with connection(client) as opened:
            opened.sendall(request())
            opened.recv(2**16)
            _send_until_cut_off(opened, b"\r\n")

    @pytest.mark.parametrize(
        "sent",
        [
            b"GET / HTTP/1.1\r\nX: " + b"a" * 80_000,
            b"GET /" + b"a" * 80_000,
            b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 15_000,
            b"POST /inspect HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n" + b"X: a\r\n" * 15_000,
        ],
        ids=["one header", "address", "many headers", "behind the body"],
    )
    def test_headers_are_bounded(self, client, sent):
        with connection(client) as opened:
            try:
                opened.sendall(sent)
            except OSError:
                return  # cut off while it was sent
            assert b" 431 " in answer(opened)

    def test_requests_at_once_on_one_connection_are_bounded(self, client):
        with connection(client) as opened:
            opened.sendall(request() * 2000)
            said = answer(opened)
        assert said.count(b"HTTP/1.1 200") <= 17
        assert client.get("/healthz").status_code == 200

    def test_a_body_nobody_wants_is_not_waited_for(self, client, monkeypatch):
        monkeypatch.setattr(http_protocol, "_LEFT_OVER_S", 0.2)
        with connection(client) as opened:
            opened.sendall(request("POST", "/nothing", "Content-Length: 100000") + b"a")
            assert b" 404 " in answer(opened)

    def test_who_does_not_read_an_answer_is_cut_off(self, client, monkeypatch):
        monkeypatch.setattr(http_protocol, "_UNREAD_S", 0.3)
        with connection(client) as opened:
            opened.settimeout(10)
            _send_until_cut_off(opened, request(path="/openapi.json") * 8)


def _send_until_cut_off(opened, content):
    """Send the same again and again, and read nothing."""
    for _ in range(500):
        try:
            opened.sendall(content)
        except ConnectionError:
            return
        time.sleep(0.01)
    raise AssertionError("nobody minds")


def _is_closed(opened):
    opened.setblocking(False)
    try:
        return opened.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


class TestBodies:
    def test_only_what_has_arrived_is_held(self, station):
        """Eight uploads that announce all there is and send nothing: the next one is inspected."""
        with serving(station, image_bytes=2**20, held_bytes=2**20) as client:
            stalled = [socket.create_connection((client.base_url.host, client.base_url.port)) for _ in range(8)]
            for each in stalled:
                each.sendall(request("POST", "/inspect", "Content-Length: 1000000") + b"a")
            assert client.post("/inspect", content=GOOD).status_code == 200
            for each in stalled:
                each.close()

    def test_who_has_the_room_and_sends_nothing_makes_room(self, station, monkeypatch):
        monkeypatch.setattr(limits, "_STALLED_S", 0.2)
        with serving(station, image_bytes=2**20, held_bytes=2**20) as client, connection(client) as opened:
            opened.sendall(request("POST", "/inspect", "Content-Length: 1048576") + bytes(2**20 - 100))
            time.sleep(0.6)
            assert client.post("/inspect", content=GOOD).status_code == 200
            assert b" 408 " in answer(opened)

    def test_a_body_that_stops_is_given_up(self, station):
        for path in ("/inspect", "/models/part/activate"):
            with serving(station, idle_s=0.3) as client, connection(client) as opened:
                opened.sendall(request("POST", path, "Content-Length: 1000", "Content-Type: application/json") + b"{")
                said = answer(opened)
                assert b" 408 " in said
                assert b"only 1 bytes of this request came" in said

    def test_a_body_that_drips_is_given_up(self):
        async def drips():
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": b"a", "more_body": True}

        async def read():
            arriving = limits._Arriving(limits.BodyLimits(least_bytes_per_s=1e9), 1000)
            arriving._began_s -= 29.8
            while arriving.came_bytes < 900:
                await arriving.next(drips)

        with pytest.raises(StalledError, match=r"only \d+ bytes of this request came"):
            asyncio.run(read())


@pytest.fixture(scope="module")
def routes(tmp_path_factory, decoders):
    folder = tmp_path_factory.mktemp("routes")
    with Station.open(folder / "station", SETTINGS, decoders=decoders) as station:
        app = create_app(station, Access(Tokens(folder / "tokens.json")))
        return [route for route in _walk(app) if route.path not in ("/openapi.json",)]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, models, decoders):
    """A station that asks for tokens, with small limits; and a token of each role."""
    folder = tmp_path_factory.mktemp("guarded")
    tokens = Tokens(folder / "tokens.json")
    made = {role: tokens.add(role, role) for role in ("operator", "engineer")}
    with Station.open(folder / "station", SETTINGS, decoders=decoders) as station:
        station.add("part", models["first"], by="test", role="engineer")
        access = Access.on("127.0.0.1", tokens, token_needed=True)
        with serving(station, access, image_bytes=10**6, upload_bytes=2 * 10**6) as client:
            yield client, {role: {"authorization": f"Bearer {token}"} for role, token in made.items()}


class TestRoutes:
    """Every route, found by walking the app: what it declares is what happens."""

    def test_all_are_declared(self, routes):
        assert len(routes) > 40
        assert all(isinstance(route, Declared) for route in routes)
        open_to_all = {route.path for route in routes if route.declaration.role is None}
        assert open_to_all == {
            "/", "/favicon.ico", "/page/{name}", "/session", "/healthz", "/readyz", "/v2/health/live",
            "/v2/health/ready",
        }  # fmt: skip
        changing = {route.path for route in routes if route.declaration.role == "engineer"}
        assert {"/models", "/jobs", "/models/{name}/candidates", "/models/{name}/rollback"} <= changing
        for route in routes:
            takes = route.declaration.body
            assert takes == "nothing" or route.methods & {"POST", "PUT"}, route.path
            assert takes != "upload" or route.path in ("/models", "/jobs")
            needed = route.declaration.role
            assert needed == "engineer" or not route.methods & {"DELETE", "PUT", "PATCH"} or route.path == "/session"

    def test_roles_are_held_to(self, routes, guarded):
        client, tokens = guarded
        for route in routes:
            role = route.declaration.role
            for method in route.methods - {"HEAD"}:
                if role is not None:
                    problem(client.request(method, _address(route.path)), 401)
                if role == "engineer":
                    problem(client.request(method, _address(route.path), headers=tokens["operator"]), 403)

    def test_other_sites_pages_get_nothing_not_even_pictures(self, routes, guarded):
        client, tokens = guarded
        for route in routes:
            if route.declaration.role is None:
                continue
            for method in route.methods - {"HEAD"}:
                for site in ({"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "http://["}):
                    problem(client.request(method, _address(route.path), headers=tokens["engineer"] | site), 403)

    @pytest.mark.parametrize("chunked", [False, True])
    def test_limits_are_held_to(self, routes, guarded, chunked):
        client, tokens = guarded
        size = {"nothing": 64 * 2**10, "json": 64 * 2**10, "image": 10**6, "upload": 2 * 10**6}
        for route in routes:
            if "POST" not in route.methods:
                continue
            body = b" " * (size[route.declaration.body] + 1)
            content = iter([body]) if chunked else body
            headers = tokens["engineer"] | {"content-type": "application/json"}
            answered = client.post(_address(route.path), content=content, headers=headers, params={"name": "other"})
            problem(answered, 400 if route.path == "/jobs" and obstacle() and chunked else 413)


def _walk(app):
    """Every route of an app, also of routers that FastAPI keeps as one."""
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        yield from _walk(inner) if inner is not None else [route]


def _address(path):
    for name, value in {"{name}": "part", "{number}": "1", "{job_id}": "0" * 12, "{candidate_id}": "0" * 12,
                        "{index}": "0", "{line}": "part", "{version}": "1"}.items():  # fmt: skip
        path = path.replace(name, value)
    return path


class TestLanes:
    def test_drawing_holds_up_nothing_else(self, client, station, monkeypatch):
        """As many overlays as there are connections, none of which comes to an end."""
        client.post("/inspect", content=DEFECT)
        go = threading.Event()
        monkeypatch.setattr(station, "decode", lambda _: go.wait(20))
        stuck = [socket.create_connection((client.base_url.host, client.base_url.port)) for _ in range(60)]
        for each in stuck:
            each.sendall(request(path="/history/1/overlay"))
        try:
            began = time.monotonic()
            files = [("image", (f"{each}.png", GOOD)) for each in range(3)]
            assert len(client.post("/inspect", files=files).json()["results"]) == 3
            for path in ("/readyz", "/history", "/metrics", "/models"):
                assert client.get(path).status_code == 200
            assert time.monotonic() - began < 10
        finally:
            go.set()
            for each in stuck:
                each.close()

    def test_images_of_a_form_do_not_hold_up_a_single_one(self):
        """One of each request in turn, each request's own in their order."""
        fair = line._Fair()
        tickets = {
            name: line.Ticket(name, b"", 0.0, None, None, name[:4])
            for name in ("form 0", "form 1", "form 2", "form 3", "else 0", "else 1")
        }
        for ticket in tickets.values():
            fair.append(ticket)
        fair.remove(tickets["form 1"])
        assert len(fair) == 5
        assert tickets["form 1"] not in fair
        assert tickets["form 2"] in fair
        assert [fair.popleft().name for _ in range(5)] == ["form 0", "else 0", "form 2", "else 1", "form 3"]
        assert not fair


class TestStrangeWords:
    @pytest.mark.parametrize("origin", ["http://[", "[", "http://", "//", "null", "http://127.0.0.1", "\xff"])
    def test_an_origin_that_is_none_is_another_site(self, client, origin):
        for path in ("/inspect", "/models/part/rollback"):
            problem(client.post(path, content=GOOD, headers={"origin": origin.encode("latin-1")}), 403)

    def test_a_token_that_is_no_text_is_unknown(self, station):
        tokens = Tokens(station.folder / "tokens.json")
        token_id = tokens.add("operator", "a").split("_")[1]
        with pytest.raises(UnauthorisedError):
            tokens.owner(f"makel_{token_id}_\ud800")

    def test_readyz_holds_no_path_of_this_machine(self, client, station, tmp_path):
        (tmp_path / "station" / "models" / "part" / "1" / "report.html").write_text("changed")
        said = client.get("/readyz").json()
        assert "report.html" in said["warnings"][0]
        assert "/" not in said["warnings"][0]

    def test_a_file_whose_name_is_no_text_is_said(self, client, station):
        """In a model folder, by whoever put it there: health and models are told all the same."""
        (station.folder / "models" / "part" / "1" / "part\udcff.png").write_bytes(b"")
        for path in ("/readyz", "/models", "/models/part", "/overview"):
            assert "udcff.png is no part of this model" in client.get(path).text

    def test_an_event_stream_ends_with_its_token(self, station):
        tokens = Tokens(station.folder / "tokens.json")
        kept, removed = tokens.add("operator", "kept"), tokens.add("operator", "removed")
        access = Access.on("127.0.0.1", tokens, token_needed=True)
        as_removed = {"authorization": f"Bearer {removed}"}
        with serving(station, access) as client, client.stream("GET", "/events", headers=as_removed) as stream:
            lines = stream.iter_lines()
            assert next(lines) == ": makel"
            tokens.remove(removed.split("_")[1])
            client.post("/inspect", content=GOOD, headers={"authorization": f"Bearer {kept}"})
            assert list(lines) == [""]  # it ended, and said nothing of that part

    def test_one_of_whom_nothing_comes_ends_too(self, station):
        tokens = Tokens(station.folder / "tokens.json")
        removed = tokens.add("operator", "removed")
        tokens.add("operator", "kept")
        access, as_removed = (
            Access.on("127.0.0.1", tokens, token_needed=True),
            {"authorization": f"Bearer {removed}"},
        )
        with serving(station, access) as client, client.stream("GET", "/events", headers=as_removed) as stream:
            lines = stream.iter_lines()
            next(lines)
            tokens.remove(removed.split("_")[1])
            assert list(lines) == [""]


class TestZips:
    def test_damage_is_one_clear_line(self, tmp_path):
        said = []
        for seed in range(300):
            target = tmp_path / str(seed)
            target.mkdir()
            try:
                unpack(io.BytesIO(damaged(seed)), target)
            except MakelError as error:
                said.append(str(error))
        assert len(said) > 200
        assert all(each.startswith("the upload ") and "\n" not in each for each in said)

    def test_corrupt_deflate_over_http_is_no_mistake_of_makel(self, client):
        archive = bytearray(damaged(None))
        archive[40:60] = b"\xff" * 20
        said = client.post("/models?name=other", content=bytes(archive), headers={"content-type": "application/zip"})
        assert "is no zip file, or damaged" in problem(said, 400)

    def test_a_list_of_a_million_files_is_not_read(self, tmp_path):
        entries = damaged(None)[damaged(None).index(b"PK\x01\x02") : -22]
        count = 9 * 2**20 // len(entries)
        end = b"PK\5\6" + bytes(4) + b"\xff\xff\xff\xff" + (count * len(entries)).to_bytes(4, "little") + bytes(6)
        with pytest.raises(MakelError, match=r"has a list of \d+ bytes of its files"):
            unpack(io.BytesIO(entries * count + end), tmp_path)


def damaged(seed):
    """A zip of three files; with a seed, changed in some places."""
    rng, buffer = random.Random(seed), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(3):
            archive.writestr(f"f/{index}.txt", bytes(rng.randrange(4) for _ in range(300)))
    changed = bytearray(buffer.getvalue())
    for _ in range(rng.randint(1, 6) if seed is not None else 0):
        place, what = rng.randrange(len(changed)), rng.randrange(4)
        if what == 0:
            changed[place] = rng.randrange(256)
        elif what == 1:
            changed[place : place + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x80\0\0\0"])
        elif what == 2:
            del changed[place : place + rng.randint(1, 20)]
        else:
            changed[place:place] = rng.randbytes(rng.randint(1, 8))
    return bytes(changed)


def test_a_full_disk_is_told_as_such(client, station, small_disk, models, monkeypatch):
    monkeypatch.setattr(station, "scratch", lambda: small_disk)
    content = bytes(3 * 2**20)
    for body in ({"content": content}, {"files": {"model": ("a.zip", content)}}):
        said = client.post("/models?name=other", **body)
        assert "disk is full" in problem(said, 507)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", bytes(4 * 2**20))
    assert "disk is full" in problem(client.post("/models?name=other", content=packed.getvalue()), 507)
    assert client.post("/inspect", content=GOOD).status_code == 200


class TestDeadline:
    def test_a_locked_record_does_not_hold_up_an_answer(self, station):
        with serving(station) as client:
            client.post("/inspect", content=GOOD)
            other = sqlite3.connect(station.folder / "store.sqlite", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            said = client.post("/inspect?deadline_ms=1500", content=DEFECT).json()
            assert time.monotonic() - began < 3.0  # the record itself would be waited for 5 s
            assert (said["number"], said["verdict"]) == (0, "reject")
            other.execute("COMMIT")
            other.close()
            wait_for(lambda: station.store.count() == 2)
        names = [entry.decision.score for entry in station.store.find()]
        assert len(names) == 2
        assert station.store.verify() is None

    def test_a_decision_that_came_too_late_to_be_recorded_is_a_reject(self, station, monkeypatch):
        """The recording is busy until the deadline has passed."""
        recorder = station._recorder
        append, busy = recorder.append_all, threading.Event()

        def slow(decisions, **how):
            busy.set()
            time.sleep(0.5)
            return append(decisions, **how)

        monkeypatch.setattr(recorder, "append_all", slow)
        first = station.submit(GOOD, name="first", source="http")
        assert busy.wait(10)
        second = station.submit(GOOD, name="second", source="http", deadline_s=0.3).result(30)
        assert first.result(30).decision.verdict == "pass"
        assert (second.verdict, second.decision.verdict) == (None, "reject")
        assert second.decision.reason == "no decision within 300 ms"
        assert station.store.get(second.recorded.number).decision == second.decision


class TestEnding:
    def test_a_model_that_hangs_does_not_keep_a_station_from_closing(self, tmp_path, models, decoders):
        go = threading.Event()
        with Station.open(tmp_path / "station", SETTINGS, decoders=decoders) as station:
            station.add("part", models["first"], by="test", role="engineer")
            station.line().run(lambda _: go.wait(60))
            future = station.submit(GOOD, name="a.png", source="http")
            began = time.monotonic()
            assert not station.close(timeout_s=0.3)
            assert time.monotonic() - began < 15
        decision = future.result(1).decision
        assert (decision.verdict, decision.reason) == ("reject", "a.png had no decision when the station was ended")
        go.set()
        with Station.open(tmp_path / "station", SETTINGS, decoders=decoders) as station:
            assert station.store.count() == 1
            station.close()
            with pytest.raises(Overloaded):
                station.submit(GOOD, source="http")

    def test_readyz_says_when_nothing_comes_off_a_line(self, station, client, monkeypatch):
        monkeypatch.setattr(line, "_STUCK_S", 0.2)
        with held(station.line()):
            future = station.submit(GOOD, source="http")
            wait_for(lambda: client.get("/readyz").status_code == 503)
            assert "part has decided nothing for" in client.get("/readyz").json()["obstacles"][0]
        future.result(30)
        assert client.get("/readyz").status_code == 200

    @pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
    def test_the_last_resort_ends_a_process_that_nothing_reaches(self):
        code = "from makel.station.ending import end_within\nend_within(0.5)\nwhile True: pass"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "Timeout" in done.stderr
