"""Configurations: how values arrive, what is refused, and in which words."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from analysis.config import AnalysisConfig
from sae.architectures.configs import TopKConfig, configs
from sae.config import DataConfig, HarvestConfig, ModelConfig, field_help, load_yaml, override, parse, to_json
from sae.errors import ConfigError
from sae.run_config import describe, load_config
from sae.store import Places
from train.config import TrainConfig

ROOT = Path(__file__).parents[2]
SECTION_CLASSES = [ModelConfig, DataConfig, HarvestConfig, TrainConfig, TopKConfig]


@pytest.fixture
def write(tmp_path: Path):
    def write_yaml(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write_yaml


def refusal(path: Path, *assignments: str) -> str:
    """What `load_config` says, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, assignments)
    return str(caught.value).removeprefix(f"{path}: ")


# --- what is read ---


def test_yaml_and_assignments_make_one_configuration(write):
    path = write("data: {context: 32}\nsae: {n_latents: 64, k: 4}\nseed: 3\n")
    cfg = load_config(
        path, ["sae.k=8", "train.lr=3e-4", "harvest.sites=[mlp_out.0, mlp_out.1]", "train.site=mlp_out.1"]
    )
    assert (cfg.data.context, cfg.sae.n_latents, cfg.sae.k, cfg.train.lr, cfg.seed) == (32, 64, 8, 3e-4, 3)
    assert cfg.sae_type == "topk"
    assert cfg.places == Places(("mlp_out.1",))
    assert cfg.harvest.sites == ("mlp_out.0", "mlp_out.1"), "lists become tuples"


def test_what_is_not_said_has_its_default(write):
    cfg = load_config(write("model: {name: embedded}\n"))
    assert cfg.sae == TopKConfig()
    assert cfg.train == TrainConfig()
    assert cfg.analysis == AnalysisConfig()
    assert cfg.places == Places(("mlp_out.0",))


def test_a_section_may_be_empty_and_still_be_overridden(write):
    assert load_config(write("train:\nmodel:\n"), ["train.batch=7"]).train.batch == 7
    assert load_config(write("train: null\nsae: null\nsweep: null\n")) == load_config(write("{}\n"))


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.e-4", "3.0e-4", "30e-5", "+3e-4"])
def test_exponents_are_numbers_with_or_without_a_point(write, text):
    assert load_config(write(f"train: {{lr: {text}}}\n")).train.lr == pytest.approx(3e-4, rel=1e-12)
    assert load_config(write("train: {}\n"), [f"train.lr={text}"]).train.lr == pytest.approx(3e-4, rel=1e-12)


def test_underscores_in_numbers_are_read(write):
    assert load_config(write("train: {tokens: 4_000_000}\n")).train.tokens == 4_000_000


def test_assignments_leave_the_values_they_are_put_into_alone():
    values = {"sae": {"k": 4}}
    assert override(values, ["sae.k=8", "sae.auxk=null", "data.source=a=b"]) == {
        "sae": {"k": 8, "auxk": None},
        "data": {"source": "a=b"},
    }
    assert values == {"sae": {"k": 4}}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_that_are_shipped_are_valid(path):
    assert load_config(path).sae_type == "topk"


def test_description_holds_every_field_and_reads_back_as_the_same_run(write, tmp_path):
    cfg = load_config(
        write("sae: {n_latents: 64, k: 4}\ndata: {held_out: [0.2, 0.1, 0.1]}\nanalysis: {index: {window: 9}}\n")
    )
    again = tmp_path / "again.yaml"
    again.write_text(describe(cfg))
    assert load_config(again) == cfg
    assert "# Latents kept in each row. (Positive)\n  k: 4\n" in describe(cfg)


# --- what a configuration is ---


@pytest.mark.parametrize("cls", SECTION_CLASSES)
def test_a_configuration_is_frozen_and_keyword_only(cls):
    cfg = cls()
    name = dataclasses.fields(cls)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cfg, name, getattr(cfg, name))
    with pytest.raises(Exception, match="positional"):
        cls("something")


