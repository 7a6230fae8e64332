"""A sweep's list: what an entry means, what its folder is called, and what is refused."""

from pathlib import Path

import pytest

from sae.architectures.configs import JumpReLUConfig, TopKConfig
from sae.errors import ConfigError
from sae.run_config import RunConfig, describe, load_config
from sae.sweep_config import FILES, STREAM
from train import pareto, trainer

BASE = """
harvest: {sites: [mlp_out.1, mlp_out.2]}
sae: {n_latents: 64, k: 4, auxk: 0}
train: {site: mlp_out.1, lr: 2e-3, tokens: 1000}
sweep:
"""


@pytest.fixture
def read(tmp_path: Path):
    """`read("- sae.k: 8")`: the run with this sweep."""

    def read_yaml(text: str, *assignments: str) -> RunConfig:
        path = tmp_path / "run.yaml"
        path.write_text(BASE + text + "\n")
        return load_config(path, assignments)

    return read_yaml


def names(cfg: RunConfig) -> list[str]:
    return [member.name for member in cfg.sweep]


# --- what an entry means ---


def test_an_entry_changes_the_fields_that_it_names(read):
    cfg = read("- sae.k: 8\n- {train: {lr: 1e-4, site: mlp_out.2}, sae: {k: 2}}")
    assert cfg.sae == TopKConfig(n_latents=64, k=4, auxk=0), "the run's own dictionary is as it was"
    first, second = (member.cfg for member in cfg.sweep)
    assert first.sae == TopKConfig(n_latents=64, k=8, auxk=0)
    assert first.train == cfg.train
    assert second.sae.k == 2
    assert (second.train.lr, second.train.site, second.train.tokens) == (1e-4, "mlp_out.2", 1000)
    assert second.places.inputs == ("mlp_out.2",)


@pytest.mark.parametrize(
    "entry", ["{sae: {type: jumprelu, threshold: 0.1}}", "{sae.type: jumprelu, sae.threshold: 0.1}"]
)
def test_a_type_brings_its_own_defaults_and_inherits_the_width(read, entry):
    member = read(f"- {entry}").member("jumprelu,threshold=0.1")
    assert member.sae_type == "jumprelu"
    assert member.sae == JumpReLUConfig(n_latents=64, threshold=0.1)
    assert member.train.lr == 2e-3, "what `train` says is said to all"


def test_the_runs_own_type_may_be_named_to_start_from_its_defaults(read):
    assert read("- sae: {type: topk, k: 8}").sweep[0].cfg.sae == TopKConfig(n_latents=64, k=8)


def test_null_gives_a_field_back_to_the_paper(read):
    assert read("- train.lr: null").member("lr=none").train.lr is None


def test_a_grid_is_every_combination_the_last_field_changing_fastest(read):
    cfg = read("- {sae.type: batchtopk, grid: {sae.k: [8, 16], train.lr: [1e-3, 1e-4]}}")
    assert names(cfg) == [
        "batchtopk,k=8,lr=0.001",
        "batchtopk,k=8,lr=0.0001",
        "batchtopk,k=16,lr=0.001",
        "batchtopk,k=16,lr=0.0001",
    ]
    assert [(m.cfg.sae.k, m.cfg.train.lr) for m in cfg.sweep] == [(8, 1e-3), (8, 1e-4), (16, 1e-3), (16, 1e-4)]


def test_a_grid_may_vary_the_type(read):
    assert names(read("- grid: {sae.type: [topk, batchtopk]}")) == ["topk", "batchtopk"]


def test_assignments_change_the_run_and_so_what_members_inherit(read):
    member = read("- sae.k: 8", "sae.n_latents=32", "train.lr=1").member("k=8")
    assert (member.sae.n_latents, member.sae.k, member.train.lr) == (32, 8, 1)


def test_the_list_may_come_from_the_command_line(read):
    assert names(read("", "sweep=[{grid: {sae.k: [1, 2]}}]")) == ["k=1", "k=2"]


def test_a_member_is_the_run_that_the_same_assignments_describe(read):
    member = read("- {sae.k: 8, train.site: mlp_out.2}").sweep[0].cfg
    assert member == read("", "sae.k=8", "train.site=mlp_out.2")


def test_description_reads_back_as_the_same_sweep(read, tmp_path):
    cfg = read(
        "- sae.k: 8\n- {sae: {type: relu, sparsity_coef: 1e-5}, name: weak}\n- grid: {train.site: [[mlp_out.1]]}"
    )
    again = tmp_path / "again.yaml"
    again.write_text(describe(cfg))
    assert load_config(again) == cfg
    assert '\nsweep:\n  - {"name": "k=8", "sae.k": 8}\n' in describe(cfg)
    assert describe(cfg.sweep[0].cfg).endswith("\nsweep: []")


# --- what a folder is called ---


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("sae.k: 16", "k=16"),
        ("{sae: {type: jumprelu, sparsity_coef: 1e-3}, train.lr: 1e-4}", "jumprelu,sparsity_coef=0.001,lr=0.0001"),
        ("train.lr: 2e-5", "lr=2e-05"),
        ("train.site: [mlp_out.1, mlp_out.2]", "site=mlp_out.1+mlp_out.2"),
        ("sae.pre_bias: false", "pre_bias=false"),
        ("{sae.k: 16, name: mine}", "mine"),
        ("{name: base}", "base"),
        ("{name: mine, grid: {sae.k: [2]}}", "mine,k=2"),
    ],
)
def test_a_name_is_what_differs_unless_one_is_given(read, entry, name):
    assert names(read(f"- {entry}")) == [name]


