"""The three pages for people that lie in a model folder."""

import pytest

import tiny_model
from makel.model import cards
from makel.model.manifest import Backbone, Provenance
from makel.model.tiling import Tiling


def drafted(**changes):
    return tiny_model.draft().model_copy(update=changes)


def provenance(**changes):
    return Provenance(**{**tiny_model.draft().provenance.model_dump(), **changes})


def test_the_model_card_says_what_is_promised_and_under_which_licences():
    backbone = Backbone(name="lite", licence="Apache-2.0", weights_sha256="ab" * 32, source="package", blocks=(1, 2))
    draft = drafted(backbone=backbone)
    page = cards.model_card(draft)
    assert draft.calibration.explain() in page
    assert f"a score of {draft.calibration.image_threshold:.6g}" in page
    assert f"weights of lite: Apache-2.0, SHA-256 `{'ab' * 32}`" in page
    assert f"{tiny_model.SIZE} x {tiny_model.SIZE} px" in page


def test_the_data_sheet_says_which_images_and_what_was_odd_about_them():
    fit = tiny_model.draft().fit.model_copy(update={"warnings": ("3 images are all black",)})
    page = cards.data_sheet(drafted(fit=fit, provenance=provenance(n_fit=7, n_copies=3, holdout=("a.png",))))
    assert "7 good images, 3 jittered copies of each" in page
    assert "- 3 images are all black" in page
    assert "- `a.png`" in page
    assert tiny_model.draft().provenance.data_digest in page
    assert "left out of a model in turn" in cards.data_sheet(drafted(provenance=provenance(holdout=())))


def test_the_deployment_sheet_says_what_runs_it_and_within_which_tolerance():
    draft = drafted()
    page = cards.deployment(draft)
    assert "ONNX Runtime, from `model.onnx`" in page
    assert f"{draft.parity.score_tolerance:.2g}" in page
    assert "PyTorch" in cards.deployment(drafted(runtime="torch"))
    assert "tiles of 64 px that share 16" in cards.model_card(drafted(tiling=Tiling(64, 16)))


@pytest.mark.parametrize("name", ["a|b", "# a", "two\nlines", "\udcff", "[x](y)", "`tick`", "<b>"])
def test_a_name_from_outside_stays_text_on_one_line(name, tmp_path):
    draft = drafted(provenance=provenance(data_name=name, holdout=(name,)))
    plain = drafted(provenance=provenance(data_name="name", holdout=("name",)))
    for page in (cards.model_card, cards.data_sheet, cards.deployment):
        assert page(draft).count("\n") == page(plain).count("\n")
        assert page(draft).count("\n#") == page(plain).count("\n#")
        rows = [line for line in page(draft).splitlines() if line.startswith("| ") and "`" not in line]
        assert all(line.replace("\\|", "").count("|") == 3 for line in rows)
    cards.write(tmp_path, draft)
    assert {path.name for path in tmp_path.iterdir()} == {"model_card.md", "data_sheet.md", "deployment.md"}
