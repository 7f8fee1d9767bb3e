"""The configuration of a study: one YAML file, every field documented, misspelled keys rejected."""

import re
from collections.abc import Mapping, Sequence
from os.path import exists
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from ot_lens.errors import ConfigError
from ot_lens.io.untrusted import MAX_YAML, first_fault, parse_yaml, quoted, read_text

DEFAULT_METHODS: tuple[str | dict[str, Any], ...] = (
    "directional_ablation",
    "rfa",
    "ace",
    "mean_shift",
    "linear_act",
    {"name": "pca_ot", "k": 1},
    {"name": "pca_ot", "k": 2},
    {"name": "pca_ot", "k": 4},
    {"name": "pca_ot", "k": 8},
)
# Fields that name a folder or file or something of the hub or package, and those of a judge that do.
NAMED = ("model", "adapter", "base", "phrases", "judge")
JUDGE_MODELS = ("model", "classifier", "yes_no")
# A method's parameters name the folder of its maps: short words and numbers, no path.
PLAIN = re.compile(r"[\w.+-]*", re.ASCII)
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*", re.ASCII)
MAX_LENGTH = 160


class StudyConfig(BaseModel):
    """What a run does. The defaults are a complete study of the embedded model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        "organism",
        description="Hub name, local folder, GGUF file, smollm2[:ADAPTER], or an embedded model: "
        "organism[:single|multi|shared|knows-refuses|knows-answers|bilingual].",
    )
    revision: str | None = Field(None, description="Revision of a hub model.")
    dtype: str | None = Field(None, description="float32, bfloat16, float16; default: the checkpoint's own.")
    device: str | None = Field(
        None, description="cpu, cuda, cuda:1, mps ...; default: cuda, else mps, else cpu."
    )
    device_map: str | dict[str, int | str] | None = Field(
        None, description="auto spreads the layers over all devices; cannot be combined with device."
    )
    quantization: str | None = Field(
        None, description="int8 or nf4: 8- or 4-bit weights of linear layers (ot-lens[quantization])."
    )
    gguf_file: str | None = Field(
        None, description="GGUF file in the folder or hub repository of the model (ot-lens[gguf])."
    )
    adapter: str | Literal[False] | None = Field(
        None,
        description="Folder or hub name of a PEFT adapter such as LoRA (ot-lens[peft]); false leaves out the "
        "adapter of a folder that also holds complete weights.",
    )
    merge_adapter: bool = Field(
        False, description="Add the adapter to the weights in memory instead of keeping its layers separate."
    )
    system_prompt: str | None = Field(
        None, description="System message before every prompt; default: the chat template's."
    )
    thinking: bool | Literal["forced"] | None = Field(
        None,
        description="true, false or forced: whether prompts ask for a thought before the answer; default: "
        "off where the chat template has a switch.",
    )
    trust_remote_code: bool = Field(
        False, description="Run code that comes with the model; also requires --trust-remote-code."
    )
    prompts: str | dict[str, Any] = Field(
        "organism",
        description="'organism', 'paper', 'refusal_direction', a file, hf:DATASET, or a mapping "
        "{harmful: SOURCE, harmless: SOURCE}; see load_prompts.",
    )
    prompts_root: str | None = Field(
        None, description="Folder to read the public prompt sets from, instead of the network."
    )
    sample: list[int] | dict[str, list[int]] | None = Field(
        None, description="Prompts drawn per class: [train, val] or [train, val, test]; default: all."
    )
    filter: str = Field(
        "off",
        description="off; or keep the harmful prompts that the unedited model refuses and the harmless ones "
        "it does not, judged by refusal_score (the next token) or by answers (phrases).",
    )
    layers: list[int] | str = Field("all", description="'all' or a list of layer numbers.")
    hook: str = Field("resid_pre", description="Hook point at which maps are fitted and applied.")
    position: int = Field(
        -1,
        lt=0,
        description="Token position of the fit; -1 or 'last' is the prompt's last token.",
    )
    activation_dtype: str | None = Field(
        None, description="Dtype of stored activations: float32, bfloat16, float16; default: the model's."
    )
    tokens: str = Field(
        "auto",
        description="Token scope of the edits: all, prompt, last or generated; auto: projections act on all "
        "tokens, maps that move a distribution on the one they were fitted on.",
    )
    methods: list[str | dict[str, Any]] = Field(
        list(DEFAULT_METHODS),
        min_length=1,
        description="Names, or {name: pca_ot, k: 2}; within: null_space, gate: logistic or threshold, and "
        "norm_preserving: true modify any method. rfa is directional ablation at every block's input, "
        "attention output and MLP output. {name: my_method, module: my_package.my_maps} is your own; it also "
        "requires --allow-code.",
    )
    extensions: list[str] = Field(
        [],
        description="Modules that register your own methods, diagnostics, judges or figures when imported; "
        "also requires --allow-code.",
    )
    sets: list[str] = Field(
        ["single", "all"],
        min_length=1,
        description="single: each layer alone; pair: every two, next token only; all: all together.",
    )
    layer_sets: list[list[int]] = Field(
        [], description="Further sets of layers, such as [[12], [12, 16]]; answers are generated for them."
    )
    answers: str = Field(
        "all",
        description="Generate answers under all edits, or under chosen ones: searched and listed sets.",
    )
    fitting: list[str] = Field(
        ["independent"],
        min_length=1,
        description="For layers edited together: independent, sequential (fitted with those below active).",
    )
    engine: str = Field(
        "auto", description="single_pass, hooks, or auto: the single pass wherever it supports the model."
    )
    controls: list[str] = Field(
        ["random_subspace", "permuted_labels"],
        description="Controls of every method and layer, measured at the next token; [] for none.",
    )
    control_draws: int = Field(5, ge=2, description="Random draws of each control.")
    sufficiency: bool = Field(
        True, description="Also move harmless activations onto harmful ones, which should induce refusal."
    )
    search_size: int = Field(
        2,
        ge=0,
        le=4,
        description="Largest set of layers to search for on the validation prompts; 0: no search.",
    )
    search: str = Field("beam", description="beam or greedy.")
    search_budget: int | None = Field(
        None,
        ge=1,
        description="Sets of layers that the search scores at most for each method; default: as many as cost "
        "about what the rest of the sweep does.",
    )
    search_each_size: bool = Field(
        False, description="Report the best set of each size up to search_size instead of the best overall."
    )
    localizers: int = Field(
        32,
        ge=0,
        description="Test prompts of each class on which `locate` tells which blocks make refusal; 0: none.",
    )
    contributions: int = Field(
        64,
        ge=0,
        description="Test prompts of each class on which `contributions` tells which heads and MLPs write "
        "the refusal direction; 0: none.",
    )
    ablated_heads: int = Field(
        8,
        ge=0,
        description="Heads that are left out together, those that write most of the refusal direction on "
        "training prompts, against as many random ones, measured on the prompts of `contributions`; 0: none.",
    )
    readout: int = Field(
        5,
        ge=0,
        description="Tokens at either end of what directions and maps write into the logits; 0: none.",
    )
    harm: bool = Field(
        False,
        description="Measure harm apart from refusal: directions, effects of each, probes under edits.",
    )
    interchange: int = Field(
        8,
        ge=0,
        description="Test prompts of each class whose activations are interchanged at every layer and each "
        "of the last 12 tokens (`interchange`); 0: none.",
    )
    languages: dict[str, str | dict[str, Any]] = Field(
        {},
        description="Prompts of at least two languages by name, each as in `prompts`: edits fitted in one "
        "are measured in all. Name the refusal_tokens of every language.",
    )
    base: str | None = Field(
        None,
        description="The model before it learnt to refuse; a localizer puts its blocks in the model's place.",
    )
    defence: bool = Field(
        False,
        description="Remove refusal by a mean shift below the highest layer, where edits do most, and "
        "measure which edits above restore it; see restore_refusal.",
    )
    measures: list[str] = Field(
        ["refusal_rate", "exact_answer_rate", "refusal_score", "kl", "perplexity"],
        min_length=1,
        description="What is measured on the test prompts.",
    )
    strength: list[float] = Field(
        [1.0], min_length=1, description="Fractions of the way from x to T(x), each in [0, 1]."
    )
    phrases: list[str] | str | None = Field(
        None, description="Refusal phrases; default: the model's own, else 'arditi'."
    )
    refusal_tokens: list[int | str] | None = Field(
        None, description="Tokens that begin a refusal; default: the model's own, else I and As."
    )
    max_new_tokens: int = Field(24, ge=1, description="Token budget of an answer.")
    judge: str | dict[str, Any] | None = Field(
        None,
        description="A judge of the answers to harmful prompts: harmbench, llama_guard, {preset: harmbench, "
        "model: FOLDER}, {classifier: MODEL, label: L, question: harmful} or {yes_no: MODEL, template: T, "
        "question: harmful}.",
    )
    judge_memory: str = Field(
        "together",
        description="together: judge and model both loaded; swap: they take turns on the model's device.",
    )
    perplexity_text: str | None = Field(
        None, description="A UTF-8 text file whose perplexity is measured under edits that generate answers."
    )
    keep_completions: bool = Field(
        False, description="Store the answers in the run folder's completions/; scores are always stored."
    )
    outcomes: bool = Field(
        False, description="Write tables/outcomes.parquet: the scores of every single prompt, never its text."
    )
    variants: dict[str, list[int | float | str]] = Field(
        {},
        description="Settings in which the edits chosen on the validation prompts are varied one at a time: "
        "strength, and of PCA-OT at one layer k, lift (full, subspace, discard) and tokens; with claims.",
    )
    capability: list[str | dict[str, Any]] = Field(
        [],
        description="Tasks of lm-eval, by name or as configurations, under the edits chosen on the "
        "validation prompts (ot-lens[capability]); with claims, and tokens: all.",
    )
    capability_limit: int | None = Field(
        None, ge=1, description="Items of each task, or of each part of a group of tasks; default: all."
    )
    claims: bool = Field(
        False,
        description="Measure the sweep on the validation prompts too, choose edits there, and test what "
        "arXiv 2603.04355 claims of them: tables/claims.*; with outcomes.",
    )
    paper_table: bool = Field(
        False, description="Write tables/paper.*: this run next to the numbers of arXiv 2603.04355."
    )
    batch_size: int = Field(128, ge=1, description="Prompts per batch.")
    permutations: int = Field(200, ge=39, description="Label permutations per null; 39 suffice for 95 %.")
    bootstrap: int = Field(
        200, ge=39, description="Bootstrap resamples per geometric interval; 39 suffice for 95 %."
    )
    plane_layer: int | None = Field(
        None, description="Layer of the principal-plane figure; default: where edits have the largest effect."
    )
    seed: int = Field(0, ge=0, description="Seed of all random numbers.")
    figure_style: str = Field("icml", description="Column widths: icml, neurips or wide.")

    @field_validator("position", mode="before")
    @classmethod
    def _named_position(cls, value: Any) -> Any:
        return -1 if value == "last" else value

    @field_validator("methods")
    @classmethod
    def _plain_parameters(cls, methods: list[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
        for method in methods:
            settings = {"name": method} if isinstance(method, str) else dict(method)
            modules = [settings.pop("module")] if "module" in settings else []
            values = [
                part
                for value in settings.values()
                for part in (value if isinstance(value, list) else [value])
            ]
            texts = [str(part) for part in (*settings, *values)]
            wrong = [text for text in texts if not PLAIN.fullmatch(text)]
            if wrong or sum(map(len, texts)) > MAX_LENGTH:
                raise _invalid("the parameters of a method are short words and numbers", [*wrong, method][0])
            _check_modules(modules)
        return methods

    @field_validator("extensions")
    @classmethod
    def _module_names(cls, extensions: list[str]) -> list[str]:
        _check_modules(extensions)
        return extensions

    @property
    def method_entries(self) -> list[str | dict[str, Any]]:
        """The methods without the modules that define them."""
        return [
            entry if isinstance(entry, str) else {key: v for key, v in entry.items() if key != "module"}
            for entry in self.methods
        ]

    @property
    def modules(self) -> list[str]:
        """Modules with the user's own code: those of the methods, then the extensions."""
        named = [entry["module"] for entry in self.methods if isinstance(entry, dict) and "module" in entry]
        return list(dict.fromkeys([*named, *self.extensions]))

    def loading(self) -> dict[str, Any]:
        """Arguments of `load_model`."""
        names = {"model", "trust_remote_code", "dtype", "device", "device_map", "revision", "quantization"}
        chat = {"system_prompt", "thinking"}
        return self.model_dump(include={*names, *chat, "gguf_file", "adapter", "merge_adapter"})


