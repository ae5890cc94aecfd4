"""Decisions to a real broker, Debian's mosquitto, also over its absence."""

import json
import os
import queue
import re
import shutil
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

import paho.mqtt.client as paho
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.enums import CallbackAPIVersion

from makel.errors import StoreError, UsageError
from makel.station.decisions import Recorded
from makel.station.listeners import Listeners
from makel.station.mqtt import Broker, MqttPublisher
from makel.station.store import Store
from record import DECISION
from waiting import WAIT_S, until


class Mosquitto:
    """A broker that can be killed and started again at the same port."""

    def __init__(self, folder, settings="allow_anonymous true"):
        self.port = free_port()
        self._settings = folder / "mosquitto.conf"
        self._settings.write_text(f"listener {self.port} 127.0.0.1\n{settings}\n")
        self._process = None
        self.start()

    def start(self):
        program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        if program is None:
            pytest.skip("no mosquitto: apt-get install mosquitto")
        self._process = subprocess.Popen([program, "-c", self._settings], stderr=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except ConnectionRefusedError:
                assert self._process.poll() is None

    def kill(self):
        self._process.kill()
        self._process.wait()


def reachable(folder):
    """Let mosquitto, which gives up being root first, read what is in a folder of pytest's."""
    for each in (folder, *folder.parents):  # workers' are one level deeper
        if each.stat().st_mode & 0o005 == 0o005:
            break
        each.chmod(0o755)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Subscriber:
    """Somebody who listens to everything below a topic."""

    def __init__(self, port, topic="#"):
        self.messages = queue.Queue()
        subscribed = queue.Queue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self.client.on_subscribe = lambda *_: subscribed.put(None)
        self.client.on_message = lambda _client, _data, message: self.messages.put(message)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        subscribed.get(timeout=WAIT_S)

    def next(self, topic):
        while True:
            message = self.messages.get(timeout=WAIT_S)
            if message.topic == topic:
                return message

    def numbers(self, count):
        return [json.loads(self.next("plant/line 3/screw/decision").payload)["number"] for _ in range(count)]

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def broker(tmp_path):
    started = Mosquitto(tmp_path)
    yield started
    started.kill()


@pytest.fixture
def subscriber(broker):
    opened = Subscriber(broker.port)
    yield opened
    opened.close()


class Plant:
    """A record that grows, and publishers of it that come and go."""

    def __init__(self, folder):
        self._folder, self._running = folder, []
        self.store, self.listeners = Store.open(folder / "store.sqlite"), Listeners()

    def decide(self, count):
        recorded = self.store.append_all([DECISION] * count)
        self.listeners.tell(recorded)
        return recorded

    def publisher(self, port, url="mqtt://127.0.0.1:{}/plant/line%203"):
        made = MqttPublisher(url.format(port), self.store, self.listeners.add, self._folder / "mqtt.json")
        made._client.reconnect_delay_set(min_delay=0.05, max_delay=0.1)  # the same, with less to wait for
        self._running.append(made)
        made.start()
        return made

    def close(self):
        for each in self._running:
            each.stop()
        self.listeners.close()
        self.store.close()


@pytest.fixture
def plant(tmp_path):
    made = Plant(tmp_path)
    yield made
    made.close()


def test_every_decision_is_published_as_it_stands_in_the_record(plant, broker, subscriber):
    plant.decide(2)  # before the first start: history
    plant.publisher(broker.port)
    assert subscriber.next("plant/line 3/status").payload == b"online"
    (third,) = plant.decide(1)
    message = subscriber.next("plant/line 3/screw/decision")
    assert json.loads(message.payload) == third.to_json()
    assert (message.qos, message.retain) == (1, False)
    plant.decide(50)  # more than are in flight at once
    assert subscriber.numbers(50) == list(range(4, 54))


def test_the_status_is_kept_for_who_comes_later_and_says_offline_at_the_end(plant, broker, subscriber):
    publisher = plant.publisher(broker.port)
    assert subscriber.next("plant/line 3/status").payload == b"online"
    later = Subscriber(broker.port)
    message = later.next("plant/line 3/status")
    assert (message.payload, message.retain) == (b"online", True)
    publisher.stop()
    assert later.next("plant/line 3/status").payload == b"offline"
    later.close()


def test_a_station_that_vanishes_is_offline(plant, broker, subscriber):
    publisher = plant.publisher(broker.port)
    assert subscriber.next("plant/line 3/status").payload == b"online"
    publisher._client.socket().shutdown(socket.SHUT_RDWR)  # as if the cable were cut
    assert subscriber.next("plant/line 3/status").payload == b"offline"
    assert subscriber.next("plant/line 3/status").payload == b"online"


def test_what_a_broker_missed_is_sent_when_it_is_back(plant, broker, subscriber):
    publisher = plant.publisher(broker.port)
    plant.decide(3)
    assert subscriber.numbers(3) == [1, 2, 3]
    broker.kill()
    plant.decide(40)
    subscriber.close()
    broker.start()
    again = Subscriber(broker.port)
    # Who subscribes may come later than the station: the broker has what it was given, and need not have kept it.
    plant.decide(1)
    received = set()
    while 44 not in received:
        received |= set(again.numbers(1))
    again.close()
    assert received == set(range(min(received), 45))
    until(lambda: publisher.acknowledged == 44)
    assert publisher.problem == ""


def test_what_was_missed_is_complete(plant, broker):
    """The subscriber's session outlives the outage of the station, so nothing may be missing from what it gets."""
    first = plant.publisher(broker.port)
    subscriber = Subscriber(broker.port)
    plant.decide(2)
    assert subscriber.numbers(2) == [1, 2]
    first.stop()
    plant.decide(30)  # while no publisher runs
    plant.publisher(broker.port)
    assert subscriber.numbers(30) == list(range(3, 33))
    subscriber.close()


def test_a_broker_that_is_not_there_at_the_start_is_waited_for(plant, tmp_path):
    broker = Mosquitto(tmp_path)
    broker.kill()
    publisher = plant.publisher(broker.port)
    plant.decide(5)
    until(lambda: "not connected" not in publisher.problem)
    assert re.fullmatch(
        rf"the broker 127.0.0.1:{broker.port}/plant/line 3 cannot be reached: .*refused", publisher.problem
    )
    publisher.stop()
    broker.start()
    subscriber = Subscriber(broker.port)
    plant.publisher(broker.port)
    assert subscriber.numbers(5) == [1, 2, 3, 4, 5]
    subscriber.close()
    broker.kill()


def test_a_broker_asks_for_a_password(plant, tmp_path, monkeypatch):
    passwords = tmp_path / "passwords"
    program = shutil.which("mosquitto_passwd")
    if program is None:
        pytest.skip("no mosquitto_passwd: apt-get install mosquitto")
    subprocess.run([program, "-b", "-c", passwords, "eva", "secret"], check=True, stderr=subprocess.DEVNULL)
    passwords.chmod(0o644)
    reachable(tmp_path)
    broker = Mosquitto(tmp_path, f"allow_anonymous false\npassword_file {passwords}")
    url = "mqtt://eva@127.0.0.1:{}"
    wrong = plant.publisher(broker.port, url)
    until(lambda: "refuses" in wrong.problem)
    assert wrong.problem == f"the broker 127.0.0.1:{broker.port}/makel refuses: Not authorized"
    wrong.stop()
    plant.decide(2)
    monkeypatch.setenv("MAKEL_MQTT_PASSWORD", "secret")
    right = plant.publisher(broker.port, url)
    until(lambda: right.acknowledged == 2)
    assert right.problem == ""
    broker.kill()


@pytest.fixture
def authority(tmp_path):
    """Files of a plant's own authority, and of a broker's certificate by it, which is for 127.0.0.1 alone."""
    now = datetime.now(UTC)

    def certificate(name, key, issuer, issuer_key, extension):
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(extension, critical=True)
            .sign(issuer_key, hashes.SHA256())
        ).public_bytes(serialization.Encoding.PEM)

    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    files = {
        "authority": certificate("plant", root, "plant", root, x509.BasicConstraints(ca=True, path_length=0)),
        "certificate": certificate("broker", leaf, "plant", root, address),
        "key": leaf.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.pem").write_bytes(content)
    reachable(tmp_path)
    return {name: tmp_path / f"{name}.pem" for name in files}


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_with_tls_a_broker_has_to_show_a_certificate_that_is_trusted(plant, tmp_path, authority, monkeypatch):
    broker = Mosquitto(
        tmp_path, f"allow_anonymous true\ncertfile {authority['certificate']}\nkeyfile {authority['key']}"
    )
    url = "mqtts://127.0.0.1:{}"
    untrusted = plant.publisher(broker.port, url)
    plant.decide(2)
    until(lambda: "not trusted" in untrusted.problem)
    assert untrusted.problem == (
        f"the broker 127.0.0.1:{broker.port}/makel cannot be reached: its certificate is not trusted (unable to get "
        "local issuer certificate): add its authority to the system's, or name the authority's file in SSL_CERT_FILE"
    )
    untrusted.stop()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority["authority"]))
    elsewhere = plant.publisher(broker.port, "mqtts://localhost:{}")  # not what the certificate is for
    until(lambda: "not trusted" in elsewhere.problem)
    assert "localhost" in elsewhere.problem
    elsewhere.stop()
    trusting = plant.publisher(broker.port, url)
    plant.decide(2)
    until(lambda: trusting.acknowledged == 4)
    assert trusting.problem == ""
    broker.kill()


