import json
import os
import re
import stat

import pytest
from test_service import problem

from conftest import DEFECT, GOOD, serving
from makel.errors import NotFoundError, UnauthorisedError, UsageError
from makel.station.access import Access, Principal, Tokens
from makel.station.store import Store


@pytest.fixture
def tokens(tmp_path):
    return Tokens(tmp_path / "tokens.json")


def bearer(token):
    return {"authorization": f"Bearer {token}"}


class TestTokens:
    def test_a_token_is_known_by_what_was_printed_and_kept_nowhere(self, tokens, tmp_path):
        token = tokens.add("operator", "line 3")
        assert tokens.owner(token) == Principal("line 3", "operator")
        text = (tmp_path / "tokens.json").read_text()
        assert token.split("_", 2)[2] not in text
        if os.name == "posix":
            assert stat.S_IMODE((tmp_path / "tokens.json").stat().st_mode) == 0o600

    def test_a_token_differs_from_every_other(self, tokens):
        assert tokens.add("operator", "a").split("_", 2)[2] != tokens.add("operator", "a").split("_", 2)[2]
        assert len({token.salt for token in tokens.all()}) == 2

    @pytest.mark.parametrize(
        "change", [lambda t: t[:-1] + "!", lambda t: t + "x", lambda t: t[1:], lambda _: "", str.upper]
    )
    def test_anything_else_is_nobodys(self, tokens, change):
        token = tokens.add("engineer", "a")
        with pytest.raises(UnauthorisedError):
            tokens.owner(change(token))

    def test_a_removed_token_is_worthless_at_once_in_another_process_too(self, tokens, tmp_path):
        token = tokens.add("engineer", "a")
        other = Tokens(tmp_path / "tokens.json")
        assert other.owner(token).role == "engineer"
        tokens.remove(tokens.all()[0].id)
        with pytest.raises(UnauthorisedError):
            other.owner(token)
        with pytest.raises(NotFoundError):
            tokens.remove("none")

    def test_roles_and_a_damaged_file(self, tokens, tmp_path):
        with pytest.raises(UsageError, match="there is no role 'admin': it is operator or engineer"):
            tokens.add("admin", "")
        token = {"id": "a", "name": "a", "role": "operator", "salt": "00", "sha256": "0", "created": ""}
        for changed in ("{", "[1]", "[" * 100_000, *([token | each] for each in ({"salt": "x"}, {"role": "root"}))):
            path = tmp_path / "tokens.json"
            path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
            with pytest.raises(UsageError, match=r"tokens\.json is damaged"):
                Tokens(path).all()


