"""The configuration of a study: one YAML file, every field documented, a misspelt key refused."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from ot_lens.errors import ConfigError
from ot_lens.io.untrusted import MAX_YAML, parse_yaml, quoted, read_bounded

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
# A method's parameters name the folder of its maps: words and numbers without a path, of a name's length.
PLAIN = re.compile(r"[\w.+-]*", re.ASCII)
MOST_PARAMETERS = 120


class StudyConfig(BaseModel):
    """What a run does. Every field has a default that works on the embedded model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        "organism",
        description="Hub name, local folder, or organism[:single|multi|shared], the embedded models.",
    )
    revision: str | None = Field(None, description="Revision of a hub model.")
    dtype: str | None = Field(None, description="float32, bfloat16, float16; default: the checkpoint's own.")
    device: str | None = Field(None, description="cpu, cuda, cuda:1 ...; default: cuda when there is one.")
    device_map: str | dict[str, int | str] | None = Field(
        None, description="auto spreads the layers over all devices; not together with device."
    )
    quantization: str | None = Field(
        None, description="int8 or nf4: weights of linear layers in 8 or 4 bits (ot-lens[quantization])."
    )
    system_prompt: str | None = Field(
        None,
        description="System message before every prompt; default: the chat template's own way.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run code that comes with the model; 'ot-lens run' wants --trust-remote-code as well.",
    )
    prompts: str | dict[str, Any] = Field(
        "organism",
        description="'organism', 'paper', 'refusal_direction', a file, hf:DATASET, or a mapping "
        "{harmful: SOURCE, harmless: SOURCE}; see load_prompts.",
    )
    prompts_root: str | None = Field(
        None, description="Folder where public prompt sets are read instead of from the network."
    )
    sample: list[int] | dict[str, list[int]] | None = Field(
        None, description="Prompts drawn a class: [train, val] or [train, val, test]; default: all."
    )
    filter: str = Field(
        "off",
        description="off; or keep harmful prompts that the unedited model refuses and harmless ones it does "
        "not, by refusal_score (the next token) or by answers (phrases).",
    )
    layers: list[int] | str = Field("all", description="'all' or a list of layer numbers.")
    hook: str = Field("resid_pre", description="Hook point where maps are fitted and applied.")
    position: int = Field(
        -1, lt=0, description="Token position of the fit; -1 or 'last' is the prompt's last token."
    )
    activation_dtype: str | None = Field(
        None, description="Of the stored activations: float32, bfloat16, float16; default: the model's own."
    )
    tokens: str = Field("all", description="Token scope of the edits: all, prompt, last or generated.")
    methods: list[str | dict[str, Any]] = Field(
        list(DEFAULT_METHODS),
        min_length=1,
        description="Names, or {name: pca_ot, k: 2}. rfa is directional ablation at every block's input, "
        "attention output and MLP output.",
    )
    sets: list[str] = Field(
        ["single", "all"],
        min_length=1,
        description="single: each layer alone; pair: every two, at the next token only; all: together.",
    )
    layer_sets: list[list[int]] = Field(
        [], description="Further sets of layers by name, such as [[12], [12, 16]], measured with answers."
    )
    answers: str = Field(
        "all", description="Generate answers under all edits, or under chosen ones: searched or listed sets."
    )
    fitting: list[str] = Field(
        ["independent"],
        min_length=1,
        description="For layers edited together: independent, sequential (each fitted under those below).",
    )
    engine: str = Field(
        "auto", description="single_pass, hooks, or auto: the single pass wherever it serves the model."
    )
    controls: list[str] = Field(
        ["random_subspace", "permuted_labels"],
        description="Controls of every method and layer, read at the next token; [] for none.",
    )
    control_draws: int = Field(5, ge=2, description="Random draws of each control.")
    sufficiency: bool = Field(
        True, description="Also transport harmless activations onto harmful ones: it must induce refusal."
    )
    search_size: int = Field(
        2,
        ge=0,
        le=4,
        description="Most layers of the set searched for on validation prompts; 0: no search.",
    )
    search: str = Field("beam", description="beam or greedy.")
    search_each_size: bool = Field(
        False,
        description="Report the best set of each size up to search_size, not the best of all; rfa likewise.",
    )
    measures: list[str] = Field(
        ["refusal_rate", "exact_answer_rate", "refusal_score", "kl", "perplexity"],
        min_length=1,
        description="What is measured on the test prompts.",
    )
    strength: list[float] = Field(
        [1.0], min_length=1, description="Shares of the way from x to T(x), each in [0, 1]."
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
        description="together: judge and model side by side; swap: by turns on the model's device.",
    )
    perplexity_text: str | None = Field(
        None, description="A UTF-8 text file whose perplexity is measured under the edits that answer."
    )
    keep_completions: bool = Field(
        False, description="Keep the answers in the run folder's completions/; scores are kept in any case."
    )
    paper_table: bool = Field(
        False, description="Write tables/paper.*: this run beside the numbers of arXiv 2603.04355."
    )
    batch_size: int = Field(128, ge=1, description="Prompts a batch.")
    permutations: int = Field(200, ge=39, description="Label permutations of each null; 39 make a 95 % band.")
    bootstrap: int = Field(
        200, ge=39, description="Bootstrap resamples of each geometric interval; 39 make one of 95 %."
    )
    plane_layer: int | None = Field(
        None, description="Layer of the principal-plane figure; default: where the sweep's edits bite most."
    )
    seed: int = Field(0, ge=0, description="Seed of everything that is drawn.")
    figure_style: str = Field("icml", description="Column widths: icml, neurips or wide.")

    @field_validator("position", mode="before")
    @classmethod
    def _named_position(cls, value: Any) -> Any:
        return -1 if value == "last" else value

    @field_validator("methods")
    @classmethod
    def _plain_parameters(cls, methods: list[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
        for method in methods:
            if isinstance(method, str):
                continue
            texts = [str(part) for item in method.items() for part in item]
            wrong = next((text for text in texts if not PLAIN.fullmatch(text)), None)
            if wrong is not None or sum(map(len, texts)) > MOST_PARAMETERS:
                raise PydanticCustomError(
                    "method",
                    "the parameters of a method are short words and numbers, not {wrong}",
                    {"wrong": quoted(method if wrong is None else wrong)},
                )
        return methods

    def loading(self) -> dict[str, Any]:
        """Arguments of `load_model`."""
        names = ("dtype", "device", "device_map", "revision", "quantization", "system_prompt")
        return {
            "model": self.model,
            "trust_remote_code": self.trust_remote_code,
            **{name: getattr(self, name) for name in names},
        }


def read_config(path: str | Path, *, trust_remote_code: bool = False) -> StudyConfig:
    """Read and validate a YAML configuration.

    Args:
        path: The file.
        trust_remote_code: Accept a configuration that says `trust_remote_code: true`. A file alone, which
            may be a stranger's, does not make code run that comes with a model.

    Raises:
        ConfigError: If the file is missing, not YAML, or a field is unknown or invalid; the message names it.
            Or if it asks for a model's own code to be run and `trust_remote_code` is not given.
    """
    path = Path(path)
    try:
        text = read_bounded(path, MAX_YAML, ConfigError).decode()
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration {path}: write one with 'ot-lens init'.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not readable YAML: {error.reason} at byte {error.start}.") from error
    content = parse_yaml(text, str(path), ConfigError)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} holds a {type(content).__name__}, not 'field: value' lines: see 'ot-lens init'."
        )
    config = parse_config(content, str(path))
    if config.trust_remote_code and not trust_remote_code:
        raise ConfigError(
            f"{path} asks to run code that comes with {quoted(config.model)}: if you trust it, say so "
            "with --trust-remote-code (in Python: read_config(path, trust_remote_code=True))."
        )
    return config


def parse_config(content: dict[str, Any], source: str = "configuration") -> StudyConfig:
    """Validate a configuration given as a mapping.

    Raises:
        ConfigError: If a field is unknown or invalid.
    """
    try:
        return StudyConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        if first["type"] == "extra_forbidden":
            fields = ", ".join(StudyConfig.model_fields)
            raise ConfigError(f"{source}: unknown field {quoted(place)}: the fields are {fields}.") from error
        raise ConfigError(f"{source}: {place}: {first['msg']} (got {quoted(first['input'])}).") from error


def commented_yaml(config: StudyConfig | None = None) -> str:
    """A configuration as YAML, each field under its description."""
    values = (config or StudyConfig()).model_dump(mode="json")
    parts = ["# A study of ot_lens: run it with 'ot-lens run THIS_FILE --out runs/NAME'.\n"]
    for name, field in StudyConfig.model_fields.items():
        text = yaml.safe_dump({name: values[name]}, sort_keys=False, width=100)
        parts.append(f"# {field.description}\n{text}")
    return "\n".join(parts)
