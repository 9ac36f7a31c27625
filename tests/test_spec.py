"""What a spec refuses, how variants are derived, and that identities stay the same."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError
from torch.utils.flop_counter import FlopCounterMode

from gptlab import identity, spec
from gptlab.catalog import find
from gptlab.data.text import PANDAS_DOCS_SHA256
from gptlab.data.tokenizer import TOKENIZER_SHA256
from gptlab.digests import canonical_json
from gptlab.errors import BadInputError
from gptlab.identity import identify, identity_fields
from gptlab.model.gpt import GPT
from gptlab.spec import (
    DataSpec,
    Experiment,
    ModelSpec,
    TrainSpec,
    explain_spec_error,
    flatten,
    parse_settings,
)
from gptlab.validation import did_you_mean, suggest

SPECS = {"model": ModelSpec, "data": DataSpec, "train": TrainSpec}
FIELDS = [f"{section}.{field}" for section, cls in SPECS.items() for field in cls.model_fields]


@pytest.fixture
def plain() -> Experiment:
    return Experiment(name="plain", why="What do the defaults do?")


def identity_hash(experiment: Experiment, **resolved: str) -> str:
    resolved = {"precision": "float32", "text_sha256": "aa", "tokenizer_sha256": "bb", **resolved}
    return identify(experiment, **resolved).hash  # type: ignore[arg-type]


# --- The model's size ---


def test_reference_model_has_163_037_184_parameters():
    assert ModelSpec().parameters == 163_037_184
    assert ModelSpec().block_parameters == 7_087_872


@settings(deadline=None, max_examples=40)
@given(
    n_layer=st.integers(1, 3),
    n_head=st.integers(1, 4),
    head_width=st.integers(1, 8),
    context_length=st.integers(1, 40),
    vocab_size=st.integers(50257, 50400),
    bias=st.booleans(),
    tied=st.booleans(),
)
def test_parameter_formula_matches_the_built_model(head_width: int, **shape: Any):
    model_spec = ModelSpec(n_embd=shape["n_head"] * head_width, **shape)
    with torch.device("meta"):
        model = GPT(model_spec)
    assert model_spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert model_spec.block_parameters == sum(parameter.numel() for parameter in model.blocks[0].parameters())


@pytest.mark.parametrize("field", [field for field in FIELDS if field.startswith("model.")])
def test_parameter_formula_matches_the_built_model_for_another_value_of_each_field(plain: Experiment, field: str):
    model_spec = plain.with_changes({field: OTHER_VALUES[field][0]}).model
    if model_spec.has_parts:
        with pytest.raises(ValueError, match="only when it is built"):
            _ = model_spec.parameters
        return
    with torch.device("meta"):
        model = GPT(model_spec)
    assert model_spec.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("n_layer", "n_embd", "length"), [(1, 8, 4), (2, 8, 16), (3, 12, 7), (2, 16, 32)])
def test_flops_formula_matches_torchs_count(tied: bool, n_layer: int, n_embd: int, length: int):
    model_spec = ModelSpec(n_layer=n_layer, n_head=2, n_embd=n_embd, context_length=32, tied=tied)
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        GPT(model_spec)(torch.zeros((3, length), dtype=torch.long))
    assert counted.get_total_flops() == 3 * length * model_spec.forward_flops_per_token(length)


# --- What is refused, and in which words ---


@pytest.mark.parametrize("section", [ModelSpec(), DataSpec(), TrainSpec()], ids=lambda section: type(section).__name__)
def test_spec_cannot_be_changed_in_place(section: spec.Section):
    field = next(iter(type(section).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(section, field, getattr(section, field))


def test_experiment_cannot_be_changed_in_place(plain: Experiment):
    with pytest.raises(ValidationError, match="frozen"):
        plain.name = "other"


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ModelSpec(n_layers=3), ["n_layers", "no such field", "did you mean 'n_layer'?"]),
        (lambda: DataSpec(txt="x"), ["txt", "no such field", "'text'"]),
        (lambda: TrainSpec(learning_rat=1e-3), ["learning_rat", "did you mean 'learning_rate'?"]),
        (lambda: Experiment(name="x", why="y", modle={}), ["modle", "did you mean 'model'?"]),
        (
            lambda: Experiment(name="x", why="y", train={"batchsize": 2}),
            ["train.batchsize", "did you mean 'train.batch_size'?"],
        ),
        (lambda: Experiment(name="x", why="y", zzzzzz=1), ["zzzzzz", "no such field"]),
        (lambda: Experiment(name="x"), ["why", "is required"]),
        (lambda: Experiment(why="y"), ["name", "is required"]),
        (lambda: TrainSpec(steps=0, batch_size=-1), ["batch_size: ", "; steps: "]),
    ],
)
def test_wrong_constructor_is_explained_on_one_line(build: Any, words: list[str]):
    with pytest.raises(ValidationError) as caught:
        build()
    message = explain_spec_error(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_field_of_another_section_is_suggested_with_its_section():
    with pytest.raises(ValidationError) as caught:
        Experiment(name="x", why="y", learning_rate=1e-3)
    assert "did you mean 'train.learning_rate'?" in explain_spec_error(caught.value)


WRONG_CHANGES = [
    # keys
    ({"model.n_layr": 1}, ["no spec field 'model.n_layr'", "did you mean 'model.n_layer'?"]),
    ({"learning_rate": 1e-3}, ["no spec field 'learning_rate'", "did you mean 'train.learning_rate'?"]),
    ({"lerning_rate": 1e-3}, ["no spec field 'lerning_rate'", "did you mean 'train.learning_rate'?"]),
    ({"trian.steps": 5}, ["did you mean 'train.steps'?"]),
    ({"model": {}}, ["no spec field 'model'"]),
    ({"": 1}, ["no spec field ''"]),
    ({"zzzzzz": 1}, ["no spec field 'zzzzzz'"]),
    ({"model.n_layer.x": 1}, ["no spec field 'model.n_layer.x'"]),
    # types
    ({"model.n_layer": "twelve"}, ["model.n_layer", "valid integer", "'twelve'"]),
    ({"model.n_layer": ""}, ["model.n_layer", "valid integer", "''"]),
    ({"model.n_layer": 1.5}, ["model.n_layer", "fractional", "1.5"]),
    ({"model.n_layer": None}, ["model.n_layer", "valid integer", "None"]),
    ({"model.bias": "perhaps"}, ["model.bias", "boolean", "'perhaps'"]),
    ({"train.learning_rate": "fast"}, ["train.learning_rate", "valid number", "'fast'"]),
    ({"train.betas": "0.9"}, ["train.betas", "tuple", "'0.9'"]),
    ({"train.betas": [0.9]}, ["train.betas.1", "required"]),
    ({"train.betas": [0.9, 0.95, 0.99]}, ["train.betas", "at most 2"]),
    ({"train.precision": "float16"}, ["train.precision", "'bfloat16'", "'float16'"]),
    ({"data.text": 3}, ["data.text", "valid string", "3"]),
    ({"why": None}, ["why", "valid string", "None"]),
    # ranges
    ({"model.n_layer": -1}, ["model.n_layer", "greater than or equal to 1", "-1"]),
    ({"model.n_head": 0}, ["model.n_head", "greater than or equal to 1", "0"]),
    ({"model.n_embd": -768}, ["model.n_embd", "greater than or equal to 1", "-768"]),
    ({"model.context_length": 0}, ["model.context_length", "greater than or equal to 1"]),
    ({"model.vocab_size": 50256}, ["model.vocab_size", "50257", "50256"]),
    ({"model.dropout": 1.0}, ["model.dropout", "less than 1", "1.0"]),
    ({"model.dropout": -0.1}, ["model.dropout", "greater than or equal to 0", "-0.1"]),
    ({"data.text": ""}, ["data.text", "at least 1 character"]),
    ({"data.val_fraction": 0}, ["data.val_fraction", "greater than 0"]),
    ({"data.val_fraction": 1}, ["data.val_fraction", "less than 1"]),
    ({"data.val_fraction": float("nan")}, ["data.val_fraction", "nan"]),
    ({"data.val_windows": 0}, ["data.val_windows", "greater than or equal to 1"]),
    ({"train.sequence_length": 0}, ["train.sequence_length", "greater than or equal to 1"]),
    ({"train.batch_size": 0}, ["train.batch_size", "greater than or equal to 1"]),
    ({"train.learning_rate": float("nan")}, ["train.learning_rate", "finite", "nan"]),
    ({"train.learning_rate": float("inf")}, ["train.learning_rate", "finite", "inf"]),
    ({"train.learning_rate": "inf"}, ["train.learning_rate", "finite", "inf"]),
    ({"train.learning_rate": -1e-3}, ["train.learning_rate", "greater than or equal to 0", "-0.001"]),
    ({"train.betas": [0.9, 1.0]}, ["train.betas.1", "less than 1", "1.0"]),
    ({"train.betas": [float("nan"), 0.9]}, ["train.betas.0", "finite", "nan"]),
    ({"train.eps": 0}, ["train.eps", "greater than 0"]),
    ({"train.weight_decay": -0.1}, ["train.weight_decay", "greater than or equal to 0"]),
    ({"train.grad_clip": -1}, ["train.grad_clip", "greater than or equal to 0"]),
    ({"train.grad_clip": float("inf")}, ["train.grad_clip", "finite"]),
    ({"train.steps": 0}, ["train.steps", "greater than or equal to 1"]),
    ({"train.steps": 10**8 + 1}, ["train.steps", "100000000"]),
    ({"train.log_every": 0}, ["train.log_every", "greater than or equal to 1"]),
    ({"train.eval_every": -5}, ["train.eval_every", "greater than or equal to 1"]),
    ({"train.checkpoint_every": 0}, ["train.checkpoint_every", "greater than or equal to 1"]),
    ({"train.keep_checkpoints": 1}, ["train.keep_checkpoints", "greater than or equal to 2"]),
    ({"train.keep_steps": [0]}, ["train.keep_steps", "greater than or equal to 1"]),
    ({"train.keep_steps": range(1, 2000)}, ["train.keep_steps", "at most 1000"]),
    ({"train.prompt": ""}, ["train.prompt", "at least 1 character"]),
    ({"why": ""}, ["why", "at least 1 character"]),
    # cross-checks
    ({"model.n_embd": 770}, ["n_embd 770 is not divisible by n_head 12", "1, 2, 5, 7, 10, 11"]),
    ({"model.n_head": 5}, ["n_embd 768 is not divisible by n_head 5", "4, 6, 8, 12"]),
    ({"train.sequence_length": 1025}, ["train.sequence_length 1025", "exceeds", "model.context_length 1024"]),
    ({"model.context_length": 64}, ["train.sequence_length 100", "exceeds", "model.context_length 64"]),
    # several at once
    ({"model.n_layer": 0, "train.steps": 0}, ["model.n_layer: ", "; train.steps: "]),
]


@pytest.mark.parametrize(("changes", "words"), WRONG_CHANGES, ids=map(repr, [case[0] for case in WRONG_CHANGES]))
def test_invalid_change_is_one_line_that_names_field_and_value(
    plain: Experiment, changes: dict[str, Any], words: list[str]
):
    with pytest.raises(BadInputError) as caught:
        plain.with_changes(changes)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "name", ["", "A", "Ab", "../x", "a/b", "-x", ".x", "_x", "a b", "a" * 65, "é", "a\n", "a\0", "a:b", "a\\b"]
)
def test_name_that_is_not_a_safe_file_name_is_refused(plain: Experiment, name: str):
    with pytest.raises(BadInputError, match="^experiment plain: name: ") as caught:
        plain.vary(name, why="Is that a name?")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "0", "a" * 64, "a.b_c-d", "1e-3", "gpt2.5"])
def test_name_that_is_a_safe_file_name_is_accepted(plain: Experiment, name: str):
    assert plain.vary(name, why="Is that a name?").name == name


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.learning_rate", ["KEY=VALUE", "'train.learning_rate'"]),
        ("", ["KEY=VALUE", "''"]),
        ("=1", ["KEY=VALUE", "'=1'"]),
        ("  = 3", ["KEY=VALUE", "'  = 3'"]),
        ("train.betas=[0.9, 0.95", ["train.betas=[0.9, 0.95", "not a JSON list"]),
        ("train.betas=[0.9; 0.95]", ["not a JSON list", "[0.9, 0.95]"]),
        ("name=other", ["cannot change 'name'", "experiments/"]),
        ("why=because", ["cannot change 'why'", "experiments/"]),
    ],
)
def test_malformed_setting_is_one_line_that_quotes_it(setting: str, words: list[str]):
    with pytest.raises(BadInputError) as caught:
        parse_settings([setting])
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.learning_rate=1e-3", 1e-3),
        (" train.learning_rate = 0.5 ", 0.5),
        ("train.steps=7", 7),
        ("model.tied=true", True),
        ("model.bias=False", False),
        ("train.betas=[0.8, 0.9]", (0.8, 0.9)),
        ("data.text=../a=b.txt", "../a=b.txt"),
        ("train.precision=bfloat16", "bfloat16"),
    ],
)
def test_setting_is_parsed_by_the_type_of_its_field(plain: Experiment, setting: str, expected: object):
    changed = plain.with_changes(parse_settings([setting]))
    key = setting.partition("=")[0].strip()
    value = dict(flatten({name: getattr(changed, name).model_dump() for name in SPECS}))[key]
    assert value == expected
    assert type(value) is type(expected)


def test_setting_keeps_the_space_at_the_end_of_a_prompt():
    assert parse_settings(["train.prompt=Once upon "]) == {"train.prompt": "Once upon "}


def test_setting_with_a_wrong_value_names_the_field(plain: Experiment):
    with pytest.raises(BadInputError, match=r"train\.steps: .*valid integer.* not 'many'"):
        plain.with_changes(parse_settings(["train.steps=many"]))


def test_setting_with_a_wrong_key_suggests_the_right_one(plain: Experiment):
    with pytest.raises(BadInputError, match=r"did you mean 'train\.batch_size'\?"):
        plain.with_changes(parse_settings(["batch_size=8"]))


KNOWN = ["model.n_layer", "model.bias", "train.steps", "train.prompt"]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("train.step", "; did you mean 'train.steps'?"),
        ("steps", "; did you mean 'train.steps'?"),
        ("model.steps", "; did you mean 'train.steps'?"),  # the same name in another section
        ("model.step", ""),
        ("train.optimizer", ""),
        ("train.stop", ""),  # `difflib`'s own cutoff suggests train.steps
        ("train.layers", ""),
        ("qqq", ""),
    ],
)
def test_only_a_similar_word_is_suggested(word: str, hint: str):
    assert did_you_mean(word, KNOWN) == hint


def test_if_nothing_is_similar_the_answer_says_what_exists():
    assert suggest("train.optimizer", KNOWN) == "; train has steps, prompt"
    assert suggest("optimizer", KNOWN) == "; the sections are model, train; `gptlab show NAME` lists the fields"
    assert suggest("qqq", ["online", "off"]) == "; available: online, off"
    assert suggest("qqq", []) == ""
    many = suggest("qqq", [f"{'name' * 100}{number}" for number in range(1000)])
    assert many.endswith("and 970 more")
    assert len(many) < 4000


def test_an_unknown_field_of_a_section_names_its_fields(plain: Experiment):
    with pytest.raises(BadInputError, match=r"no spec field 'data.optimizer'; did you mean 'train.optimizer'\?"):
        plain.with_changes({"data.optimizer": 1})
    with pytest.raises(
        BadInputError, match=r"no spec field 'data.lr'; data has text, val_fraction, val_windows, token"
    ):
        plain.with_changes({"data.lr": 1})


# --- Variants ---


def test_variant_has_the_changes_and_leaves_the_original_alone(plain: Experiment):
    before = plain.model_dump()
    changes = {"model.tied": True, "train.betas": (0.8, 0.9)}
    variant = plain.vary("tied", why="How much does tying cost?", **changes)
    assert plain.model_dump() == before
    after = dict(flatten(variant.model_dump()))
    assert after == {**dict(flatten(before)), "name": "tied", "why": "How much does tying cost?", **changes}
    assert isinstance(variant.model, ModelSpec)


def test_variant_of_a_variant_keeps_earlier_changes(plain: Experiment):
    variant = plain.vary("a", why="?", **{"model.tied": True}).vary("b", why="?", **{"model.bias": False})
    assert (variant.model.tied, variant.model.bias) == (True, False)


def test_variant_needs_a_question(plain: Experiment):
    with pytest.raises(TypeError, match="why"):
        plain.vary("tied")  # type: ignore[call-arg]


# --- The identity ---

OTHER_VALUES: dict[str, tuple[Any, bool]] = {
    # field: (another valid value, whether it changes the computation)
    "model.n_layer": (3, True),
    "model.n_head": (6, True),
    "model.n_embd": (384, True),
    "model.context_length": (512, True),
    "model.vocab_size": (50304, True),
    "model.bias": (False, True),
    "model.tied": (True, True),
    "model.dropout": (0.1, True),
    "model.block": ("experiments.parts.post_norm:PostNormBlock", True),
    "model.attention": ("experiments.mine:Attention", True),
    "model.feed_forward": ("experiments.parts.swiglu:SwiGLU", True),
    "model.activation": ("relu2", True),
    "model.norm": ("experiments.parts.rms_norm:RMSNorm", True),
    "model.position": ("experiments.parts.positions:Rotary", True),
    "data.text": ("shakespeare", False),  # its sha256 is what counts
    "data.val_fraction": (0.2, True),
    "data.val_windows": (8, True),
    "data.tokenizer": ("my.json", False),  # its sha256 is what counts
    "train.sequence_length": (64, True),
    "train.batch_size": (8, True),
    "train.learning_rate": (1e-3, True),
    "train.betas": ((0.9, 0.99), True),
    "train.eps": (1e-6, True),
    "train.weight_decay": (0.0, True),
    "train.grad_clip": (0.0, True),
    "train.schedule": ("wsd", True),
    "train.warmup_steps": (10, True),
    "train.horizon": (100, True),
    "train.decay_steps": (10, True),
    "train.optimizer": ("experiments.parts.lion:lion", True),
    "train.precision": ("bfloat16", False),  # the resolved precision is what counts
    "train.steps": (1000, False),
    "train.log_every": (1, False),
    "train.eval_every": (5, False),
    "train.checkpoint_every": (5, False),
    "train.keep_checkpoints": (5, False),
    "train.keep_steps": ([10, 30], False),
    "train.snapshots": (True, False),
    "train.prompt": ("Once ", False),
}


NEEDS = {
    "train.horizon": {"train.schedule": "wsd"},
    "train.decay_steps": {"train.schedule": "wsd", "train.horizon": 200},
}
"""Fields that are valid only together with other values."""


@pytest.mark.parametrize("field", FIELDS)
def test_field_changes_the_identity_if_and_only_if_it_changes_the_computation(plain: Experiment, field: str):
    assert field in OTHER_VALUES, (
        f"add another value of {field} to OTHER_VALUES, and whether it changes the computation"
    )
    value, computed = OTHER_VALUES[field]
    plain = plain.with_changes(NEEDS.get(field, {}))
    changed = plain.with_changes({field: value})
    assert changed != plain, "the value must differ from the default"
    assert (identity_hash(changed) != identity_hash(plain)) is computed


def test_other_values_name_existing_fields():
    assert set(OTHER_VALUES) == set(FIELDS)


def test_identities_of_all_variants_differ(plain: Experiment):
    hashes = {
        identity_hash(plain.with_changes({**NEEDS.get(f, {}), f: value}))
        for f, (value, computed) in OTHER_VALUES.items()
        if computed
    }
    assert len(hashes | {identity_hash(plain)}) == 1 + sum(computed for _, computed in OTHER_VALUES.values())


def test_name_and_question_do_not_change_the_identity(plain: Experiment):
    assert identity_hash(plain.vary("renamed", why="Another question?")) == identity_hash(plain)


@pytest.mark.parametrize(
    "resolved",
    [
        {"precision": "bfloat16"},
        {"text_sha256": "other"},
        {"tokenizer_sha256": "other"},
        {"initial_weights_sha256": "some"},
    ],
)
def test_precision_text_tokenizer_and_initial_weights_change_the_identity(plain: Experiment, resolved: dict[str, str]):
    assert identity_hash(plain, **resolved) != identity_hash(plain)


def test_initial_weights_are_in_the_identity_only_if_there_are_some(plain: Experiment):
    assert identity_hash(plain, initial_weights_sha256="some") != identity_hash(plain, initial_weights_sha256="other")
    drawn = identify(plain, precision="float32", text_sha256="aa", tokenizer_sha256="bb", initial_weights_sha256=None)
    assert drawn.hash == identity_hash(plain)
    assert "initial_weights_sha256" not in drawn.content


def test_numerics_revision_changes_the_identity(plain: Experiment, monkeypatch: pytest.MonkeyPatch):
    before = identity_hash(plain)
    monkeypatch.setattr(identity, "NUMERICS", identity.NUMERICS + 1)
    assert identity_hash(plain) != before


def test_explicit_defaults_do_not_change_the_identity(plain: Experiment):
    written_out = Experiment(
        name="plain",
        why="What do the defaults do?",
        model=ModelSpec(**ModelSpec().model_dump()),
        data=DataSpec(**DataSpec().model_dump()),
        train=TrainSpec(**TrainSpec().model_dump(mode="json")),
    )
    assert identity_hash(written_out) == identity_hash(plain)


def test_another_notation_of_a_value_gives_the_same_identity(plain: Experiment):
    one = plain.with_changes({"train.learning_rate": 0.001, "train.weight_decay": 0, "train.betas": (0.8, 0.9)})
    two = plain.with_changes(
        parse_settings(["train.learning_rate=1e-3", "train.weight_decay=0.0", "train.betas=[0.8, 0.9]"])
    )
    assert identity_hash(one) == identity_hash(two)


def test_identity_survives_a_round_trip_through_json(plain: Experiment):
    changed = plain.with_changes({"train.betas": (0.8, 0.9), "train.learning_rate": 1 / 3})
    assert identity_hash(Experiment.model_validate_json(changed.model_dump_json())) == identity_hash(changed)


def test_identity_fields_are_those_that_change_the_computation(plain: Experiment):
    fields = {key for key, _ in flatten(identity_fields(plain))}
    assert fields == {field for field, (_, computed) in OTHER_VALUES.items() if computed}
    assert identity_fields(plain, exclude_defaults=True) == {"model": {}, "data": {}, "train": {}}


# Identities without a fingerprint, as of a run of an earlier version. They stay as long as `NUMERICS` does: never
# change a default or the hash of an unchanged spec.
@pytest.mark.parametrize(("name", "expected"), [("baseline", "d13572e1"), ("tiny", "75f7ab13")])
def test_golden_identities(name: str, expected: str):
    identity = identify(
        find(name), precision="float32", text_sha256=PANDAS_DOCS_SHA256, tokenizer_sha256=TOKENIZER_SHA256
    )
    assert identity.hash == expected


def test_golden_identity_with_a_field_of_each_section_changed(plain: Experiment):
    changed = plain.with_changes({"model.tied": True, "data.val_fraction": 0.2, "train.betas": (0.8, 0.9)})
    identity = identify(changed, precision="bfloat16", text_sha256="aa", tokenizer_sha256="bb")
    assert canonical_json(identity.content) == (
        '{"data":{"val_fraction":0.2},"model":{"tied":true},"numerics":2,"precision":"bfloat16",'
        '"text_sha256":"aa","tokenizer_sha256":"bb","train":{"betas":[0.8,0.9]}}'
    )
    assert identity.run_id(0) == "plain-cdd49493-s0"


# Fields at their defaults are not hashed. Changing a default would therefore give old and new runs the same id although
# they compute different things. Add a new field here with the value that keeps the computation as it was without it.
GOLDEN_DEFAULTS = {
    "model": {
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "context_length": 1024,
        "vocab_size": 50257,
        "bias": True,
        "tied": False,
        "dropout": 0.0,
        "block": "pre-norm",
        "attention": "causal",
        "feed_forward": "mlp",
        "activation": "gelu",
        "norm": "layer-norm",
        "position": "learned",
    },
    "data": {"text": "pandas-docs", "val_fraction": 0.1, "val_windows": 32, "tokenizer": "gpt2"},
    "train": {
        "sequence_length": 100,
        "batch_size": 4,
        "learning_rate": 3e-4,
        "schedule": "constant",
        "warmup_steps": 0,
        "horizon": None,
        "decay_steps": None,
        "optimizer": "adamw",
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "weight_decay": 0.1,
        "grad_clip": 1.0,
        "precision": "auto",
        "steps": 100,
        "log_every": 10,
        "eval_every": 50,
        "checkpoint_every": 50,
        "keep_checkpoints": 2,
        "keep_steps": (),
        "snapshots": False,
        "prompt": "The",
    },
}


def test_golden_defaults():
    defaults = {name: cls().model_dump() for name, cls in SPECS.items()}
    assert defaults == GOLDEN_DEFAULTS, "add new fields to GOLDEN_DEFAULTS; never change a default that is in use"


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_run_id_is_name_hash_and_seed(plain: Experiment, seed: int):
    identity = identify(plain, precision="float32", text_sha256="aa", tokenizer_sha256="bb")
    assert re.fullmatch(r"[0-9a-f]{8}", identity.hash)
    assert identity.run_id(seed) == f"plain-{identity.hash}-s{seed}"


# --- Canonical JSON ---


def test_canonical_json_is_unique_per_value():
    assert canonical_json({"b": [1, 2.0], "a": {"d": None, "c": "é"}}) == '{"a":{"c":"é","d":null},"b":[1,2.0]}'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_canonical_json_refuses_nan(number: float):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"loss": number})


def test_flatten_gives_dotted_leaves_in_order():
    assert list(flatten({"a": {"b": 1, "c": {"d": (2,)}}, "e": []})) == [("a.b", 1), ("a.c.d", (2,)), ("e", [])]


# --- Nested sections, and values by the type of their field ---


class Window(spec.Section):
    """A section inside a section."""

    size: int = 4
    """Size."""
    offsets: tuple[int, ...] = (0,)
    """A list."""
    options: dict[str, float] = Field({})
    """A mapping."""
    label: str | None = None
    """Optional text."""


class NestedModel(ModelSpec):
    """A model with a section of its own."""

    window: Window = Window()
    """Nested."""
    extra: Window | None = None
    """Nested and optional."""


class NestedExperiment(Experiment):
    """An experiment with nested sections."""

    model: NestedModel = NestedModel()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model.window.size=7", 7),
        ("model.window.offsets=[1, 2]", (1, 2)),
        ('model.window.options={"a": 1}', {"a": 1.0}),
        ("model.window.label=[1]", "[1]"),
        ("model.window.label=none", None),
        ("model.extra.size=9", 9),
        ("train.betas=[0.5, 0.6]", (0.5, 0.6)),
    ],
)
def test_nested_sections_and_lists_are_set_by_the_type_of_the_field(setting, value):
    nested = NestedExperiment(name="nested", why="Does it nest?")
    changed = nested.with_changes(parse_settings([setting], NestedExperiment))
    found: Any = changed
    for part in setting.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value
    assert identity_fields(changed)["model"]["window"]["size"] in {4, 7}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.window.offsets=1", "not a JSON list such as"),
        ("model.window.options=[1]", "not a JSON mapping such as"),
        ("model.window.sise=1", "did you mean 'model.window.size'"),
        ("model.window.size=x", r"model\.window\.size: .*not 'x'"),
    ],
)
def test_a_wrong_nested_setting_is_explained(setting, message):
    nested = NestedExperiment(name="nested", why="Does it nest?")
    with pytest.raises(BadInputError, match=message):
        nested.with_changes(parse_settings([setting], NestedExperiment))


def test_fields_of_nested_sections_are_in_the_identity_unless_they_have_their_default():
    nested = NestedExperiment(name="nested", why="Does it nest?")
    changed = nested.with_changes({"model.window.size": 7})
    assert identity_fields(nested, exclude_defaults=True)["model"] == {}
    assert identity_fields(changed, exclude_defaults=True)["model"] == {"window": {"size": 7}}