def test_a_site_with_signs_that_no_folder_should_have_is_written_without_them(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("harvest: {sites: ['h.0/mlp:out']}\nsweep: [{train.site: 'h.0/mlp:out'}]\n")
    assert names(load_config(path)) == ["site=h.0-mlp-out"]


# --- what is refused ---

REFUSALS = [
    ("5", "sweep = 5: must be a list, such as [{sae.k: 16}, {sae.k: 32}]"),
    ("- 5", "sweep[0] = 5: must be a mapping of fields to values, such as sae.k: 16"),
    ("- sae.k: 2\n- sae.k: 65", "sweep[1].sae.k = 65: must be at most n_latents = 64"),
    ("- grid: {sae.k: [1, 65]}", "sweep[0].sae.k = 65: must be at most n_latents = 64"),
    ("- sae.kk: 2", "sweep[0].sae.kk: no such field; did you mean k?"),
    ("- sae: {type: jumprelu, k: 2}", "sweep[0].sae.k: no such field; must be one of "),
    (
        "- sae.type: topq",
        "sweep[0].sae.type 'topq' is unknown: did you mean topk? (a plug-in is named under `plugins`)",
    ),
    ("- train.lr: -1", "sweep[0].train.lr = -1: must be greater than 0"),
    (
        "- train.site: mlp_out.3",
        "sweep[0].train.site = 'mlp_out.3': must be one of harvest.sites: mlp_out.1, mlp_out.2",
    ),
    (
        "- train.batch: 5",
        "sweep[0].train.batch: must be the same for all dictionaries, which learn from one stream; "
        "set train.batch for the run",
    ),
    (
        "- grid: {train: {tokens: [5]}}",
        "sweep[0].grid.train.tokens: must be the same for all dictionaries, which learn from one stream; "
        "set train.tokens for the run",
    ),
    ("- k: 5", "sweep[0].k: must be a field of sae or train, such as sae.k"),
    ("- data.context: 5", "sweep[0].data.context: must be a field of sae or train, such as sae.k"),
    ("- seed: 5", "sweep[0].seed: must be a field of sae or train, such as sae.k"),
    ("- sae: 5", "sweep[0].sae = 5: must be a mapping of fields to values"),
    ("- grid: [5]", "sweep[0].grid = [5]: must be a mapping of fields to values, such as sae.k: 16"),
    ("- grid: {sae.k: 5}", "sweep[0].grid.sae.k = 5: must be a list of values, such as [16, 32]"),
    ("- grid: {sae.k: []}", "sweep[0].grid.sae.k = []: must be a list of values, such as [16, 32]"),
    ("- {}", "sweep[0]: changes nothing; give it a name, or leave it out"),
    ("- sae.k: 2\n- {sae: {k: 2}}", "sweep[1].name = 'k=2': is that of sweep[0] too; give it another"),
    ("- {sae.k: 2, name: a}\n- {sae.k: 3, name: A}", "sweep[1].name = 'A': is that of sweep[0] too; give it another"),
    (
        "- {sae.k: 2, name: ../up}",
        "sweep[0].name = '../up': must be the name of a folder: letters, digits and . _ , = + -, at most 100",
    ),
    (
        "- {sae.k: 2, name: 5}",
        "sweep[0].name = 5: must be the name of a folder: letters, digits and . _ , = + -, at most 100",
    ),
]


@pytest.mark.parametrize("name", [*FILES, "Table.CSV", "pareto.png.tmp"])
def test_a_dictionary_is_not_called_like_a_file_of_the_sweep(read, name):
    with pytest.raises(ConfigError) as caught:
        read(f"- {{sae.k: 2, name: {name}}}")
    assert str(caught.value).endswith(f"sweep[0].name = {name!r}: is that of a file of the sweep; give it another")


def test_the_files_of_the_sweep_are_those_that_are_written(tmp_path):
    pareto.write([], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)


@pytest.mark.parametrize(("text", "message"), REFUSALS, ids=[text for text, _ in REFUSALS])
def test_a_mistake_is_named_with_its_place_in_the_list(read, tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        if text == "5":
            read("", "sweep=5")
        else:
            read(text)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'run.yaml'}: {message}"), said
    assert message.endswith(" ") or said == f"{tmp_path / 'run.yaml'}: {message}"


def test_an_unknown_member_is_told_the_nearest(read):
    with pytest.raises(ConfigError) as caught:
        read("- grid: {sae.k: [16, 32]}").member("k=31")
    assert str(caught.value) == "member = 'k=31': no such dictionary in the sweep; did you mean k=32 or k=16?"
    with pytest.raises(ConfigError) as caught:
        read("").member("k=31")
    assert str(caught.value) == "member = 'k=31': no such dictionary in the sweep; the configuration has no `sweep`"


def test_what_may_not_differ_is_what_the_trainer_shares():
    assert STREAM == trainer.STREAM