def test_another_broker_and_another_record_begin_anew(plant, tmp_path):
    memory = tmp_path / "mqtt.json"
    plant.decide(7)
    memory.write_text('{"broker": "here:1883/makel", "acknowledged": 3}')
    made = [
        MqttPublisher(url, plant.store, plant.listeners.add, memory).acknowledged
        for url in ("mqtt://here", "mqtt://there")
    ]
    assert made == [3, 7]
    memory.write_text('{"broker": "here:1883/makel", "acknowledged": 300}')
    assert MqttPublisher("mqtt://here", plant.store, plant.listeners.add, memory).acknowledged == 7
    memory.write_text('{"broker": "here:1883/ma')
    with pytest.raises(StoreError, match=r"mqtt.json is damaged \(.*\): delete it to go on with the next decision"):
        MqttPublisher("mqtt://here", plant.store, plant.listeners.add, memory)


def test_the_address_of_a_broker():
    assert Broker.parse("mqtt://plant") == Broker("plant", 1883, False, "", "makel")
    assert Broker.parse("mqtts://eva@plant/a/b/") == Broker("plant", 8883, True, "eva", "a/b")
    assert Broker.parse("mqtt://plant:1884/a%20b") == Broker("plant", 1884, False, "", "a b")
    for url, said in {
        "http://plant": "is no URL of a broker: write mqtt://host:1883/topic",
        "mqtt://": "is no URL of a broker",
        "mqtt://plant:http": "is no URL of a broker",
        "mqtt://eva:secret@plant": "put it into MAKEL_MQTT_PASSWORD",
        "mqtt://plant/a/%23": "has \\+, # or NUL in it",
    }.items():
        with pytest.raises(UsageError, match=said):
            Broker.parse(url)


def test_a_record_that_is_gone_is_said_and_its_decisions_are_sent_later(plant, broker, subscriber, tmp_path):
    publisher = plant.publisher(broker.port)
    subscriber.next("plant/line 3/status")
    record = tmp_path / "store.sqlite"
    record.rename(tmp_path / "away")
    plant.listeners.tell([Recorded(0, DECISION, "")])
    until(lambda: "is gone" in publisher.problem)
    (tmp_path / "away").rename(record)
    plant.decide(2)
    assert subscriber.numbers(2) == [1, 2]
    until(lambda: not publisher.problem)
