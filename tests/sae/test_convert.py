"""Which format it is, what is known of the place, the sidecar, the command line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae import cli, convert, hub
from sae.convert import places, sidecar
from sae.errors import ConfigError, FormatError, StoreError
from tests.sae import ours, peers
from tests.sae.checks import close

# --- which format ---


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("saelens/standard", "saelens"),
        ("saelens/run/checkpoints/1344", "saelens"),  # with a trainer_state.pt
        ("sparsify/topk", "sparsify"),
        ("dictionary_learning/gated", "dictionary_learning"),
        ("openai/relu", "openai"),
        ("gemma_scope/residual", "gemma_scope"),
        ("gemma_scope/transcoder_2", "gemma_scope_2"),
    ],
)
def test_the_files_say_which_format_it_is(case, name):
    folder = peers.folder(case)
    assert convert.detect(folder) == name
    (weights,) = (path for path in folder.iterdir() if convert.formats.get(name).find(path))
    assert convert.detect(weights) == name


def test_files_of_two_formats_are_told_apart_by_the_user(tmp_path):
    peers.copy("saelens/standard", tmp_path)
    peers.copy("gemma_scope/residual", tmp_path)
    with pytest.raises(FormatError) as caught:
        convert.detect(tmp_path)
    assert str(caught.value) == f"{tmp_path}: has files of gemma_scope and saelens; say which with --from"
    assert convert.read(tmp_path, name="saelens").facts["source"]["format"] == "saelens"


def test_a_folder_above_is_told_what_lies_below(tmp_path):
    peers.copy("sparsify/topk", tmp_path / "run/h.1.mlp")
    with pytest.raises(FormatError, match=f"there are some below it: {tmp_path}/run/h.1.mlp$"):
        convert.read(tmp_path)
    with pytest.raises(FormatError, match=r"give the folder of one dictionary, or the file with its weights$"):
        convert.read(peers.GOLDEN / "README.md")
    with pytest.raises(StoreError, match="no such file or folder"):
        convert.read(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="holds no openai dictionary"):
        convert.read(tmp_path, name="openai")


def test_one_of_several_files_of_openai_is_named(tmp_path):
    for layer in (3, 8):
        peers.copy("openai/relu", tmp_path / str(layer))
        (tmp_path / str(layer) / "8.pt").rename(tmp_path / f"{layer}.pt")
    with pytest.raises(FormatError, match=rf"has 2 dictionaries; name one, such as {tmp_path}/3\.pt"):
        convert.read(tmp_path)
    assert convert.detect(tmp_path / "8.pt") == "openai"


def test_a_checkpoint_of_dictionary_learning_has_its_config_above():
    folder = peers.folder("dictionary_learning/trained/trainer_0")
    found = convert.read(folder / "checkpoints/ae_20.pt")
    assert found.facts["source"]["config"]["trainer"]["dict_class"] == "AutoEncoder"


def test_ours_is_a_format_too(tmp_path):
    convert.write(ours.make("gated"), ours.FACTS, "sae", tmp_path)
    found = convert.read(tmp_path)
    assert convert.detect(tmp_path) == "sae"
    assert (type(found.dictionary), found.facts) == (type(hub.load(tmp_path)), ours.FACTS)


# --- what is known of the place ---


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.5.hook_mlp_out", "mlp_out.5"),
        ("blocks.11.mlp.hook_post", "mlp_act.11"),
        ("blocks.0.hook_attn_out", "attn_out.0"),
        ("blocks.0.hook_resid_pre", "resid_pre.0"),
        ("blocks.0.hook_resid_post", "resid_post.0"),
    ],
)
def test_places_that_are_the_same(hook, site):
    assert places.of_hook(hook) == site
    assert places.to_hook(site) == hook


@pytest.mark.parametrize("hook", ["blocks.5.ln2.hook_normalized", "blocks.5.hook_mlp_in", "blocks.5.attn.hook_z", None])
def test_places_that_we_have_not(hook):
    assert places.of_hook(hook) is None


def facts(case: str, path: Path | None = None, **answers: str) -> dict:
    return convert.read(path or peers.folder(case), answers).facts


def test_facts_of_each_format(tmp_path):
    found = facts("saelens/transcoder")
    assert found["hooks"] == {"hook_name": "blocks.5.ln2.hook_normalized", "hook_name_out": "blocks.5.hook_mlp_out"}
    assert (found.get("inputs"), found["outputs"], found["model"]) == (None, ["mlp_out.5"], "gpt2-small")
    assert found["source"]["config"]["metadata"]["context_size"] == 128
    found = facts("dictionary_learning/gated")
    assert (found["inputs"], found["model"]) == (["mlp_out.3"], "EleutherAI/pythia-70m-deduped")
    folder = peers.copy("sparsify/transcode", tmp_path / "h.5.mlp")
    found = facts("", folder, apply_b_dec_to_input="false")
    assert (found["inputs"], found["outputs"]) == (["transformer.h.5.mlp:in"], ["transformer.h.5.mlp:out"])
    folder = peers.copy("openai/topk_layer_norm", tmp_path / "gpt2-small/resid_delta_mlp_v5_32k/autoencoders")
    assert facts("", folder, normalize="true")["inputs"] == ["mlp_out.8"]
    folder = peers.copy("gemma_scope/transcoder", tmp_path / "gemma-scope-2b-pt-transcoders/layer_5/width_16k")
    assert facts("", folder)["outputs"] == ["model.layers.5.post_feedforward_layernorm:out"]
    assert facts("gemma_scope/residual_2")["inputs"] == ["model.layers.5:out"]


def test_the_hubs_cache_keeps_files_elsewhere_under_other_names(tmp_path):
    """Its snapshots are links: the place is in the link's path."""
    folder = tmp_path / "snapshots/1/h.5.mlp"
    folder.mkdir(parents=True)
    for file in peers.copy("sparsify/topk", tmp_path / "blobs").iterdir():
        (folder / file.name).symlink_to(file.rename(tmp_path / "blobs" / str(len(file.name))))
    assert facts("", folder)["inputs"] == ["transformer.h.5.mlp:out"]


