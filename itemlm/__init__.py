"""Next-item recommendation with the architecture of an LLM and none of its text."""

__version__ = "0.2.0"

import itemlm.serving.follow  # noqa: F401  it gives a recommender its method `follow`
import itemlm.training.update  # noqa: F401  it gives a recommender its method `update`
from itemlm.data.datasets import load_dataset
from itemlm.data.doctor import doctor
from itemlm.data.events import Events, read_events
from itemlm.data.split import shuffle_ties, split
from itemlm.data.tokenizer import ItemTokenizer
from itemlm.evaluation.compare import compare
from itemlm.evaluation.protocols import protocols
from itemlm.evaluation.report import evaluate
from itemlm.explain import because, what_if
from itemlm.models.base import SequenceModel
from itemlm.models.item_lm import ItemLM, long_history, small, tiny
from itemlm.models.losses import full_softmax, gbce
from itemlm.models.recipe import TrainingConfig
from itemlm.runs.ledger import list_runs, read_run
from itemlm.serving.recommender import Recommender, load
from itemlm.training.trainer import fit

__all__ = [
    "Events",
    "ItemLM",
    "ItemTokenizer",
    "Recommender",
    "SequenceModel",
    "TrainingConfig",
    "because",
    "compare",
    "doctor",
    "evaluate",
    "fit",
    "full_softmax",
    "gbce",
    "list_runs",
    "load",
    "load_dataset",
    "long_history",
    "protocols",
    "read_events",
    "read_run",
    "shuffle_ties",
    "small",
    "split",
    "tiny",
    "what_if",
]