def _check_modules(names: Sequence[Any]) -> None:
    for name in names:
        if not (isinstance(name, str) and MODULE.fullmatch(name) and len(name) <= MAX_LENGTH):
            raise _invalid("a module is named like 'my_package.my_maps'", name)


def _invalid(rule: str, value: Any) -> PydanticCustomError:
    return PydanticCustomError("study", "{rule}, not {value}", {"rule": rule, "value": quoted(value)})


def read_config(
    path: str | Path, *, overrides: Mapping[str, Any] | None = None, trust_remote_code: bool = False
) -> StudyConfig:
    """Read and validate a YAML configuration.

    Args:
        path: The file.
        overrides: Fields that replace those of the file.
        trust_remote_code: Accept a configuration with `trust_remote_code: true`. A file alone, which may come
            from a stranger, never makes a model's own code run.

    Raises:
        ConfigError: If the file is missing or not YAML, or a field is unknown or invalid; the message names
            the field. Or if the model's own code is to be run and `trust_remote_code` is not given.
    """
    text = read_text(Path(path), MAX_YAML, ConfigError, missing="write one with 'ot-lens init'")
    content = parse_yaml(text, str(path), ConfigError)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} holds a {type(content).__name__}, not 'field: value' lines: see 'ot-lens init'."
        )
    content = from_folder(Path(path).absolute().parent, content)
    config = parse_config({**content, **(overrides or {})}, str(path))
    if config.trust_remote_code and not trust_remote_code:
        raise ConfigError(
            f"{path} asks to run code that comes with {quoted(config.model)}: if you trust it, add "
            "--trust-remote-code (in Python: read_config(path, trust_remote_code=True))."
        )
    return config


