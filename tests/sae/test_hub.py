"""Dictionaries on disk: what is loaded is what was saved, and files that are none say what is wrong with them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae import architectures, hub
from sae.architectures.configs import TopKConfig, configs
from sae.architectures.topk import TopKSAE
from sae.dictionary import InputStats, Shape
from sae.errors import ConfigError, FormatError, StoreError
from sae.scaling import SiteStats
from tests.sae import checks
from tests.sae.checks import X, close

FACTS = {"inputs": ["mlp_out.3"], "outputs": None, "model": "tiny"}
ONE, TWO, ACROSS = Shape((4,)), Shape((4, 3)), Shape((4, 3), (2, 5))
# each architecture with what its smallest dictionary needs
SMALL = {
    "relu": (ONE, {}),
    "relu_april": (ONE, {}),
    "p_anneal": (ONE, {}),
    "topk": (Shape((4,), (3,)), {"decoder": "unit", "k": 2, "skip": True}),
    "batchtopk": (ONE, {"k": 2, "decoder": "unit"}),
    "matryoshka": (ONE, {"k": 2, "decoder": "unit", "groups": (0.25, 0.75)}),
    "jumprelu": (ONE, {}),
    "jumprelu_tanh": (Shape((4,), (3,)), {}),
    "gated": (ONE, {}),
    "switch": (ONE, {"k": 2, "decoder": "unit", "n_experts": 2}),
    "matching_pursuit": (ONE, {"k": 2, "normalise": "row_norm"}),
    "crosscoder": (TWO, {}),
    "crosscoder_batchtopk": (TWO, {"k": 2}),
    "cross_layer_transcoder": (ACROSS, {}),
}


def dictionary_file(folder: Path) -> Path:
    return folder / "dictionary.json"


def edit(folder: Path, **changes) -> None:
    path = dictionary_file(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def saved(tmp_path):
    dictionary = checks.example(TopKSAE, TopKConfig(n_latents=4, k=2, decoder="unit"))
    dictionary.scaling.scale.fill_(2.0)
    hub.save(dictionary, FACTS, tmp_path)
    return dictionary, tmp_path


# --- there and back ---


def test_what_is_loaded_is_what_was_saved(saved):
    dictionary, folder = saved
    loaded = hub.load(folder)
    assert type(loaded) is TopKSAE
    assert (loaded.cfg, loaded.shape) == (dictionary.cfg, dictionary.shape)
    assert not loaded.training
    state = dictionary.state_dict()
    assert set(state) == {"W_enc", "b_enc", "W_dec", "b_dec", "variance", "scaling.scale"}
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded.reconstruct(X)[1], dictionary.reconstruct(X)[1])
    assert hub.facts(folder) == FACTS
    assert sorted(path.name for path in folder.iterdir()) == ["dictionary.json", "dictionary.safetensors"]


def test_every_architecture_is_tried():
    assert set(SMALL) == set(architectures.names()) == set(configs.names())


@pytest.mark.parametrize("name", SMALL)
def test_there_and_back(name, tmp_path):
    shape, choices = SMALL[name]
    dictionary = architectures.build(name, configs.get(name)(n_latents=8, **choices), shape)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, d, generator=generator) + 1 for d in (shape.d_in, shape.d_out))
    sites = [tuple(SiteStats(d, 2.0, 5.0) for d in widths or ()) for widths in (shape.inputs, shape.outputs)]
    dictionary.initialise(InputStats(sites[0], sites[1] or sites[0], x, y if shape.outputs else x), generator)
    checks.fill(dictionary, generator)
    hub.save(dictionary.eval(), FACTS, tmp_path)
    loaded = hub.load(tmp_path)
    assert (type(loaded), loaded.cfg, loaded.shape) == (type(dictionary), dictionary.cfg, shape)
    (latents, recon), (expected, right) = loaded.reconstruct(x), dictionary.reconstruct(x)
    assert len(expected.fired().values) > 20
    assert torch.equal(latents.dense(), expected.dense())
    assert torch.equal(recon, right)


def test_the_file_by_hand(saved):
    _, folder = saved
    content = json.loads(dictionary_file(folder).read_text())
    assert content.pop("config")["k"] == 2
    assert content == {
        "schema": 2,
        "type": "topk",
        "module": "sae.architectures.topk",
        "shape": {"inputs": [2], "outputs": None},
        "facts": FACTS,
    }
    assert torch.equal(load_file(folder / "dictionary.safetensors")["W_dec"], checks.W)


def test_a_dictionary_of_schema_1_is_read(tmp_path):
    """As version 0.1 wrote it: one site, whose scale was a scalar tensor, and its width among the facts."""
    content = {
        "schema": 1,
        "type": "topk",
        "config": {"n_latents": 4, "k": 2, "auxk": None, "auxk_coef": 0.03125},
        "facts": {"d_in": 2, "site": "mlp_out.3"},
    }
    dictionary_file(tmp_path).write_text(json.dumps(content))
    tensors = {"W_enc": checks.W, "W_dec": checks.W.clone(), "b_enc": torch.zeros(4), "b_dec": torch.tensor([0.5, 0.0])}
    tensors |= {"scale": torch.tensor(4.0), "variance": torch.tensor(1.5)}
    save_file(tensors, tmp_path / "dictionary.safetensors")
    loaded = hub.load(tmp_path)
    assert (type(loaded), loaded.shape, loaded.cfg.pre_bias) == (TopKSAE, Shape((2,)), True)
    latents, recon = loaded.reconstruct(X / 4)
    close(latents.dense(), [[1.5, 0, 1.7, 0], [0.6, 0, 0, 0]])
    close(recon, [[3.02 / 4, 1.36 / 4], [1.1 / 4, 0]])
    assert loaded.variance == 1.5
    assert hub.facts(tmp_path) == {"d_in": 2, "site": "mlp_out.3"}


# --- files that are none ---


@pytest.mark.parametrize("schema", [0, 3, None, "2"])
def test_another_schema_is_refused(saved, schema):
    _, folder = saved
    edit(folder, schema=schema)
    for read in (hub.load, hub.facts):
        with pytest.raises(FormatError) as caught:
            read(folder)
        assert str(caught.value) == f"{folder}/dictionary.json: schema {schema!r}, this version reads 1 and 2"


def test_an_unknown_architecture_is_named(saved):
    _, folder = saved
    edit(folder, type="mine", module="my.plug_in")
    with pytest.raises(ConfigError) as caught:
        hub.load(folder)
    assert str(caught.value) == (
        f"{folder}/dictionary.json: type = 'mine': comes from the plug-in my.plug_in, which has not been imported"
    )
    edit(folder, type="topkk", module=None)
    with pytest.raises(ConfigError) as caught:
        hub.load(folder)
    assert str(caught.value) == (
        "sae.type 'topkk' is unknown: did you mean topk or batchtopk? (a plug-in is named under `plugins`)"
    )
    with pytest.raises(ConfigError, match="is unknown"):
        architectures.build("topkk", TopKConfig(), Shape((2,)))


def test_a_choice_that_this_version_does_not_know_is_named(saved):
    _, folder = saved
    edit(folder, config={"n_latents": 4, "k": 2, "kk": 3})
    with pytest.raises(ConfigError) as caught:
        hub.load(folder)
    assert str(caught.value) == f"{folder}/dictionary.json: config.kk: no such field; did you mean k?"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"n_latents": 5, "k": 2}}, "size mismatch for W_enc"),
        ({"shape": {"inputs": [3], "outputs": None}}, "size mismatch for W_enc"),
        ({"shape": {"inputs": [2], "outputs": [2]}}, "Missing key.*target_scaling.scale"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, changes, message):
    _, folder = saved
    edit(folder, **changes)
    with pytest.raises(FormatError, match=rf"(?s)dictionary\.safetensors: .*{message}"):
        hub.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": ["topk"]}, "type = ['topk']: must be the name of an architecture"),
        ({"config": None}, "config = None: must be a mapping of choices to values"),
        ({"facts": 3}, "facts = 3: must be a mapping"),
        ({"shape": [2]}, "shape = [2]: must be a mapping with inputs and outputs"),
        ({"shape": {"inputs": 2}}, "shape.inputs = 2: must be a list of widths, such as [768]"),
        ({"shape": {"inputs": []}}, "shape.inputs = []: must be a list of widths, such as [768]"),
        (
            {"shape": {"inputs": [2], "outputs": ["2"]}},
            "shape.outputs = ['2']: must be a list of widths, such as [768]",
        ),
        ({"schema": 1, "facts": {}}, "d_in: is missing, must be the width of what is read"),
    ],
)
def test_a_field_that_is_none_is_named(saved, changes, message):
    _, folder = saved
    edit(folder, **changes)
    with pytest.raises(FormatError) as caught:
        hub.load(folder)
    assert str(caught.value) == f"{folder}/dictionary.json: {message}"


@pytest.mark.parametrize("name", ["type", "config", "shape", "facts"])
def test_a_field_that_is_missing_is_named(saved, name):
    _, folder = saved
    content = json.loads(dictionary_file(folder).read_text())
    del content[name]
    dictionary_file(folder).write_text(json.dumps(content))
    with pytest.raises(FormatError, match=rf"dictionary\.json: {name}: is missing, must be "):
        hub.load(folder)


def test_damaged_files_are_named(saved):
    _, folder = saved
    weights = folder / "dictionary.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(FormatError, match=rf"^{weights}: not a safetensors file: "):
        hub.load(folder)
    weights.unlink()
    with pytest.raises(StoreError, match=rf"^{weights}: no such file$"):
        hub.load(folder)
    dictionary_file(folder).write_text("[]")
    for read in (hub.load, hub.facts):
        with pytest.raises(
            FormatError, match=r"dictionary\.json: holds a list, must be a mapping of fields to values$"
        ):
            read(folder)


def test_a_dictionary_of_schema_1_without_its_scale_is_refused(saved):
    _, folder = saved
    edit(folder, schema=1, facts={"d_in": 2})
    with pytest.raises(FormatError, match=r"dictionary\.safetensors: scale: must be a tensor of one number"):
        hub.load(folder)


def test_one_of_its_files_stands_for_the_folder(saved):
    dictionary, folder = saved
    for path in (dictionary_file(folder), folder / "dictionary.safetensors"):
        assert hub.load(path).cfg == dictionary.cfg
        assert hub.facts(path) == FACTS


def test_a_folder_without_a_dictionary_is_named(tmp_path):
    for read in (hub.load, hub.facts, hub.from_pretrained, lambda folder: hub.push_to_hub(folder, "me/it")):
        with pytest.raises(StoreError) as caught:
            read(tmp_path)
        assert str(caught.value) == f"{tmp_path}/dictionary.json: no such file"


# --- published ones ---


def test_a_published_one_has_a_page_and_is_read_from_its_folder(saved):
    dictionary, folder = saved
    hub.save_pretrained(dictionary, FACTS, folder / "deeper", {"l0": 1.5, "n_rows": 1000, "other": 3})
    page = (folder / "deeper/README.md").read_text()
    assert page.startswith("---\n")
    for line in ("# 4 features of tiny", 'base_model: "tiny"', "| k | 2 |", "| type | topk |"):
        assert line in page.splitlines()
    assert "| 1.5 |" in page
    assert "| 1000 |" in page
    assert "other" not in page
    loaded = hub.from_pretrained(folder, subfolder="deeper")
    assert torch.equal(loaded.reconstruct(X)[1], dictionary.reconstruct(X)[1])
    assert not loaded.training


@pytest.mark.parametrize("name", ["nobody/nothing", "no name at all"])
def test_what_is_nowhere_is_named(name):
    with pytest.raises(StoreError) as caught:
        hub.from_pretrained(name)
    assert str(caught.value).startswith(f"{name}: no such folder, and not to be had from the hub: ")
