"The rooms of the house: one way through them, a small front door, and nothing behind it that training does not need."

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

import itemlm

PACKAGE = ROOT / "itemlm"
ROOMS = """
core
show
workspace
data.files data.engines data.times data.readers data.events data.datasets data.split data.doctor data.tokenizer data.batches
metrics.ranks metrics.lists metrics.statistics
models.layers models.base models.losses models.recipe models.item_lm models.kmeans models.counting models.neural
models.wrapper models.ensemble models.time_prior models.mixture
models.text.templates models.text.encoders models.text.item_llm models.text.words models.text.rows
models.text.content_knn models.text.semantic_ids models.text.generative models.text.hf models.presets
runs.folder runs.ledger
serving.topk serving.rules serving.recommender serving.index serving.follow serving.hugging_face serving.onnx
training.rows training.schedule training.labels training.ppmi training.parallel training.sharding training.checkpoint
training.trainer training.mix training.update
evaluation.tables evaluation.report evaluation.folds evaluation.compare evaluation.protocols evaluation.cold
explain
tracking
parameters
jobs
train
tuning
""".split()  # in the order in which data flows
MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")}
MODULES = {name: path for name, path in MODULES.items() if not name.endswith(("__init__", "_modidx"))}
OPTIONAL = {"plotly", "transformers", "papermill", "ipywidgets", "anywidget", "IPython", "huggingface_hub", "optuna", "usearch"}


def imported(tree: ast.AST, module: str) -> list[str]:
    "Modules of itemlm that a piece of code imports, by their name under it."
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = module.split(".")[: -node.level]
            found.append(".".join([*base, *(node.module.split(".") if node.module else [])]))
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "itemlm":
            found.append(node.module.removeprefix("itemlm").lstrip("."))
        elif isinstance(node, ast.Import):
            found += [alias.name.removeprefix("itemlm.") for alias in node.names if alias.name.startswith("itemlm.")]
    return found


def room_of(module: str) -> str:
    return module.split(".")[0]


def test_every_module_has_its_place():
    below = set(MODULES) - set(ROOMS)
    assert set(ROOMS) <= set(MODULES) and all(room_of(name) in ("explore", "study") for name in below), below ^ set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    "A module imports only from those above it; nothing but study lies below explore."
    theirs = imported(ast.parse(MODULES[module].read_text()), module)
    above = ROOMS[: ROOMS.index(module)] if module in ROOMS else ROOMS
    for name in theirs:
        assert name in above or (module not in ROOMS and room_of(name) == room_of(module)), f"{module} imports {name}"


def test_rooms_are_one_way():
    "No two rooms import from each other."
    arrows = {(room_of(m), room_of(t)) for m, path in MODULES.items() for t in imported(ast.parse(path.read_text()), m)}
    assert not {(a, b) for a, b in arrows if a != b and (b, a) in arrows}


@pytest.mark.parametrize("module", MODULES)
def test_no_import_inside_a_function(module):
    "But that of a library which an extra brings."
    for function in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for node in ast.walk(function):
                names = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                assert all(name.split(".")[0] in OPTIONAL for name in names), f"{module}.{getattr(function, 'name', '')} imports {names}"


@pytest.mark.parametrize("module", [m for m in MODULES if m != "models.base"])
def test_nobody_asks_a_model_what_it_is(module):
    "No hasattr, getattr or isinstance on a model or its configuration outside the contract's own module."
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr", "isinstance"):
            asked = ast.unparse(node.args[0]).split(".")
            assert not {"model", "config"} & set(asked) or ast.unparse(node) == "isinstance(config, TrainingConfig)", ast.unparse(node)


def test_small_front_door():
    assert len(itemlm.__all__) <= 25 and all(name in vars(itemlm) for name in itemlm.__all__)


def public(path) -> list[str]:
    "What a module offers, as nbdev wrote it down."
    tree = ast.parse(path.read_text())
    return next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__")


def test_no_two_modules_share_a_name():
    owners = {}
    for module, path in MODULES.items():
        for name in public(path):
            owners.setdefault(name, []).append(module)
    assert not {name: where for name, where in owners.items() if len(where) > 1}


CLEAN = """
import os, sys, torch
import numpy, pandas, pyarrow

def state():
    return dict(threads=torch.get_num_threads(), grad=torch.is_grad_enabled(), dtype=torch.get_default_dtype(), environ=dict(os.environ),
                path=list(sys.path), hook=sys.excepthook, rng=torch.get_rng_state().tolist(), err=numpy.geterr(),
                rows=pandas.get_option("display.max_rows"))

def blocked(): return {name for name, module in sys.modules.items() if module is None}

before, none, there = state(), blocked(), set(sys.modules)
import itemlm
after = state()
heavy = "jupyterlab IPython ipywidgets anywidget plotly papermill transformers ipykernel notebook onnx onnxruntime onnxscript".split()
heavy = set(heavy + ["torch.distributed.fsdp", "torch.distributed.tensor"]) & (set(sys.modules) - there)
print(sorted(heavy), [name for name in before if before[name] != after[name]], sorted(blocked() - none))
"""


def test_import_brings_nothing_along():
    "No Jupyter, no plots, no transformers, nothing to cut models with; no thread count, path, seed, hook or setting is changed."
    done = subprocess.run([sys.executable, "-c", CLEAN], capture_output=True, text=True)
    assert done.stdout.strip() == "[] [] []", done.stdout + done.stderr
