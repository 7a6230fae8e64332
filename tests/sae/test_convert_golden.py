"""Every checkpoint that another package wrote gives the latents and the output that this package gave for it.

`tests/golden/README.md` says where the files come from. Tolerance: 1e-5 of each number, or of 1.
"""

import pytest
import torch

from sae import convert
from sae.errors import FormatError
from tests.sae import peers

UNCUT = {"apply_b_dec_to_input": "false"}
"""Answers of a file's own trainers, for what the file leaves open."""
K = {"k": "4"}
# folder of expected.safetensors: answers to what its files leave open
ANSWERS = {
    "saelens/batchtopk": K,
    "saelens/batchtopk_no_rescale": K,
    "saelens/matryoshka": K,
    "dictionary_learning/jumprelu": UNCUT,
    "dictionary_learning/trained/trainer_3": UNCUT,
    "sparsify/transcode": UNCUT,
    "sparsify/skip_transcode": UNCUT,
    "openai/relu": {"normalize": "false"},
    "openai/topk_layer_norm": {"normalize": "true"},
    "openai/topk_layer_norm_strict": {"normalize": "true"},
    "gemma_scope/residual": {"kind": "res"},
    "gemma_scope/transcoder": {"kind": "transcoder"},
}
REFUSED = {
    "saelens/abstopk": "architecture = 'abstopk': has no counterpart here: it keeps latents below 0",
    "saelens/abstopk_rescale": "architecture = 'abstopk': has no counterpart here: it keeps latents below 0",
    "saelens/temporal": "architecture = 'temporal': has no counterpart here: its latents depend on the rows before",
    "sparsify/groupmax": "activation = 'groupmax': is not built in; docs/plug-ins.md has it as an example",
    "openai/topk_identity": "postact_fn = 'Identity': has no counterpart here, latents are never negative",
}
CASES = sorted(str(path.parent.relative_to(peers.GOLDEN)) for path in peers.GOLDEN.rglob("expected.safetensors"))


def read(case: str) -> convert.Read:
    return convert.read(peers.folder(case), ANSWERS.get(case))


def test_every_case_is_tried():
    assert len(CASES) > 60
    assert {*ANSWERS, *REFUSED} <= set(CASES)


@pytest.mark.parametrize("case", [case for case in CASES if case not in REFUSED])
def test_it_is_the_same_function(case):
    expected = peers.expected(case)
    dictionary = read(case).dictionary
    with torch.no_grad():
        latents, recon = dictionary.reconstruct(expected["x"])
    is_number = expected["recon"].isfinite().all(dim=1)  # SAELens divides a row of zeros by its norm
    assert is_number[1:].all()
    for found, right in ((latents.dense(), expected["latents"]), (recon, expected["recon"])):
        assert found.isfinite().all()
        torch.testing.assert_close(found[is_number], right[is_number], rtol=1e-5, atol=1e-5)
        assert torch.equal(found[is_number] != 0, right[is_number] != 0)


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_counterpart_is_refused_with_the_reason(case):
    with pytest.raises(FormatError) as caught:
        read(case)
    assert REFUSED[case] in str(caught.value)