def test_what_saelens_says_of_its_text_comes_back_to_it(tmp_path):
    for case in ("saelens/jumprelu", "saelens/standard_hook_z", "saelens/pre_6_topk_layer_norm"):
        found, out = convert.read(peers.folder(case)), tmp_path / case
        convert.write(found.dictionary, found.facts, "saelens", out)
        before, after = (json.loads((path / "cfg.json").read_text()) for path in (peers.folder(case), out))
        kept = before.get("metadata", before)
        for name in ("model_name", "hook_name", "context_size", "prepend_bos", "dataset_path", "hook_head_index"):
            assert after["metadata"][name] == kept[name]
        assert after["reshape_activations"] == before.get("reshape_activations", "none")
        assert after["apply_b_dec_to_input"] == before["apply_b_dec_to_input"]
        for name, value in load_file(peers.folder(case) / "sae_weights.safetensors").items():
            assert torch.equal(load_file(out / "sae_weights.safetensors")[name], value)


def test_nested_widths_and_an_unset_threshold():
    found = convert.read(peers.folder("saelens/matryoshka"), {"k": "4"}).dictionary
    assert found.cfg.prefixes == (2, 5, 10)
    close(found.get_buffer("threshold.total") / found.get_buffer("threshold.weight"), 0.6180339887, rtol=1e-6)
    found = convert.read(peers.folder("dictionary_learning/batch_topk_unset")).dictionary
    assert found.get_buffer("threshold.weight") == 0


# --- the sidecar ---


