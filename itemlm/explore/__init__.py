"""Look at what a model learnt: widgets in the notebook, and pages that need no kernel."""

from .static import to_html
from .views import explore

__all__ = ["explore", "to_html"]