@pytest.mark.parametrize("cls", SECTION_CLASSES)
def test_json_of_a_configuration_gives_it_back(cls):
    values = json.loads(json.dumps(to_json(cls())))
    assert parse(cls, values, "section") == cls()


@pytest.mark.parametrize("cls", [*SECTION_CLASSES, *(configs.get(name) for name in configs.names())])
def test_every_field_has_help(cls):
    assert [name for name, _, _, text in field_help(cls) if not text] == []


def test_field_help_gives_name_type_default_and_text():
    by_name = {row[0]: row for row in field_help(TopKConfig)}
    assert by_name["k"] == ("k", "Positive", 32, "Latents kept in each row.")
    _, kind, default, text = by_name["auxk"]
    assert (kind, default) == ("Natural | None", None)
    assert text == "Dead latents that reconstruct the residual; none means d / 2, 0 turns AuxK off."


# --- what is refused ---

REFUSALS = [
    ("sae: {n_latent: 8}", "sae.n_latent: no such field; did you mean n_latents?"),
    ("tran: {lr: 1}", "tran: no such section; did you mean train?"),
    ("analysis: {index: {windwo: 3}}", "analysis.index.windwo: no such field; did you mean window?"),
    (
        "model: {zzz: 3}",
        "model.zzz: no such field; must be one of name, precision, revision, weights",
    ),
    ("sae: {k: 9000}", "sae.k = 9000: must be at most n_latents = 4096"),
    ("sae: {k: 0}", "sae.k = 0: must be greater than 0"),
    ("sae: {k: 2.5}", "sae.k = 2.5: must be a valid integer"),
    ("sae: {k: many}", "sae.k = 'many': must be a valid integer"),
    ("sae: {type: topq}", "sae.type 'topq' is unknown: did you mean topk? (a plug-in is named under `plugins`)"),
    (
        "sae: {type: [topk]}",
        f"sae.type = ['topk']: must be the name of an architecture: {', '.join(configs.names())}",
    ),
    ("sae: 5", "sae = 5: must be a mapping of fields to values"),
    ("train: 0", "train = 0: must be a mapping of fields to values"),
    ("model: false", "model = False: must be a mapping of fields to values"),
    ("data: []", "data = []: must be a mapping of fields to values"),
    ("harvest: ''", "harvest = '': must be a mapping of fields to values"),
    ("sae: 0", "sae = 0: must be a mapping of fields to values"),
    ("sweep: 0", "sweep = 0: must be a list, such as [{sae.k: 16}, {sae.k: 32}]"),
    ("sweep: false", "sweep = False: must be a list, such as [{sae.k: 16}, {sae.k: 32}]"),
    ("sweep: {}", "sweep = {}: must be a list, such as [{sae.k: 16}, {sae.k: 32}]"),
    ("train: [1]", "train = [1]: must be a mapping of fields to values"),
    ("train: {lr: -1}", "train.lr = -1: must be greater than 0"),
    ("train: {betas: [0.9]}", "train.betas.1 = [0.9]: field required"),
    ("train: {warmup: 1.5}", "train.warmup = 1.5: must be less than or equal to 1"),
    ("data: {packing: loose}", "data.packing = 'loose': must be 'packed' or 'document'"),
    ("analysis: {label: {max_parts: 0}}", "analysis.label.max_parts = 0: must be greater than 0"),
    ("seed: -1", "seed = -1: must be a whole number, 0 or more"),
    ("seed: true", "seed = True: must be a whole number, 0 or more"),
    ("seed: 1.0", "seed = 1.0: must be a whole number, 0 or more"),
    ("seed: x", "seed = 'x': must be a whole number, 0 or more"),
    ("plugins: mine", "plugins = 'mine': must be a list of module names"),
    ("plugins: [no_such_plugin]", "plugins: no module 'no_such_plugin' can be imported from here"),
    ("harvest: {sites: []}", "harvest.sites = []: must name at least one site, such as mlp_out.3"),
    (
        "harvest: {sites: [mlp_out.0, mlp_out.1]}",
        "train.site: must name one of the harvested sites: mlp_out.0, mlp_out.1",
    ),
    ("train: {site: mlp_in.0}", "train.site = 'mlp_in.0': must be one of harvest.sites: mlp_out.0"),
    (
        "harvest: {sites: [mlp_out.0, mlp_out.1]}\ntrain: {site: [mlp_out.0, mlp_out.2]}",
        "train.site = 'mlp_out.2': must be one of harvest.sites: mlp_out.0, mlp_out.1",
    ),
    ("train: {target: mlp_out.1}", "train.target = 'mlp_out.1': must be one of harvest.sites: mlp_out.0"),
    (
        "data: {context: 4}\nharvest: {skip_positions: 4}",
        "harvest.skip_positions = 4: must be less than data.context = 4",
    ),
    ("[1, 2]", "must be a mapping with the sections of a run"),
    ("", "must be a mapping with the sections of a run"),
]


