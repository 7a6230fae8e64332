"""What a file leaves open is asked by name, and each answer is the function that it says."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae import convert
from sae.errors import ConfigError, FormatError
from tests.sae import peers
from tests.sae.checks import close

B_DEC, RESCALE = "apply_b_dec_to_input", "rescale_acts_by_decoder_norm"


def asked(source, **answers: str) -> str:
    with pytest.raises(FormatError) as caught:
        convert.read(source, answers)
    return str(caught.value)


# --- every question, as it is asked ---


def lose(name: str):
    """A change of SAELens' or sparsify's cfg.json that leaves a field out."""
    return lambda folder: peers.edit_json(folder / "cfg.json", **{name: None})


def lose_version(*names: str, **more):
    """A change of SAELens' cfg.json that leaves its metadata out, and with it its version."""
    return lambda folder: peers.edit_json(folder / "cfg.json", metadata=None, **dict.fromkeys(names), **more)


def nullify_metadata(folder):
    content = json.loads((folder / "cfg.json").read_text()) | {"metadata": None}
    del content[B_DEC]
    (folder / "cfg.json").write_text(json.dumps(content))


def flat_gemma(folder):
    (folder / "config.json").unlink()


def square_gemma(folder):
    def change(tensors):
        for name, rows in (("w_enc", 6), ("w_dec", 6), ("b_enc", 6), ("threshold", 6)):
            tensors[name] = tensors[name][:, :rows] if name == "w_enc" else tensors[name][:rows]

    peers.edit_tensors(folder / "params.safetensors", change)


def anonymous(folder):
    (folder / "config.json").unlink()


def lose_scaler(folder):
    (folder / "activation_scaler.json").unlink()


def lose_k(folder):
    def change(state):
        state["activation_state_dict"] = {}

    peers.edit_tensors(folder / "8.pt", change)


def lose_activation(folder):
    peers.edit_tensors(folder / "8.pt", lambda state: state.pop("activation"))


QUESTIONS = [
    ("dictionary_learning/jumprelu", None, B_DEC, "true or false"),
    ("dictionary_learning/topk", anonymous, "dict_class", "AutoEncoderTopK or BatchTopKSAE"),
    ("sparsify/transcode", None, B_DEC, "true or false"),
    ("sparsify/topk", lose("k"), "k", "a whole number above 0"),
    ("openai/relu", None, "normalize", "true or false"),
    ("openai/relu", lose_activation, "activation", "ReLU or TopK"),
    ("openai/topk_layer_norm_strict", lose_k, "k", "a whole number above 0"),
    ("gemma_scope/residual", None, "kind", "res or mlp or att or transcoder"),
    ("gemma_scope/residual_2", flat_gemma, "transcoder", "true or false"),
    ("gemma_scope/residual_2", square_gemma, "W_enc_rows", "inputs or latents"),
    ("saelens/topk", lose("k"), "k", "a whole number above 0"),
    ("saelens/batchtopk", None, "k", "a whole number above 0"),
    ("saelens/topk", lose("rescale_acts_by_decoder_norm"), "rescale_acts_by_decoder_norm", "true or false"),
    ("saelens/standard", lose(B_DEC), B_DEC, "true or false"),
    ("saelens/matching_pursuit", lose(B_DEC), B_DEC, "true or false"),
    ("saelens/jumprelu", lose_version(B_DEC), B_DEC, "true or false"),
    ("saelens/jumprelu", nullify_metadata, B_DEC, "true or false"),
    ("saelens/batchtopk", lose_version(RESCALE, k=4), RESCALE, "true or false"),
    ("saelens/batchtopk", lose_version(RESCALE, k=4, activation_fn="relu"), RESCALE, "true or false"),
    ("saelens/topk", lose_version(RESCALE), RESCALE, "true or false"),
    ("saelens/standard_scaled/1344", lose_scaler, "scaling_factor", "a number above 0"),
]


@pytest.mark.parametrize(("case", "change", "name", "valid"), QUESTIONS)
def test_it_is_asked(case, change, name, valid, tmp_path):
    folder = peers.copy(case, tmp_path)
    if change is not None:
        change(folder)
    message = asked(folder)
    assert f": {name}: cannot be known from the file; it decides " in message
    assert message.endswith(f"; answer with --set {name}=…, {valid}")
    with pytest.raises(ConfigError, match=f"{name} = 'maybe': must be {valid}; it decides"):
        convert.read(folder, {name: "maybe"})


