"""Pictures of fits, with matplotlib. Every function takes an ``ax`` to draw on (a new one if None) and returns it.

``alt_text(ax)`` says in a sentence what a picture shows, for readers who do not see it.
"""

from .derived import means, power
from .diagnostic import overview, qq, ranef_qq, residuals, scale_location
from .estimates import caterpillar, forest, groups
from .style import alt_text

__all__ = [
    "alt_text",
    "caterpillar",
    "forest",
    "groups",
    "means",
    "overview",
    "power",
    "qq",
    "ranef_qq",
    "residuals",
    "scale_location",
]
