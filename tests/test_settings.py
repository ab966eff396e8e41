"""A run's settings: one typed schema, checked at once; whatever is given, the answer is a run or a sentence."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import commands
import pytest
from diffusion_feature import DeviceNotFound
from diffusion_feature.devices import OFFLOADS
from diffusion_feature.loading import pick_device, pick_dtype
from goca.benchmark import Benchmark, settings
from goca.benchmark.settings import GROUPS, Merging, RunSettings
from goca.benchmark.word_sources import TaggerConfig
from goca.cli.hydra_command import check_arguments
from goca.cli.overrides import configured
from goca.config import SegmenterConfig, load_config
from goca.datasets import DatasetConfig, DatasetError
from goca.protocol import Protocol, ProtocolError
from goca.schema import ConfigError
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

ERRORS = (ConfigError, DatasetError, ProtocolError)
DEEP = json.loads("[" * 200 + "]" * 200)
ODD = [
    None,
    True,
    False,
    0,
    -1,
    3,
    2**31,
    2**63,
    2**70,
    -(2**70),
    10**5000,
    1.5,
    -0.0,
    1e40,
    float("inf"),
    float("nan"),
    "",
    " ",
    "x",
    "null",
    "a\0b",
    "\ud800",
    "x" * 5000,
    "../../etc",
    "${seed}",
    b"x",
    (),
    [],
    [0],
    [0, 0],
    [True],
    ["x"],
    [None],
    [[]],
    [10**5000],
    [float("nan")],
    DEEP,
    {},
    {0: 1},
    {"x": 1},
    {"a": {}},
    {None: None},
    {"of": "x"},
    {"defaults": 3},
    {"median": {"window": "x"}},
    [{"median": {"window": "x"}}],
    [{"dense_crf": {"iterations": True}}],
    object(),
    Path("x"),
    range(3),
    {1, 2},
]


@pytest.fixture(scope="module")
def values():
    return configured(["model=mini-sd", "dataset=scenes"])


def fields(cls):
    return [field.name for field in dataclasses.fields(cls)]


def places():
    """Every key of a run, as the way to it."""
    own = [(name,) for name in [*fields(RunSettings), *GROUPS, "nothing", 3, None]]
    parts = {
        "model": SegmenterConfig,
        "dataset": DatasetConfig,
        "protocol": Protocol,
        "merging": Merging,
        "tagger": TaggerConfig,
    }
    return own + [(part, name) for part, cls in parts.items() for name in [*fields(cls), "nothing", 3]]


def with_value(values, place, value):
    head, *rest = place
    return {**values, head: {**values[head], rest[0]: value} if rest else value}


@pytest.mark.parametrize("place", places(), ids=lambda place: ".".join(map(str, place)))
def test_every_key_takes_its_values_and_answers_all_others_with_a_sentence(values, place):
    accepted = 0
    for odd in ODD:
        try:
            benchmark = Benchmark.of(with_value(values, place, odd))
        except ERRORS as error:
            assert str(place[-1]) in str(error), (place, str(error))
            assert len(str(error)) < 1500 and "Traceback" not in str(error)
            str(error).encode("utf-8")
        else:
            accepted += 1
            repr(benchmark.model), benchmark.strategy.ranking_threshold
    assert accepted < len(ODD) * 0.4


TEXTS = [
    "x",
    "1.5",
    "true",
    "null",
    "''",
    "[]",
    "[0,0]",
    "[x]",
    "{a:1}",
    "{0:1}",
    "1e40",
    "-1",
    "nan",
    "inf",
    "9" * 30,
    "9" * 4301,
    "'a b'",
    "${seed}",
    "${nothing}",
    "${oc.env:HOME}",
    "[[[]]]",
    "{a:{b:[c]}}",
    "a,b",
    "range(3)",
]


def test_five_hundred_arguments_at_random_end_in_a_run_or_a_sentence():
    chance = random.Random(13)
    ways = [".".join(map(str, place)) for place in places() if place[0] not in GROUPS or len(place) > 1]
    refused = 0
    for _ in range(500):
        given = f"{chance.choice(ways)}={chance.choice(TEXTS)}"
        try:
            check_arguments([given])
            Benchmark.of(configured(["model=mini-sd", "dataset=scenes", given]))
        except (*ERRORS, HydraException, OmegaConfBaseException) as error:  # Hydra prints these without a traceback
            assert str(error)
            refused += 1
    assert refused > 250


def test_the_command_itself_says_a_sentence(tmp_path, monkeypatch, capsys):
    chance = random.Random(7)
    ways = [".".join(map(str, place)) for place in places() if place[-1] not in (3, None)]
    for way in chance.sample(ways, 12):
        done = commands.main(monkeypatch, capsys, tmp_path, f"{way}={chance.choice(TEXTS[7:])}", "device=nowhere")
        assert done.code and "Traceback" not in done.err and 10 < len(done.err) < 2000
    assert not list(tmp_path.iterdir())


def test_the_schema_and_the_file_have_the_same_keys_and_defaults():
    file = OmegaConf.to_container(OmegaConf.load(commands.ROOT / "configs/config.yaml"))
    own = {key: value for key, value in file.items() if key not in ("defaults", "hydra")}
    assert set(own) == set(fields(RunSettings))
    defaults = {field.name: field.default for field in dataclasses.fields(RunSettings)}
    for key, value in own.items():
        if key not in ("run_dir", "merging", "tagger"):  # null: named after the choices
            assert (value, type(value)) == (defaults[key], type(defaults[key])), key
    assert Merging(**own["merging"]) == Merging() and TaggerConfig(**own["tagger"]) == TaggerConfig()
    assert tuple(OFFLOADS) == settings.OFFLOADS
    for dtype in settings.DTYPES:
        pick_dtype(dtype, None)


@pytest.mark.parametrize("name", sorted(path.stem for path in (commands.ROOT / "configs/dataset").glob("*.yaml")))
def test_every_data_set_s_file_is_of_the_schema(name):
    DatasetConfig.of(OmegaConf.to_container(OmegaConf.load(commands.ROOT / f"configs/dataset/{name}.yaml")))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("modle=mini-sd", r"unknown key modle \(nearest: model\)"),
        ("+lmit=3", r"unknown key lmit \(nearest: limit\)"),
        ("model.head_methd=average", r"unknown key model.head_methd \(nearest: model.head_method\)"),
        ("dataset.rot=/data", r"unknown key dataset.rot \(nearest: dataset.root\)"),
        ("protocol.nose=nominal", r"unknown key protocol.nose \(nearest: protocol.noise\)"),
        ("merging.treshold=1", r"nearest: merging.threshold"),
        ("model=minisd", r"unknown model 'minisd' \(nearest: mini-sd\); expected one of: auraflow"),
        ("dataset=vox", r"unknown dataset 'vox' \(nearest: voc\)"),
        ("model=sd15,sdlx", r"unknown model 'sdlx' \(nearest: sdxl\)"),
        ("seed=" + "9" * 5000, "cannot be read"),
    ],
)
def test_a_key_that_is_misspelt_names_the_nearest(tmp_path, monkeypatch, capsys, argument, message):
    with pytest.raises(ConfigError, match=message):
        check_arguments([argument])
    done = commands.main(monkeypatch, capsys, tmp_path, argument)
    assert done.code and done.err.startswith("ConfigError: ") and "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_yaml_of_one_s_own_that_stands_for_too_much_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine/dataset").mkdir(parents=True)
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 8)]
    (tmp_path / "mine/dataset/big.yaml").write_text("\n".join(lines))
    for option in (["--config-dir", "mine"], ["--config-dir=mine"]):
        done = commands.main(monkeypatch, capsys, tmp_path, *option, "dataset=big")
        assert done.code and "FileUnreadable" in done.err and "big.yaml stands for" in done.err


def test_hydra_s_own_arguments_are_left_to_it():
    check_arguments(
        [
            "-m",
            "--config-dir",
            "a=b",
            "hydra/launcher=slurm",
            "hydra.job.name=x",
            "model=sd15,sdxl",
            "~limit",
            "model.t=1,2",
            "roots.voc=/a",
            "+model.timesteps=[50]",
            "seed=[",
        ]
    )


@pytest.mark.parametrize("device", ["cuda:99", "cuda:77", "xpu:5", "nothing"])
def test_a_device_that_is_not_here_is_told_first_and_leaves_no_folder(tmp_path, monkeypatch, capsys, device):
    with pytest.raises(DeviceNotFound, match=r"device '.*cpu"):
        pick_device(device)
    done = commands.main(monkeypatch, capsys, tmp_path, "model=mini-sd", "dataset=scenes", f"device={device}")
    assert done.code and "DeviceNotFound" in done.err and "Traceback" not in done.err
    assert not list(tmp_path.iterdir())
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("key", ["run_dir", "dataset.root", "+roots.voc", "model.class_prompt"])
def test_the_environment_is_not_stored(tmp_path, monkeypatch, capsys, key):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-secret")
    done = commands.main(monkeypatch, capsys, tmp_path, "model=mini-sd", f"{key}=${{oc.env:OPENAI_API_KEY}}")
    assert done.code and "reads an environment variable" in done.err and key.strip("+") in done.err
    assert "sk-secret" not in done.err + done.out and not list(tmp_path.iterdir())
    prefix = "".join(["${", "seed", "}"])
    again = commands.main(monkeypatch, capsys, tmp_path, "seed=oc", f"{key}=${{{prefix}.env:OPENAI_API_KEY}}")
    assert again.code and "sk-secret" not in again.err + again.out and not list(tmp_path.iterdir())


def test_a_model_file_without_self_means_what_it_means_to_hydra(tmp_path, monkeypatch):
    from goca import config

    shutil.copytree(config.folder().parent, tmp_path / "configs")
    (tmp_path / "configs/model/mine.yaml").write_text("defaults: [sd15]\nt: 8\n")
    monkeypatch.setattr(config, "folder", lambda: tmp_path / "configs/model")
    assert load_config("mine").t == 8
    assert load_config({"defaults": ["sd15"], "t": 9}).t == 9
    assert load_config({"defaults": ["_self_", "sd15"], "t": 9}).t == load_config("sd15").t