def test_a_question_in_full():
    path = peers.folder("dictionary_learning/jumprelu")
    assert asked(path) == (
        f"{path}/ae.pt: apply_b_dec_to_input: cannot be known from the file; it decides whether b_dec is subtracted "
        "from the input; the package's class does not unless told so; "
        "answer with --set apply_b_dec_to_input=…, true or false"
    )


# --- what is not asked may not be answered ---


@pytest.mark.parametrize(
    ("answers", "hint"),
    [
        ({"k": "3"}, "--set k=3: {} leaves no k open; must be one of apply_b_dec_to_input, model, site, target"),
        ({"aply_b_dec": "true"}, "--set aply_b_dec=true: {} leaves no aply_b_dec open; did you mean apply_b_dec_to"),
    ],
)
def test_an_answer_to_no_question_is_refused(answers, hint):
    path = peers.folder("dictionary_learning/jumprelu")
    with pytest.raises(ConfigError) as caught:
        convert.read(path, {B_DEC: "false", **answers})
    assert str(caught.value).startswith(hint.format(path / "ae.pt"))


def test_answers_are_kept_among_the_facts():
    found = convert.read(peers.folder("dictionary_learning/jumprelu"), {B_DEC: "false", "site": "mlp_out.9"})
    assert found.facts["source"]["answers"] == {B_DEC: "false", "site": "mlp_out.9"}
    assert found.facts["inputs"] == ["mlp_out.9"]


# --- each answer is the function that it says ---


def test_dictionary_learning_with_b_dec_subtracted():
    case = "dictionary_learning/jumprelu"
    x = peers.expected(case)["x"]
    state = torch.load(peers.folder(case) / "ae.pt", weights_only=True)
    pre = (x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]
    f = pre.relu() * (pre > state["threshold"])
    latents, recon = peers.outputs(peers.folder(case), x, apply_b_dec_to_input="true")
    close(latents, f, atol=1e-5)
    close(recon, f @ state["W_dec"] + state["b_dec"], atol=1e-5)


