"""Capability tasks through lm-eval, on a task written out here: no hub is asked."""

import math
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import ot_lens as otl
from ot_lens.behaviour.capability import _rendering, capability
from ot_lens.errors import ActivationError, ModelError, OtLensError
from ot_lens.models import backend, render
from ot_lens.transport import AffineMap


@pytest.fixture(scope="module")
def organism():
    return otl.load_model("organism:single")


@pytest.fixture(scope="module")
def task(language_task: dict) -> dict:
    return language_task


def test_without_lm_eval_the_extra_is_named(organism, monkeypatch):
    with pytest.raises(OtLensError, match=r"\[\]"):
        capability(organism, [])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ModelError, match=r"ot-lens\[capability\]"):
        capability(organism, ["hellaswag"])


def test_a_model_knows_its_language_and_a_broken_one_does_not(organism, task):
    before = capability(organism, [task], limit=12)
    row = before[before["measure"] == "acc"].iloc[0]
    assert row["value"] > 0.9
    assert row["low"] <= row["value"] <= row["high"]
    assert row["n"] == 12
    generator = torch.Generator().manual_seed(0)
    break_it = AffineMap(torch.zeros(96, 0), torch.zeros(96, 0), 300 * torch.randn(96, generator=generator))
    with otl.intervene(organism, {3: break_it}):
        broken = capability(organism, [task], limit=12)
    assert broken.loc[broken["measure"] == "acc", "value"].item() < 0.8
    again = capability(organism, [task], limit=12)  # the edit ended with its block
    pd.testing.assert_frame_equal(again, before)


@pytest.mark.trust
@pytest.mark.usefixtures("task")
def test_an_unknown_task_is_named(organism, monkeypatch, tmp_path, full_size):
    """At full size among all of lm-eval's tasks, whose configurations take half a minute; else among one."""
    from lm_eval.tasks import TaskManager

    asked = []

    def few(include_defaults):
        asked.append(include_defaults)
        return TaskManager(include_path=str(tmp_path), include_defaults=False)

    if not full_size:
        (tmp_path / "one.yaml").write_text("task: hellaswag\ndataset_path: json\n")
        assert few(include_defaults=True).all_tasks == ["hellaswag"]
        monkeypatch.setattr("lm_eval.tasks.TaskManager", few)
    with pytest.raises(OtLensError, match="'helaswag'"):
        capability(organism, ["hellaswag", "helaswag"])
    assert all(asked)


def test_prompts_are_rendered_as_everywhere_else(llama_folder):
    """With the template's switches, and the system prompt in front of the task's own description."""
    model = otl.load_model(llama_folder, system_prompt="w5")
    model.tokenizer.chat_template += "{% if enable_thinking is false %} w9{% endif %}"
    served, turns = backend(model), [{"role": "user", "content": "w1"}]
    adapter = _rendering(object, served)()
    assert adapter.apply_chat_template(turns) == render(served, ["w1"])[0]
    described = adapter.apply_chat_template([{"role": "system", "content": "w6"}, *turns])
    assert described == render(served, ["w1"])[0].replace("w5", "w5\n\nw6")


def test_a_model_that_overflows_is_an_error(task, llama_folder):
    model = otl.load_model(llama_folder)
    torch.nn.init.constant_(model.hf_model.model.norm.weight, math.nan)
    with pytest.raises(ActivationError, match="NaN"):
        capability(model, [task], limit=2)
    assert not model.hf_model._forward_hooks


def test_missing_data_is_named(organism, task):
    missing = task | {"dataset_kwargs": {"data_files": {"test": str(Path("nowhere.jsonl").absolute())}}}
    with pytest.raises(OtLensError, match="nowhere"):
        capability(organism, [missing])