@pytest.mark.parametrize("changed", ["cfg.json", "sae_weights.safetensors", "sae_atlas.safetensors"])
def test_a_sidecar_of_other_contents_is_refused(changed, tmp_path):
    convert.write(ours.make("batchtopk"), ours.FACTS, "saelens", tmp_path)
    with (tmp_path / changed).open("ab") as file:
        file.write(b" ")
    with pytest.raises(FormatError) as caught:
        convert.read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/sae_atlas.json: is of other contents of {changed}, which has changed since; "
        "remove sae_atlas.json to read the files as they are"
    )


def test_without_it_the_files_speak_for_themselves(tmp_path):
    convert.write(ours.make("batchtopk"), ours.FACTS, "saelens", tmp_path)
    (tmp_path / sidecar.JSON).unlink()
    found = convert.read(tmp_path)
    assert hub.describe(found.dictionary, {})[0]["type"] == "jumprelu"
    assert found.facts["source"]["config"]["metadata"]["training_architecture"] == "batchtopk"


def test_it_holds_no_tensor_that_the_files_have(tmp_path):
    convert.write(ours.make("relu_free"), ours.FACTS, "saelens", tmp_path)
    assert set(load_file(tmp_path / sidecar.TENSORS)) == {"variance"}


def test_it_answers_what_the_files_leave_open_and_nothing_else_is(tmp_path):
    convert.write(ours.make("jumprelu"), ours.FACTS, "dictionary_learning", tmp_path)
    convert.read(tmp_path)
    with pytest.raises(ConfigError, match="leaves no apply_b_dec_to_input open"):
        convert.read(tmp_path, {"apply_b_dec_to_input": "true"})


def test_it_is_not_overwritten_by_that_of_another_file(tmp_path):
    convert.write(ours.make("topk_layer_norm"), {"inputs": ["mlp_out.3"]}, "openai", tmp_path)
    with pytest.raises(FormatError, match=r"sae_atlas\.json: belongs to 3\.pt; write to a folder of its own"):
        convert.write(ours.make("topk_layer_norm"), {"inputs": ["mlp_out.4"]}, "openai", tmp_path)
    assert not (tmp_path / "4.pt").exists()
    convert.write(ours.make("relu_free"), {"inputs": ["mlp_out.3"]}, "openai", tmp_path)  # anew
    assert convert.read(tmp_path).dictionary.cfg.normalise == "none"


def test_a_folder_holds_nothing_half_written(tmp_path):
    convert.write(ours.make("matryoshka"), ours.FACTS, "dictionary_learning", tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"ae.pt", "config.json", "sae_atlas.json", "sae_atlas.safetensors"}


# --- the command line ---


def test_convert_from_the_command_line(tmp_path, capsys):
    source = str(peers.folder("dictionary_learning/jumprelu"))
    assert cli.main(["convert", source, "--to", "sae", "--out", str(tmp_path / "a")]) == 2
    assert capsys.readouterr().err.startswith(f"sae: {source}/ae.pt: apply_b_dec_to_input: cannot be known")
    answer = ["--set", "apply_b_dec_to_input=false"]
    assert cli.main(["convert", source, "--to", "sae", "--out", str(tmp_path / "a"), *answer]) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'a'}\n"
    back = ["convert", str(tmp_path / "a"), "--from", "sae", "--to", "saelens", "--out", str(tmp_path / "b")]
    assert cli.main(back) == 0
    x, latents = (peers.expected("dictionary_learning/jumprelu")[name] for name in ("x", "latents"))
    close(peers.outputs(tmp_path / "b", x)[0], latents, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "sealens"], "format 'sealens' is unknown: must be one of dictionary_learning, gemma_scope, "),
        (["--to", "sae", "--from", "x"], "format 'x' is unknown: must be one of "),
        (["--to", "sae", "--set", "k"], "--set k: must be field=value, such as apply_b_dec_to_input=false"),
    ],
)
def test_mistakes_on_the_command_line(arguments, message, tmp_path, capsys):
    source = str(peers.folder("saelens/standard"))
    assert cli.main(["convert", source, "--out", str(tmp_path / "a"), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"sae: {message}")
    assert not (tmp_path / "a").exists()
