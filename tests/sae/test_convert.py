"""Which format it is, what is known of the place, the sidecar, the command line."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae import architectures, cli, convert, hub
from sae.architectures.configs import CrosscoderConfig
from sae.convert import places, sidecar
from sae.dictionary import Shape
from sae.errors import ConfigError, FormatError, StoreError
from sae.files import publish
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
    for file in ("dictionary.safetensors", "dictionary.json"):
        assert convert.detect(tmp_path / file) == "sae"
        assert convert.read(tmp_path / file).facts == ours.FACTS


@pytest.mark.parametrize("form", ["sae", "saelens"])
def test_what_the_user_says_holds_for_ours_and_beside_a_sidecar(form, tmp_path):
    convert.write(ours.make("relu_transcoder"), ours.FACTS, form, tmp_path)
    found = convert.read(tmp_path, {"site": "mlp_in.9", "target": "mlp_out.9", "model": "gpt2"}).facts
    assert found == {**ours.FACTS, "inputs": ["mlp_in.9"], "outputs": ["mlp_out.9"], "model": "gpt2"}
    with pytest.raises(ConfigError, match=r"leaves no k open; must be one of model, site, target$"):
        convert.read(tmp_path, {"k": "3"})


def test_a_place_that_a_dictionary_does_not_have_cannot_be_said(tmp_path):
    hub.save(ours.make("relu"), ours.FACTS, tmp_path)
    with pytest.raises(ConfigError) as caught:
        convert.read(tmp_path, {"target": "mlp_out.9"})
    assert str(caught.value) == ("target = 'mlp_out.9': must be left out, the dictionary writes the site that it reads")
    two = architectures.build("crosscoder", CrosscoderConfig(n_latents=4), Shape((2, 3)))
    hub.save(two, {"inputs": ["mlp_out.1", "mlp_out.2"]}, tmp_path)
    with pytest.raises(ConfigError) as caught:
        convert.read(tmp_path, {"site": "mlp_out.9"})
    assert str(caught.value) == "site = 'mlp_out.9': must be left out, the dictionary has 2 inputs"


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
    folder = peers.copy("sparsify/topk", tmp_path / "h.5.mlp/seed1")  # of a run with several seeds
    found = facts("", folder)
    assert (found["inputs"], found["hooks"]) == (["transformer.h.5.mlp:out"], {"hookpoint": "h.5.mlp"})
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


@pytest.mark.parametrize(
    ("case", "form", "file", "site", "said"),
    [
        ("gemma_scope/residual_2", "gemma_scope_2", "config.json", "model.layers.9:out", "model.layers.9.output"),
        ("dictionary_learning/gated", "dictionary_learning", "config.json", "resid_post.9", "resid_post_layer_9"),
        ("dictionary_learning/gated", "dictionary_learning", "config.json", "mlp_in.9", "mlp_9"),
        ("dictionary_learning/gated", "dictionary_learning", "config.json", "h.9.mlp:out", "h.9.mlp:out"),
        ("saelens/jumprelu", "saelens", "cfg.json", "mlp_out.9", "blocks.9.hook_mlp_out"),
    ],
)
def test_what_the_user_says_comes_back_to_a_peer(case, form, file, site, said, tmp_path):
    found = convert.read(peers.folder(case), {"site": site, "model": "mine"})
    convert.write(found.dictionary, found.facts, form, tmp_path)
    content = json.loads((tmp_path / file).read_text())
    content = content.get("trainer") or content.get("metadata") or content
    names = {"hf_hook_point_in", "submodule_name", "hook_name"} & set(content)
    assert [content[name] for name in names] == [said]
    assert {content[name] for name in ("model_name", "lm_name") if name in content} == {"mine"}
    assert content.get("layer", 9) == 9
    (tmp_path / sidecar.JSON).unlink()
    again = convert.read(tmp_path).facts
    assert (again.get("inputs"), again["model"]) == (None if ":" in said else [site], "mine")


def test_a_place_of_which_nothing_new_is_said_comes_back_as_it_was(tmp_path):
    for case in ("dictionary_learning/gated", "gemma_scope/residual_2", "gemma_scope/transcoder_2"):
        found, out = convert.read(peers.folder(case)), tmp_path / case
        convert.write(found.dictionary, found.facts, found.facts["source"]["format"], out)
        before, after = (json.loads((folder / "config.json").read_text()) for folder in (peers.folder(case), out))
        for part in ("trainer", "buffer"):
            assert after.get(part) == before.get(part)
        for name in ("hf_hook_point_in", "hf_hook_point_out", "model_name"):
            assert after.get(name) == before.get(name)


def test_a_threshold_that_top_k_has_learnt_comes_back(tmp_path):
    found = convert.read(peers.folder("dictionary_learning/topk"))
    convert.write(found.dictionary, found.facts, "dictionary_learning", tmp_path)
    before, after = (
        torch.load(folder / "ae.pt", weights_only=True)["threshold"]
        for folder in (peers.folder("dictionary_learning/topk"), tmp_path)
    )
    assert before > 0
    assert torch.equal(before, after)


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


# --- files that are there, and a kill in the middle ---


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("form", "name", "case", "file"),
    [
        ("saelens", "relu", "saelens/standard", "sae_weights.safetensors"),
        ("dictionary_learning", "relu", "dictionary_learning/topk", "ae.pt"),
        ("sparsify", "topk", "sparsify/topk", "sae.safetensors"),
        ("gemma_scope", "jumprelu", "gemma_scope/residual", "params.npz"),
        ("gemma_scope_2", "jumprelu", "gemma_scope/residual_2", "params.safetensors"),
    ],
)
def test_files_of_somebody_else_are_not_written_over(form, name, case, file, tmp_path):
    peers.copy(case, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(FormatError) as caught:
        convert.write(ours.make(name), ours.FACTS, form, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/{file}: would be lost, and is not as `sae convert` wrote it (no sae_atlas.json beside it says "
        "so); write to a folder of its own, or remove the file first"
    )
    assert contents(tmp_path) == before


def test_files_of_ours_are_until_they_have_been_changed(tmp_path):
    convert.write(ours.make("relu"), ours.FACTS, "saelens", tmp_path)
    convert.write(ours.make("topk"), ours.FACTS, "saelens", tmp_path)
    assert type(convert.read(tmp_path).dictionary) is type(ours.make("topk"))
    peers.edit_json(tmp_path / "cfg.json", k=2)
    before = contents(tmp_path)
    with pytest.raises(FormatError, match=r"cfg\.json: would be lost"):
        convert.write(ours.make("relu"), ours.FACTS, "saelens", tmp_path)
    assert contents(tmp_path) == before


class Killed(Exception):
    pass


@pytest.fixture
def kill(monkeypatch):
    """`kill(i)`: the i-th file that is published from now on, counted from 0, is not."""

    def kill_at(n_before: int) -> None:
        left = iter([True] * n_before)

        def publish_or_die(path: Path, write) -> None:
            if not next(left, False):
                raise Killed
            publish(path, write)

        for module in (convert, hub):
            monkeypatch.setattr(module, "publish", publish_or_die)

    yield kill_at
    monkeypatch.undo()


def functions(folder: Path) -> list[torch.Tensor]:
    """What the folder computes, with every answer that it takes."""
    found = []
    for answers in ({}, {"apply_b_dec_to_input": "false"}, {"transcoder": "false"}):
        with contextlib.suppress(FormatError, ConfigError):
            found.append(torch.cat(peers.outputs(folder, ours.rows("relu"), **answers), dim=1))
    return found


# weights of the second would be read under the choices of the first
MIXED = {"saelens": ("topk_no_pre_bias", "relu_free"), "dictionary_learning": ("topk", "batchtopk")}


@pytest.mark.parametrize("n_before", range(4))
@pytest.mark.parametrize("form", MIXED)
def test_a_folder_holds_nothing_half_written(form, n_before, tmp_path, kill, monkeypatch):
    """Weights, choices, the sidecar's tensors, its JSON: whichever is missing, nobody reads a third function."""
    old, new = (ours.make(name) for name in MIXED[form])
    out, plain = tmp_path / "out", tmp_path / "plain"
    valid = [torch.cat(peers.run(dictionary, ours.rows("relu")), dim=1) for dictionary in (old, new)]
    convert.write(old, ours.FACTS, form, out)
    kill(n_before)
    with pytest.raises(Killed):
        convert.write(new, ours.FACTS, form, out)
    monkeypatch.undo()
    assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]
    shutil.copytree(out, plain, ignore=shutil.ignore_patterns("sae_atlas*"))  # as the peer's package sees it
    for found in (*functions(out), *functions(plain)):
        assert any(torch.allclose(found, right, rtol=1e-4, atol=1e-4) for right in valid)
    convert.write(new, ours.FACTS, form, out)
    assert torch.equal(functions(out)[0], valid[1])


