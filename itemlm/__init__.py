__version__ = "0.1.0"

from itemlm.events import *  # noqa: F403
from itemlm.split import *  # noqa: F403
from itemlm.doctor import *  # noqa: F403
from itemlm.tokenizer import *  # noqa: F403
from itemlm.metrics import *  # noqa: F403
from itemlm.model import *  # noqa: F403
from itemlm.loss import *  # noqa: F403
from itemlm.recommend import *  # noqa: F403
from itemlm.training import *  # noqa: F403
from itemlm.evaluate import *  # noqa: F403
from itemlm.baselines import *  # noqa: F403
from itemlm.text import *  # noqa: F403
from itemlm.text_beam import *  # noqa: F403
from itemlm.explain import *  # noqa: F403
from itemlm.run import *  # noqa: F403
from itemlm.explore import *  # noqa: F403
from itemlm.protocols import *  # noqa: F403
from itemlm.study import *  # noqa: F403