class TestLoopback:
    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]:1", "localhost."]
    )
    def test_a_host_header_of_another_name_is_turned_away(self, client, host):
        assert "this station is not" in problem(client.get("/models", headers={"host": host}), 403)

    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:9", "[::1]:80"])
    def test_this_machines_names_are_let_in(self, client, host):
        assert client.get("/models", headers={"host": host}).status_code == 200

    def test_pages_of_other_sites_change_nothing(self, client, station):
        for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
            problem(client.post("/inspect", content=GOOD, headers=headers), 403)
            problem(client.post("/models/part/activate", json={"version": 1}, headers=headers), 403)
        assert station.store.count() == 0
        own = f"http://127.0.0.1:{client.base_url.port}"
        assert client.post("/inspect", content=GOOD, headers={"origin": own}).status_code == 200

    def test_no_other_site_may_read(self, client):
        answer = client.get("/models", headers={"origin": "http://evil.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        preflight = client.options("/inspect", headers={"origin": "http://evil.example"})
        assert not [name for name in preflight.headers if name.startswith("access-control")]

    def test_every_answer_has_the_security_headers(self, client):
        for answer in (client.get("/models"), client.get("/nothing"), client.get("/models", headers={"host": "x"})):
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert "server" not in answer.headers

    def test_whoever_is_here_is_in_the_audit(self, client, station):
        client.post("/models/part/activate", json={"version": 1})
        assert (station.store.audits()[0].by, station.store.audits()[0].role) == ("local", "engineer")


class TestBeyond:
    @pytest.fixture
    def guarded(self, station):
        access = Access.on("127.0.0.1", self.tokens(station), token_needed=True)
        with serving(station, access) as client:
            yield client

    def tokens(self, station):
        tokens = Tokens(station.folder / "tokens.json")
        if not tokens.all():
            self.operator, self.engineer = tokens.add("operator", "olga"), tokens.add("engineer", "emil")
        return tokens

    def test_another_host_without_tokens_is_refused(self, tokens):
        with pytest.raises(UsageError, match=r"--host 0\.0\.0\.0 lets others in, and there is no token yet"):
            Access.on("0.0.0.0", tokens)
        with pytest.raises(UsageError, match="--require-token without a token"):
            Access.on("127.0.0.1", tokens, token_needed=True)
        assert not Access.on("127.0.0.1", tokens).token_needed
        tokens.add("operator", "")
        access = Access.on("0.0.0.0", tokens)
        assert (access.token_needed, access.hosts) == (True, None)

    def test_nobody_unknown_does_or_sees_anything(self, guarded, station):
        described = guarded.get("/openapi.json").json()["paths"]
        open_to_all = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/session"}
        closed = 0
        for path, methods in described.items():
            for method in methods:
                address = re.sub(r"\{\w+\}", "1", path.replace("{name}", "part"))
                answer = guarded.request(method, address)
                if path in open_to_all:
                    assert answer.status_code < 500
                    continue
                problem(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
                closed += 1
        assert closed >= 15
        problem(guarded.get("/models", headers=bearer("makel_x_y")), 401)
        problem(guarded.get("/models", headers={"authorization": "Basic eDp5"}), 401)

    def test_an_operator_inspects_reads_and_answers_and_no_more(self, guarded, station):
        as_operator = bearer(self.operator)
        assert guarded.post("/inspect", content=DEFECT, headers=as_operator).status_code == 200
        assert guarded.get("/history", headers=as_operator).status_code == 200
        assert guarded.post("/history/1/answer", json={"answer": "good"}, headers=as_operator).status_code == 200
        assert station.store.answers(1)[0].by == "olga"
        for path in ("/models/part/activate", "/models/part/rollback", "/models?name=part"):
            said = problem(guarded.post(path, json={"version": 1}, headers=as_operator), 403)
            assert said == "olga is operator, and this needs the role engineer"

    def test_an_engineer_changes_models_under_their_name(self, guarded, station):
        answer = guarded.post("/models/part/activate", json={"version": 1}, headers=bearer(self.engineer))
        assert answer.status_code == 200
        assert (station.store.audits()[0].by, station.store.audits()[0].role) == ("emil", "engineer")

    def test_a_browsers_session(self, guarded):
        assert guarded.get("/session").json() == {"name": None, "role": None, "token_needed": True}
        problem(guarded.post("/session", json={"token": "makel_a_b"}), 401)
        answer = guarded.post("/session", json={"token": self.operator})
        assert answer.json() == {"name": "olga", "role": "operator", "token_needed": True}
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert guarded.get("/models").status_code == 200  # the client sends the cookie from now on
        assert guarded.delete("/session").status_code == 204
        problem(guarded.get("/models"), 401)


def test_token_commands(makel_says, tmp_path):
    folder = tmp_path / "data"
    code, token, err = makel_says("token", "add", "engineer", "--name", "ada", "--data", folder)
    assert (code, err) == (0, "")
    assert Tokens(folder / "tokens.json").owner(token.strip()) == Principal("ada", "engineer")
    code, out, _ = makel_says("token", "list", "--json", "--data", folder)
    (listed,) = json.loads(out)
    assert (code, listed["name"], listed["role"]) == (0, "ada", "engineer")
    assert makel_says("token", "list", "--data", folder)[1].split()[:2] == [listed["id"], "engineer"]
    assert makel_says("token", "remove", listed["id"], "--data", folder)[0] == 0
    assert makel_says("token", "list", "--data", folder)[1] == ""
    with Store.open(folder / "store.sqlite", create=False) as store:
        assert [(each.action, each.detail["name"]) for each in store.audits()] == [
            ("remove token", "ada"),
            ("add token", "ada"),
        ]
    code, _, err = makel_says("token", "add", "admin", "--data", folder)
    assert (code, err) == (2, "makel: there is no role 'admin': it is operator or engineer\n")
