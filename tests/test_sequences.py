"""What a page tells a newcomer to type works as a whole, in an environment that has what the page installs and no more.

A sequence begins where a shell block of a section installs makel (`pip install '.[station]'`) and goes on through the
section's shell and Python blocks in their order. The next such line on the page begins another environment, in the same
folder. Nothing is left out; only the station's port is one that is free.
"""

import contextlib
import http.client
import json
import re
import shutil
import socket
import subprocess
from http import HTTPStatus
from pathlib import Path

import pytest

import guides
import installs
from waiting import until

pytestmark = pytest.mark.timeout(1800)  # three fits with defaults, which a busy machine draws out

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = {page.relative_to(REPOSITORY).as_posix(): page.read_text("utf-8") for page in guides.pages(REPOSITORY)}


def steps(text):
    """What a part of a page has to be typed, in its order: (language, a line of a shell block or a whole program)."""
    for language, code in guides.FENCE.findall(text):
        if language == "python":
            yield language, code
        elif language == "sh":
            yield from (("sh", line) for line in code.replace("\\\n", " ").splitlines() if line.strip())


def sequences(text):
    """The sequences of a page: of each the extras it installs, and its steps."""
    found = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        begun = False
        for language, line in steps(section):
            if install := installs.INSTALL.match(line):
                found.append((install["extras"] or "", []))
                begun = True
            elif begun:
                found[-1][1].append((language, line))
    return found


class Newcomer:
    """Types what a page says, in one folder, into the environment at hand."""

    def __init__(self, folder):
        self.folder, self.environment, self.stations, self.said = folder, None, [], []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def types(self, language, text):
        """Run one line, or one program, to its end; a station goes on until the sequence ends."""
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")
        where = {"cwd": self.folder, "env": installs.surroundings(self.environment.bin), "text": True}
        if text.startswith("makel serve"):
            self.starts(f"exec {text.partition('#')[0]} --port {self.port}", where)
            return
        words = [self.environment.python, "-c", text] if language == "python" else ["bash", "-c", text]
        done = subprocess.run(words, **where, capture_output=True, check=False, timeout=1700)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        self.said.append(done.stdout)

    def starts(self, line, where):
        """Start a station and wait until it decides."""
        station = subprocess.Popen(["bash", "-c", line], **where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.stations.append(station)
        until(lambda: self.decides() or station.poll() is not None, within_s=200)
        assert station.poll() is None, f"{line}\n{station.stdout.read()}"

    def decides(self):
        """Whether a station here decides images, or would if it had a model."""
        asked = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(asked), contextlib.suppress(OSError, http.client.HTTPException):
            asked.request("GET", "/readyz")
            answer = asked.getresponse()
            return answer.status == HTTPStatus.OK or b'"obstacles":["no model is served"]' in answer.read()
        return False

    def leaves(self):
        """End the stations, which must end well."""
        for station in self.stations:
            station.terminate()
            said, _ = station.communicate(timeout=60)
            assert station.returncode == 0, said
        self.stations.clear()


@pytest.fixture
def newcomer(tmp_path):
    who = Newcomer(tmp_path)
    yield who
    for station in who.stations:
        station.kill()
        station.communicate()


def follow(page, newcomer, installed):
    """Type all sequences of a page; gives what was said on stdout, step by step."""
    for extras, typed in sequences(page):
        newcomer.environment = installed(extras)
        for language, text in typed:
            newcomer.types(language, text)
        newcomer.leaves()
    return newcomer.said


def test_the_readme(newcomer, installed):
    said = follow(PAGES["README.md"], newcomer, installed)
    assert [extras for extras, _ in sequences(PAGES["README.md"])] == ["fit", "station"]
    assert "reject" in said[0]
    assert (newcomer.folder / "found").is_dir()


@pytest.mark.skipif(not shutil.which("curl"), reason="the page uses curl, which is not installed")
def test_a_station_in_two_minutes(newcomer, installed):
    said = follow(PAGES["docs/station/index.md"], newcomer, installed)
    answer, history = json.loads(said[-2]), json.loads(said[-1])
    assert (answer["number"], answer["path"], answer["verdict"]) == (1, "part-0042", "reject")
    assert history
    (example,) = guides.blocks(guides.section(PAGES["docs/station/index.md"], "Start in two minutes"), "json")
    assert json.loads(example).keys() <= answer.keys()


TYPED = """
import contextlib, io, json, sys
from makel.cli import run
answers = []
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        run(words)
    answers.append(said.getvalue())
print(json.dumps(answers))
"""


def missing(environment, examples, folder):
    """The extra that each example lacks in an environment, or none; the folder holds nothing that they speak of."""
    (folder / "makel-demo").mkdir(parents=True)
    (folder / "makel-demo" / "other.txt").touch()  # `makel demo` goes no further than this
    where = {"cwd": folder, "env": installs.surroundings(environment.bin), "input": json.dumps(examples)}
    done = subprocess.run([environment.python, "-c", TYPED], **where, capture_output=True, text=True, check=True)
    found = [re.search(r"needs the '(\w+)' extra", said) for said in json.loads(done.stdout)]
    return [extra[1] if extra else "" for extra in found]


def test_every_command_needs_what_the_table_of_commands_says(installed, tmp_path):
    page = PAGES["docs/command_line.md"]
    stated = {
        re.findall(r"`makel (\w+)`", command)[0]: re.fullmatch(r"`makel(?:\[(\w+)\])?`", extra)[1] or ""
        for command, _, extra in guides.tables(page.partition("\n## ")[0])[0]
    }
    examples = [words for words in guides.command_lines(page) if words[0] in stated]
    assert {words[0] for words in examples} == stated.keys()
    lacking = missing(installed(""), examples, tmp_path / "line")
    assert [(words, extra) for words, extra in zip(examples, lacking, strict=True)] == [
        (words, stated[words[0]]) for words in examples
    ]
    for extra in ("fit", "station"):
        own = [words for words in examples if stated[words[0]] == extra]
        assert missing(installed(extra), own, tmp_path / extra) == [""] * len(own)


def test_what_an_extra_does_not_bring_is_not_there(newcomer, installed):
    page = "## Start\n```sh\npip install '.[station]'\nmakel fit data --out model\nmakel serve model\n```\n"
    with pytest.raises(AssertionError, match="makel fit needs the 'fit' extra, which is not installed"):
        follow(page, newcomer, installed)


@pytest.mark.skipif(not shutil.which("createdb"), reason="PostgreSQL's client is not installed")
def test_a_record_on_postgresql(newcomer, installed, postgresql, monkeypatch):
    monkeypatch.setenv("PGHOST", str(postgresql.folder))
    monkeypatch.setenv("PGUSER", "makel")
    page = PAGES["docs/station/history.md"]
    assert "postgresql://makel@db.plant.example/makel" in page
    here = page.replace("db.plant.example/makel", f"/makel?host={postgresql.folder}")
    said = follow(here, newcomer, installed)
    assert "intact: 0 decisions in 0 entries" in said[-1]


def test_every_page_with_a_sequence_is_followed():
    pages = {name for name, text in PAGES.items() if sequences(text)}
    assert pages == {"README.md", "docs/station/index.md", "docs/station/history.md"}