def test_what_reads_back_wrongly_leaves_no_file(tmp_path, monkeypatch):
    form = convert.formats.get("saelens")

    def read(path: Path, answers) -> convert.Read:
        raise FormatError(f"{path}: damaged, {answers.given}")

    broken = {"saelens": convert.Format(form.find, read, form.write)}
    monkeypatch.setattr(convert.formats, "get", broken.__getitem__)
    for out in (tmp_path, tmp_path / "new"):
        with pytest.raises(FormatError, match="damaged"):
            convert.write(ours.make("relu"), ours.FACTS, "saelens", out)
        assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder_to_write_to(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(StoreError, match=r"out: is a file, must be a folder to write to$"):
        convert.write(ours.make("relu"), ours.FACTS, "saelens", tmp_path / "out")


@pytest.mark.parametrize("n_before", [0, 1])
def test_ours_holds_nothing_half_written_either(n_before, tmp_path, kill, monkeypatch):
    hub.save(ours.make("topk"), ours.FACTS, tmp_path)
    kill(n_before)
    monkeypatch.setattr("sae.files.publish", hub.publish)  # write_json publishes, too
    with pytest.raises(Killed):
        hub.save(ours.make("relu"), ours.FACTS, tmp_path)
    with pytest.raises(StoreError, match=r"dictionary\.json: no such file"):
        hub.load(tmp_path)


# --- Gemma Scope: autoencoder or transcoder ---

BOTH = {"inputs": ["model.layers.5.mlp:in"], "outputs": ["model.layers.5.mlp:out"]}


def alone(folder: Path, **answers: str) -> convert.Read:
    """What the files say without the sidecar."""
    (folder / sidecar.JSON).unlink()
    return convert.read(folder, answers)


@pytest.mark.parametrize("name", ["batchtopk_transcoder", "jumprelu_skip_transcoder", "relu_transcoder"])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_transcoder_of_gemma_scope_names_both_its_places_or_none(name, side, tmp_path):
    convert.write(ours.make(name), BOTH, "gemma_scope_2", tmp_path / "both")
    found = alone(tmp_path / "both")
    assert (found.facts["inputs"], found.facts["outputs"]) == tuple(BOTH.values())
    convert.write(ours.make(name), {**BOTH, side: ["mlp_out.5"]}, "gemma_scope_2", tmp_path / "one")
    assert not [key for key in json.loads((tmp_path / "one/config.json").read_text()) if key.startswith("hf_hook")]
    assert alone(tmp_path / "one", transcoder="true").dictionary.shape == ours.make(name).shape


@pytest.mark.parametrize(
    ("name", "path", "what"),
    [
        ("relu_transcoder", "gemma-scope-2b-pt-res/x", "the path says `res`, and the dictionary is a transcoder"),
        ("batchtopk_transcoder", "gemma-scope-2b-pt-mlp", "the path says `mlp`, and the dictionary is a transcoder"),
        ("relu", "gemma-scope-2b-pt-transcoders/x", "the path says `transcoder`, and the dictionary is no transcoder"),
    ],
)
def test_a_path_that_names_another_kind_is_refused(name, path, what, tmp_path):
    with pytest.raises(FormatError) as caught:
        convert.write(ours.make(name), ours.FACTS, "gemma_scope", tmp_path / path)
    assert str(caught.value) == f"{tmp_path / path}: cannot be written: {what}; write to a folder of another name"
    assert not list(tmp_path.iterdir())


def test_a_path_that_names_its_kind_is_taken(tmp_path):
    for name, kind in (("relu", "att"), ("relu_transcoder", "transcoders")):
        out = tmp_path / f"gemma-scope-2b-pt-{kind}/layer_3"
        convert.write(ours.make(name), ours.FACTS, "gemma_scope", out)
        assert alone(out).dictionary.shape == ours.make(name).shape


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
