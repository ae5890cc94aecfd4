"""New thresholds from fresh good images: by hand on a model whose scores are known, and by the command."""

from __future__ import annotations

import json
from hashlib import sha256

import cv2
import numpy as np
import pytest

import makel
import tiny_model
from makel.calibration import calibrate
from makel.cli import run
from makel.datasets import digest, load
from makel.errors import DatasetError, ModelFolderError, UsageError
from makel.images import likeness
from makel.model.folder import open_folder
from makel.model.manifest import SEEN_NAME, Manifest, short_hash
from makel.model.tiling import Tiling
from makel.model.zones import Zone, Zones


def grey(score, level=128):
    """An image whose brightest pixel is `score` above mid grey, in 255ths, over half of it."""
    drawn = np.full((24, 24, 3), level, np.uint8)
    drawn[:, 12:] = 128 + score
    return cv2.imencode(".png", drawn)[1].tobytes()


def score_of(value):
    return (128 + value) / 255 - 0.5


@pytest.fixture
def good(tmp_path):
    """19 fresh images that score from 0.08 to 0.15."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    for index in range(19):
        (folder / f"{index:02}.png").write_bytes(grey(20 + index))
    return folder


def test_thresholds_are_those_of_the_fresh_images(tmp_path, good):
    model = tiny_model.write(tmp_path / "model")
    done = makel.recalibrate(model, good, tmp_path / "again", false_reject=0.1)
    found = makel.Inspector.load(tmp_path / "again").manifest
    assert found == done.manifest
    # floor(0.1 * 20) = 2 of 20 may be above: the second highest of the 19 is the threshold
    assert found.calibration.image_threshold == pytest.approx(score_of(37), abs=1e-6)
    assert (found.calibration.promised_false_reject, found.calibration.n) == (0.1, 19)
    assert (done.n_images, done.n_above_before, done.n_above) == (19, 0, 1)
    before = open_folder(model).manifest
    assert found.model_id != before.model_id
    assert found.files["model.onnx"] == before.files["model.onnx"]
    assert found.files["golden/000.npz"] == before.files["golden/000.npz"]
    assert found.files["report.html"] != before.files["report.html"]
    assert found.recalibration.model_id == before.model_id
    assert (found.recalibration.data_name, found.recalibration.n_images) == ("fresh", 19)
    assert found.created == found.recalibration.created != before.created
    assert found.provenance.n_fit == before.provenance.n_fit


def test_an_evaluation_on_the_images_of_the_thresholds_says_so(tmp_path, good, capsys):
    line = tmp_path / "line" / "test"
    line.mkdir(parents=True)
    model = tiny_model.write(tmp_path / "model")
    makel.recalibrate(model, good, tmp_path / "again", false_reject=0.1)
    (good / "new.png").write_bytes(grey(1))
    good.rename(line / "good")
    (line / "hole").mkdir()
    (line / "hole" / "0.png").write_bytes(grey(90))
    assert makel.evaluate(model, tmp_path / "line").n_seen == 0
    assert run(["evaluate", str(tmp_path / "again"), str(tmp_path / "line"), "--quiet"]) == 0
    assert "19 of 20 good images were fitted on or set the thresholds" in capsys.readouterr().err
    page = (tmp_path / "again-evaluation" / "report.html").read_text(encoding="utf-8")
    assert "19 of 20 good images were fitted on" in page
    assert "no test image had a part in it" not in page
    assert "The false rejects agree" not in page


def test_the_verdict_follows_the_new_threshold(tmp_path, good):
    model = tiny_model.write(tmp_path / "model")
    makel.recalibrate(model, good, tmp_path / "again", false_reject=0.1)
    (tmp_path / "part.png").write_bytes(grey(45))
    verdicts = [
        makel.Inspector.load(each).inspect(tmp_path / "part.png").verdict for each in (model, tmp_path / "again")
    ]
    assert verdicts == ["pass", "reject"]


def test_joined_scores_stand_beside_those_before_and_images_count_once(tmp_path, good):
    model = tiny_model.write(tmp_path / "model")
    first = makel.recalibrate(model, good, tmp_path / "1", join=True)
    assert first.manifest.calibration.n == 3 + 19
    assert {0.1, 0.2, 0.3} < {*first.manifest.calibration.image_scores}
    assert first.manifest.calibration.requested_false_reject == 0.25
    (good / "more.png").write_bytes(grey(50))
    second = makel.recalibrate(tmp_path / "1", good, tmp_path / "2", join=True)
    assert (second.n_images, second.manifest.calibration.n) == (1, 23)
    assert len(second.left_out) == 19
    assert second.left_out[0] == (str(good / "00.png"), "is among the images of the present thresholds already")
    (line,) = [line for line in second.lines() if line.startswith("left out")]
    assert line.endswith("00.png is among the images of the present thresholds already; so it is with 18 others")


def test_images_whose_scores_were_replaced_are_news_again(tmp_path, good):
    of_fit = short_hash(sha256((good / "03.png").read_bytes()).hexdigest())
    provenance = tiny_model.draft().provenance.model_copy(update={"calibrate_hashes": (of_fit,)})
    model = tiny_model.write(tmp_path / "model", provenance=provenance)
    joined = makel.recalibrate(model, good, tmp_path / "joined", join=True)
    assert (joined.n_images, joined.manifest.calibration.n) == (18, 3 + 18)
    assert len(joined.manifest.seen_hashes) == 19
    (tmp_path / "few").mkdir()
    for path in sorted(good.iterdir())[5:]:
        (tmp_path / "few" / path.name).write_bytes(path.read_bytes())
    replaced = makel.recalibrate(model, tmp_path / "few", tmp_path / "replaced")
    assert of_fit not in replaced.manifest.seen_hashes
    again = makel.recalibrate(tmp_path / "replaced", good, tmp_path / "again", join=True)
    assert (again.n_images, again.n_known, again.manifest.calibration.n) == (5, 0, 19)
    assert len(again.manifest.seen_hashes) == 19


def test_images_of_the_fit_are_left_out_by_name(tmp_path, good):
    content = (good / "03.png").read_bytes()
    provenance = tiny_model.draft().provenance.model_copy(
        update={"fit_hashes": (short_hash(sha256(content).hexdigest()),)}
    )
    model = tiny_model.write(tmp_path / "model", provenance=provenance)
    (good / "copy.png").write_bytes((good / "04.png").read_bytes())
    (good / "text.png").write_bytes(b"text")
    done = makel.recalibrate(model, good, tmp_path / "again")
    assert (done.n_images, done.n_refused, done.n_above) == (18, 1, 4)
    assert done.warnings == (
        "1 of the 19 fresh images cannot be judged: the line rejects such parts at every threshold, beside what is "
        "promised. Mend what makes them so",
    )
    assert "rejects    4 of the 19 fresh images, 1 before; 1 of them as they cannot be judged" in done.lines()
    lines = done.to_json()["left_out"]
    assert [line.split("/")[-1].split(" ")[0] for line in lines] == ["03.png", "copy.png", "text.png"]
    assert "was fitted on" in lines[0]


def test_the_very_images_of_the_fit_are_refused(tmp_path, good):
    provenance = tiny_model.draft().provenance.model_copy(update={"data_digest": digest(load(good).good)})
    model = tiny_model.write(tmp_path / "model", provenance=provenance)
    with pytest.raises(DatasetError, match="the very images the model was fitted on"):
        makel.recalibrate(model, good, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_model_that_lists_no_images_says_so(tmp_path, good):
    done = makel.recalibrate(tiny_model.write(tmp_path / "model"), good, tmp_path / "again")
    assert "does not list the images it was fitted on" in done.warnings[0]


def test_images_that_were_mostly_rejects_before_are_asked_about(tmp_path, good):
    model = tiny_model.write(tmp_path / "model")
    before = makel.Inspector.load(model).calibration
    for index, path in enumerate(sorted(good.iterdir())):
        path.write_bytes(grey(90 + index))  # all far above the threshold: defects, or another product
    done = makel.recalibrate(model, good, tmp_path / "again")
    assert before.image_threshold < done.manifest.calibration.image_threshold
    assert done.n_above_before == 19
    (line,) = [line for line in done.lines() if "rejects before" in line]
    assert line.startswith("warning: 19 of the 19 fresh images were rejects before, more than luck explains")


def test_images_that_set_the_thresholds_before_are_not_called_news(tmp_path, good):
    first = makel.recalibrate(tiny_model.write(tmp_path / "model"), good, tmp_path / "1")
    assert first.n_known == 0
    (good / "more.png").write_bytes(grey(50))
    second = makel.recalibrate(tmp_path / "1", good, tmp_path / "2")
    assert (second.n_images, second.n_known) == (20, 19)
    assert any("19 of them set the thresholds before and say nothing new" in line for line in second.lines())


def test_zones_get_thresholds_of_their_own(tmp_path, good):
    left = ((0.0, 0.0), (8.0, 0.0), (8.0, 16.0), (0.0, 16.0))
    own = calibrate((0.1, 0.2, 0.3), (0.1, 0.2, 0.3), false_reject=0.25)
    zone = Zone(name="left", kind="inspect", polygon=left, false_reject=0.1, calibration=own)
    model = tiny_model.write(tmp_path / "model", zones=Zones(image_size_px=(16, 16), zones=(zone,)))
    found = makel.recalibrate(model, good, tmp_path / "again").manifest
    assert found.zones.zones[0].calibration.image_threshold == pytest.approx(0.5 / 255, abs=1e-6)
    assert found.zones.zones[0].calibration.promised_false_reject == 0.1
    assert found.zones.zones[0].polygon == left


def test_tiles_are_scored_as_the_line_scores_them(tmp_path, good):
    model = tiny_model.write(tmp_path / "model", tiling=Tiling(32, 8))
    wide = np.full((40, 90), 128, np.uint8)
    wide[:, 60:] = 160
    cv2.imwrite(str(good / "wide.png"), cv2.cvtColor(wide, cv2.COLOR_GRAY2BGR))
    found = makel.recalibrate(model, good, tmp_path / "again").manifest
    score = makel.Inspector.load(model).inspect(good / "wide.png").score
    assert score in found.calibration.image_scores


def test_a_model_that_computes_something_else_is_refused(tmp_path, good):
    model = tiny_model.write(tmp_path / "model", model=tiny_model.onnx_bytes(gain=1.01))
    with pytest.raises(ModelFolderError, match="when fitted"):
        makel.recalibrate(model, good, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_what_cannot_be_done_is_one_clear_line(tmp_path, good):
    model = tiny_model.write(tmp_path / "model")
    with pytest.raises(DatasetError, match="is the model that is read"):
        makel.recalibrate(model, good, model)
    with pytest.raises(UsageError, match=r"false-reject budget of 1\.5"):
        makel.recalibrate(model, good, tmp_path / "again", false_reject=1.5)
    for path in good.iterdir():
        path.write_bytes(b"text")
    with pytest.raises(DatasetError, match=r"no fresh good image is left of 19: .*once more"):
        makel.recalibrate(model, good, tmp_path / "again")


def test_a_manifest_without_a_recalibration_is_written_as_before(tmp_path):
    data = Manifest.seal(tiny_model.draft(), {"model.onnx": "a" * 64}).to_bytes()
    assert b"recalibration" not in data
    assert b"_hashes" not in data


def test_the_command_says_what_it_did(tmp_path, good, makel_says):
    model = tiny_model.write(tmp_path / "model")
    code, said, _ = makel_says("recalibrate", model, good, "--out", tmp_path / "again", "--false-reject", "0.1")
    assert code == 0
    assert "19 fresh good images" in said
    assert "promise    19 held-out good images promise" in said
    code, said, _ = makel_says("recalibrate", model, good, "--out", tmp_path / "more", "--join", "--json")
    assert code == 0
    assert (json.loads(said)["n_images"], json.loads(said)["n_calibrate"]) == (19, 22)
    assert "recalibrated" in makel_says("info", tmp_path / "again")[1]
    assert makel_says("verify", tmp_path / "again")[0] == 0


def test_images_that_look_like_known_ones_say_nothing_new(tmp_path):
    """To a model that remembers what its images looked like: fitted on 0 to 5, thresholds from 6 and 7."""
    parts = [np.random.default_rng(number).integers(0, 255, (6, 6, 3), np.uint8) for number in range(10)]
    parts = [cv2.resize(each, (96, 96), interpolation=cv2.INTER_CUBIC) for each in parts]
    fresh = tmp_path / "fresh"
    fresh.mkdir()

    def save(name, picture):
        noise = np.random.default_rng(len(name)).normal(0, 2, picture.shape)
        cv2.imwrite(str(fresh / f"{name}.png"), np.clip(picture[..., ::-1] + noise, 0, 255).astype(np.uint8))

    for name, number in (("fitted", 0), ("held", 6), ("new", 8), ("new again", 8)):
        save(name, parts[number])
    known = [f"{number:016x}" for number in range(8)]
    provenance = tiny_model.draft().provenance.model_copy(
        update={"fit_hashes": tuple(known[:6]), "calibrate_hashes": tuple(known[6:])}
    )
    seen = likeness.pack([likeness.shrink(each) for each in parts[:8]], None)
    model = tiny_model.write(tmp_path / "model", files={SEEN_NAME: seen}, provenance=provenance)
    done = makel.recalibrate(model, fresh, tmp_path / "again", join=True)
    assert done.n_images == 1
    assert [(name.rpartition("/")[2], why.partition(":")[0]) for name, why in done.left_out] == [
        ("fitted.png", "looks like an image that was fitted on"),
        ("held.png", "looks like an image that the present thresholds come from"),
        ("new.png", "looks like new again.png"),
    ]
    assert makel.recalibrate(model, fresh, tmp_path / "alone").n_images == 2  # those before are let go: held is news
    for name in ("new", "new again", "held", "fitted"):
        (fresh / f"{name}.png").unlink()
    save("yet another time", parts[8])
    with pytest.raises(DatasetError, match="looks like an image that the present thresholds come from"):
        makel.recalibrate(tmp_path / "again", fresh, tmp_path / "none", join=True)