def from_folder(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """A file's content with its paths counted from its folder; names of models that are no path stay."""
    from ot_lens.prompts import relative_to

    paths = {
        name: str(folder / content[name])
        for name in ("prompts_root", "perplexity_text")
        if isinstance(content.get(name), str)
    }
    named = {name: _found(folder, content[name]) for name in NAMED if name in content}
    prompts = {"prompts": relative_to(folder, content["prompts"])} if "prompts" in content else {}
    if isinstance(content.get("languages"), Mapping):
        prompts["languages"] = {name: relative_to(folder, own) for name, own in content["languages"].items()}
    return {**content, **paths, **named, **prompts}


def _found(folder: Path, name: Any) -> Any:
    """The path of what a folder has under a name; any other name, of the hub or the package, unchanged."""
    if isinstance(name, Mapping):  # a judge
        return {key: _found(folder, value) if key in JUDGE_MODELS else value for key, value in name.items()}
    is_path = isinstance(name, str) and set(name) & set("/.") and exists(folder / name)
    return str(folder / name) if is_path else name


def parse_config(content: Mapping[str, Any], source: str = "configuration") -> StudyConfig:
    """Validate a configuration given as a mapping."""
    try:
        return StudyConfig.model_validate(content)
    except ValidationError as error:
        location, fault = first_fault(error)
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            fields = ", ".join(StudyConfig.model_fields)
            raise ConfigError(f"{source}: unknown field {location!r}: the fields are {fields}.") from error
        raise ConfigError(
            f"{source}: {location or 'the file'}: {fault} (got {quoted(first['input'])})."
        ) from error


def commented_yaml(config: StudyConfig | None = None) -> str:
    """A configuration as YAML, each field below its description."""
    values = (config or StudyConfig()).model_dump(mode="json")
    parts = ["# A study of ot_lens: run it with 'ot-lens run THIS_FILE --out runs/NAME'.\n"]
    for name, field in StudyConfig.model_fields.items():
        text = yaml.safe_dump({name: values[name]}, sort_keys=False, width=100)
        parts.append(f"# {field.description}\n{text}")
    return "\n".join(parts)
