"""Files that are damaged, contradict themselves or would have to run code are refused, and the message says why."""

import pickle

import numpy as np
import pytest
import torch

from sae import convert
from sae.convert import tensors
from sae.errors import FormatError, SaeError, StoreError
from tests.sae import ours, peers


def weights(name: str, change):
    return lambda folder: peers.edit_tensors(folder / name, change)


def saelens_weights(change):
    return weights("sae_weights.safetensors", change)


def cfg(**changes):
    return lambda folder: peers.edit_json(folder / "cfg.json", **changes)


def overwrite(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def trainer(folder, **changes):
    peers.edit_json(folder / "config.json", trainer={"dict_class": "AutoEncoderTopK", "k": 3, **changes})


REFUSED = {
    "another tensor": (
        "saelens/standard",
        saelens_weights(lambda t: t.update(extra=torch.zeros(1))),
        "sae_weights.safetensors: extra: no such tensor here; there should be W_enc, W_dec, b_dec, b_enc",
    ),
    "a tensor less": (
        "saelens/standard",
        saelens_weights(lambda t: t.pop("b_enc")),
        "sae_weights.safetensors: b_enc: is missing, must be a tensor of shape [10]",
    ),
    "no matrix": (
        "saelens/standard",
        saelens_weights(lambda t: t.pop("W_enc")),
        "sae_weights.safetensors: W_enc: is missing, must be a matrix",
    ),
    "transposed": (
        "saelens/standard",
        saelens_weights(lambda t: t.update(W_dec=t["W_dec"].T)),
        "sae_weights.safetensors: W_dec: has shape [6, 10], must be [10, 6]; it looks transposed",
    ),
    "transposed skip": (
        "saelens/skip_transcoder",
        saelens_weights(lambda t: t.update(W_skip=t["W_skip"].T)),
        "sae_weights.safetensors: W_skip: has shape [6, 5], must be [5, 6]; it looks transposed",
    ),
    "another size than it says": ("saelens/standard", cfg(d_sae=11), "cfg.json: d_sae = 11: the weights have 10"),
    "a fine-tuned scale": (
        "saelens/standard",
        saelens_weights(lambda t: t.update(scaling_factor=torch.full((10,), 2.0))),
        "scaling_factor: is not all 1; SAELens itself reads such files no longer",
    ),
    "an unknown architecture": (
        "saelens/standard",
        cfg(architecture="stnadard"),
        "cfg.json: architecture = 'stnadard': must be one of standard, gated, topk, ",
    ),
    "no architecture": ("saelens/standard", cfg(architecture=None), "cfg.json: architecture: is missing"),
    "an unknown normalisation": (
        "saelens/standard",
        cfg(normalize_activations="batch"),
        "cfg.json: normalize_activations = 'batch': must be none, layer_norm, constant_norm_rescale, ",
    ),
    "an old activation": (
        "saelens/pre_6_topk_layer_norm",
        cfg(activation_fn_str="tanh-relu"),
        "cfg.json: activation_fn = 'tanh-relu': has no counterpart here, must be relu or topk",
    ),
    "half a latent": ("saelens/topk", cfg(k=3.5), "cfg.json: k = 3.5: must be a whole number"),
    "more latents than there are": ("saelens/topk", cfg(k=11), "sae.k = 11: must be at most n_latents = 10"),
    "a transcoder that subtracts": (
        "saelens/transcoder",
        cfg(apply_b_dec_to_input=True),
        "cfg.json: apply_b_dec_to_input = true: must be false, SAELens has no transcoder that does so",
    ),
    "a lost whitening": (
        "saelens/jumprelu_whitened/1344",
        lambda folder: (folder / "activation_whitening.safetensors").unlink(),
        "activation_whitening.safetensors: no such file; the weights take whitened rows",
    ),
    "scaled and not scaled": (
        "saelens/standard_scaled/1344",
        cfg(normalize_activations="none"),
        "activation_scaler.json: scaling_factor = 0.160725649190666: but cfg.json has normalize_activations = 'none'",
    ),
    "pursuit without its stop": (
        "saelens/matching_pursuit",
        cfg(residual_threshold=None),
        "cfg.json: residual_threshold: is missing, and decides which latents are found",
    ),
    "nested without widths": (
        "saelens/matryoshka_inference",
        cfg(architecture="matryoshka_batchtopk"),
        "topk_threshold",
    ),
    "no JSON": ("saelens/standard", overwrite("cfg.json", b"{"), "cfg.json: not valid JSON"),
    "a list": ("saelens/standard", overwrite("cfg.json", b"[]"), "cfg.json: holds a list, must be a mapping"),
    "no safetensors": ("saelens/standard", overwrite("sae_weights.safetensors", b"12345678"), "not a safetensors file"),
    "two k": ("dictionary_learning/topk", lambda folder: trainer(folder, k=4), "trainer.k = 4: ae.pt has 3"),
    "no such class": (
        "dictionary_learning/topk",
        lambda folder: trainer(folder, dict_class="IdentityDict"),
        "config.json: trainer.dict_class = 'IdentityDict': must be AutoEncoder, AutoEncoderNew, ",
    ),
    "another class's tensors": (
        "dictionary_learning/topk",
        lambda folder: trainer(folder, dict_class="GatedAutoEncoder"),
        "ae.pt: gate_bias: is missing",
    ),
    "signed": ("sparsify/topk", cfg(signed=True), "cfg.json: signed = true: has no counterpart here"),
    "a skip that is not said": ("sparsify/skip_sae", cfg(skip_connection=None), "W_skip: no such tensor here"),
    "fewer than it says": ("sparsify/topk", cfg(num_latents=12), "cfg.json: num_latents = 12: the weights have 10"),
    "no activation of ours": ("sparsify/topk", cfg(activation="tanh"), "activation = 'tanh': must be topk"),
    "Identity": ("openai/relu", weights("8.pt", lambda s: s.update(activation="Identity")), "activation = 'Identity'"),
    "not JumpReLU": (
        "gemma_scope/residual_2",
        lambda folder: peers.edit_json(folder / "config.json", architecture="topk"),
        "config.json: architecture = 'topk': must be jump_relu",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name, tmp_path):
    case, change, message = REFUSED[name]
    folder = peers.copy(case, tmp_path)
    change(folder)
    with pytest.raises(SaeError) as caught:
        convert.read(folder)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(folder))


@pytest.mark.parametrize("name", ["files", "answers", "shared", "dictionary"])
def test_a_damaged_sidecar_is_refused(name, tmp_path):
    convert.write(ours.make("relu"), ours.FACTS, "saelens", tmp_path)
    peers.edit_json(tmp_path / "sae_atlas.json", **{name: 5})
    with pytest.raises(FormatError, match=rf"sae_atlas\.json: {name} = 5: must be a "):
        convert.read(tmp_path)


# --- nothing is run ---


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the file's code was run",))


def test_code_in_a_pt_file_is_not_run(tmp_path):
    peers.copy("dictionary_learning/topk", tmp_path)
    torch.save({"encoder.weight": Bomb()}, tmp_path / "ae.pt")
    with pytest.raises(FormatError, match=r"ae\.pt: must hold tensors and plain values only"):
        convert.read(tmp_path)
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(FormatError, match=r"ae\.pt: must hold tensors and plain values only"):
        convert.read(tmp_path)


def test_code_in_an_openai_file_is_not_run_to_find_out_what_it_is(tmp_path):
    torch.save({"pre_bias": Bomb(), "latent_bias": 1}, tmp_path / "3.pt")
    assert convert.detect(tmp_path) == "openai"
    with pytest.raises(FormatError, match=r"3\.pt: must hold tensors and plain values only"):
        convert.read(tmp_path)


def test_code_in_a_npz_file_is_not_run(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([Bomb()], dtype=object))
    with pytest.raises(FormatError, match=r"params\.npz: must be a npz file of plain arrays"):
        convert.read(tmp_path, {"kind": "res"})
    (tmp_path / "params.npz").write_bytes(b"no zip")
    with pytest.raises(FormatError, match=r"params\.npz: must be a npz file of plain arrays"):
        convert.read(tmp_path, {"kind": "res"})


def test_a_pt_file_of_something_else_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "ae.pt")
    with pytest.raises(FormatError, match="holds a list, must be a state dict"):
        convert.read(tmp_path)
    with pytest.raises(StoreError, match="no such file"):
        tensors.read_pt(tmp_path / "nowhere.pt")