@pytest.mark.parametrize(("text", "message"), REFUSALS, ids=[text or "empty" for text, _ in REFUSALS])
def test_a_mistake_is_named_with_field_value_and_remedy(write, text, message):
    assert refusal(write(text + "\n")) == message


def test_messages_begin_with_the_file(write):
    path = write("sae: {k: 9000}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: sae.k = 9000: must be at most n_latents = 4096"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("sae.k", "'sae.k': must be section.field=value, such as train.lr=3e-4"),
        ("=3", "'=3': must be section.field=value, such as train.lr=3e-4"),
        ("sae..k=3", "'sae..k=3': must be section.field=value, such as train.lr=3e-4"),
        ("sae.k=[1", "'sae.k=[1': the value is not valid YAML"),
        ("sae.k.x=1", "'sae.k.x=1': k is not a section"),
    ],
)
def test_a_wrong_assignment_is_refused(assignment, message):
    with pytest.raises(ConfigError) as caught:
        override({"sae": {"k": 4}}, [assignment])
    assert str(caught.value) == message


def test_configurations_made_in_python_are_checked_too():
    with pytest.raises(ValueError, match="must be at most n_latents = 4"):
        TopKConfig(n_latents=4, k=5)
    with pytest.raises(ValueError, match="nonsense"):
        TopKConfig(nonsense=1)  # type: ignore[call-arg]


def test_k_may_be_all_latents():
    assert TopKConfig(n_latents=4, k=4).k == 4


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_yaml(tmp_path / "none.yaml")
    assert str(caught.value) == f"{tmp_path / 'none.yaml'}: no such configuration file"
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_yaml(tmp_path)
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML: "):
        load_yaml(broken)


def test_yaml_cannot_make_python_objects(write):
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_yaml(write("a: !!python/object/apply:os.getcwd []\n"))


def test_the_shared_yaml_loader_is_left_as_it_was():
    assert yaml.safe_load("3e-4") == "3e-4"


# --- a mistake is answered at once ---

WITHOUT_TORCH = """
import sys
from sae.cli import main
try:
    code = main({argv!r})
except SystemExit as stop:
    code = stop.code
heavy = sorted({{"torch", "transformers", "datasets"}} & set(sys.modules))
print("code", code, "heavy", heavy)
"""


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["config", "configs/smoke.yaml"], 0),
        (["run", "configs/smoke.yaml", "sae.k=9000"], 2),
        (["train", "no-such.yaml"], 2),
        (["label", "configs/smoke.yaml", "sae.type=topq"], 2),
        (["sweep", "configs/smoke.yaml", "sweep=[{sae.k: 9000}]"], 2),
        (["run", "configs/sweep.yaml", "member=k=9"], 2),
    ],
    ids=[
        *("help", "run help", "config", "impossible value", "no file", "no such architecture"),
        *("impossible sweep", "no such member"),
    ],
)
def test_help_and_mistakes_import_no_heavy_library(argv, code):
    script = WITHOUT_TORCH.format(argv=argv)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"code {code} heavy []", done.stderr