@pytest.mark.parametrize("case", ["sparsify/transcode", "sparsify/skip_transcode"])
def test_a_sparsify_transcoder_from_before_february_2025(case):
    x, tensors = peers.expected(case)["x"], load_file(peers.folder(case) / "sae.safetensors")
    pre = ((x - tensors["b_dec"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"]).relu()
    values, indices = pre.topk(4)
    f = torch.zeros_like(pre).scatter(1, indices, values)
    latents, recon = peers.outputs(peers.folder(case), x, apply_b_dec_to_input="true")
    close(latents, f, atol=1e-5)
    skip = x @ tensors["W_skip"].T if "W_skip" in tensors else 0
    close(recon, f @ tensors["W_dec"] + tensors["b_dec"] + skip, atol=1e-5)


def test_an_openai_file_of_rows_as_they_are():
    """The package would layer-norm a TopK's rows whatever it was trained on."""
    case = "openai/topk_layer_norm"
    x = peers.expected(case)["x"]
    state = torch.load(peers.folder(case) / "8.pt", weights_only=True)
    pre = (x - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
    values, indices = pre.topk(4)
    f = torch.zeros_like(pre).scatter(1, indices, values.relu())
    latents, recon = peers.outputs(peers.folder(case), x, normalize="false")
    close(latents, f, atol=1e-5)
    close(recon, f @ state["decoder.weight"].T + state["pre_bias"], atol=1e-4)


def test_the_class_of_a_file_without_its_config(tmp_path):
    """One threshold for all, or the k largest: the same six tensors."""
    folder = peers.copy("dictionary_learning/batch_topk", tmp_path)
    (folder / "config.json").unlink()
    x = peers.expected("dictionary_learning/batch_topk")["x"]
    by_threshold, _ = peers.outputs(folder, x, dict_class="BatchTopKSAE")
    close(by_threshold, peers.expected("dictionary_learning/batch_topk")["latents"])
    by_rank, _ = peers.outputs(folder, x, dict_class="AutoEncoderTopK")
    assert (by_rank > 0).sum(1).max() == 3
    assert (by_threshold > 0).sum(1).max() > 3


def test_a_class_that_its_tensors_tell_is_not_asked(tmp_path):
    for case in ("auto_encoder", "auto_encoder_new", "gated", "matryoshka"):
        folder = peers.copy(f"dictionary_learning/{case}", tmp_path / case)
        (folder / "config.json").unlink()
        x = peers.expected(f"dictionary_learning/{case}")["x"]
        close(peers.outputs(folder, x)[0], peers.expected(f"dictionary_learning/{case}")["latents"], atol=1e-5)


def test_a_square_encoder_of_gemma_scope_either_way_round(tmp_path):
    folder = peers.copy("gemma_scope/residual_2", tmp_path)
    square_gemma(folder)
    tensors, x = load_file(folder / "params.safetensors"), peers.expected("gemma_scope/residual_2")["x"]
    for rows, W_enc in (("inputs", tensors["w_enc"]), ("latents", tensors["w_enc"].T)):
        pre = x @ W_enc + tensors["b_enc"]
        close(peers.outputs(folder, x, W_enc_rows=rows)[0], pre.relu() * (pre > tensors["threshold"]), atol=1e-5)


def test_a_transposed_encoder_of_gemma_scope_shows_by_its_shape(tmp_path):
    folder = peers.copy("gemma_scope/residual_2", tmp_path)
    peers.edit_tensors(folder / "params.safetensors", lambda tensors: tensors.update(w_enc=tensors["w_enc"].T))
    x, latents = (peers.expected("gemma_scope/residual_2")[name] for name in ("x", "latents"))
    close(peers.outputs(folder, x)[0], latents, atol=1e-5)


def test_a_lost_scaling_factor(tmp_path):
    """With the factor that activation_scaler.json had it is the same; 1 takes the weights as they are."""
    case = "saelens/standard_scaled/1344"
    folder, x = peers.copy(case, tmp_path), peers.expected(case)["x"]
    factor = json.loads((folder / "activation_scaler.json").read_text())["scaling_factor"]
    lose_scaler(folder)
    close(peers.outputs(folder, x, scaling_factor=str(factor))[0], peers.expected(case)["latents"], atol=1e-5)
    unfolded, _ = peers.outputs(folder, x * factor, scaling_factor="1")
    close(unfolded, peers.expected(case)["unfolded_latents"], atol=1e-5)


def test_lost_fields_of_saelens(tmp_path):
    folder = peers.copy("saelens/topk_rescale", tmp_path)
    peers.edit_json(folder / "cfg.json", k=None, rescale_acts_by_decoder_norm=None, apply_b_dec_to_input=None)
    answers = {"k": "4", "rescale_acts_by_decoder_norm": "true", "apply_b_dec_to_input": "true"}
    x, latents = (peers.expected("saelens/topk_rescale")[name] for name in ("x", "latents"))
    close(peers.outputs(folder, x, **answers)[0], latents, atol=1e-5)


def test_decoder_norms_need_no_question_where_they_are_1(tmp_path):
    folder = peers.copy("saelens/topk", tmp_path)
    lose("rescale_acts_by_decoder_norm")(folder)
    weights = folder / "sae_weights.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "W_dec": torch.nn.functional.normalize(tensors["W_dec"], dim=1)}, weights)
    assert convert.read(folder).dictionary.cfg.decoder == "unit"


# --- SAELens' cfg.json from before version 6 ---


@pytest.mark.parametrize(
    "sign",
    [
        {"activation_fn": "relu"},
        {"activation_fn_str": "relu"},
        {"activation_fn_kwargs": {}},
        {"hook_point": "blocks.5.hook_mlp_out"},
        {"sae_lens_version": "5.1.0"},
        {"sae_lens_training_version": "3.12.1"},
    ],
)
def test_an_old_file_shows_by_its_fields_or_its_version(sign, tmp_path):
    """It has the pre-bias that all had then; with a version of 6 beside the same field it is asked for."""
    folder = peers.copy("saelens/standard", tmp_path)
    lose_version(B_DEC, **sign)(folder)
    x, latents = (peers.expected("saelens/standard")[name] for name in ("x", "latents"))
    close(peers.outputs(folder, x)[0], latents, atol=1e-5)
    peers.edit_json(folder / "cfg.json", metadata={"sae_lens_version": "6.0.0"})
    assert f"{B_DEC}: cannot be known" in asked(folder)


def test_without_a_version_the_place_is_still_known(tmp_path):
    folder = peers.copy("saelens/standard", tmp_path)
    lose_version(hook_name="blocks.3.hook_mlp_out", model_name="gpt2")(folder)
    found = convert.read(folder).facts
    assert (found["inputs"], found["model"]) == (["mlp_out.3"], "gpt2")


def test_metadata_of_null_is_none(tmp_path):
    folder = peers.copy("saelens/standard", tmp_path / "theirs")
    nullify_metadata(folder)
    found = convert.read(folder, {B_DEC: "true"})
    convert.write(found.dictionary, found.facts, "saelens", tmp_path / "again")
    peers.edit_json(folder / "cfg.json", metadata=[1])
    with pytest.raises(FormatError, match=r"metadata = \[1\]: must be a mapping"):
        convert.read(folder)
