"""Models of other libraries as torch modules, which `securemodel.compile` takes; `import securemodel` does not load it."""

from securemodel.models.catboost import from_catboost
from securemodel.models.experts import dense_moe
from securemodel.models.lightgbm import from_lightgbm
from securemodel.models.sklearn import from_sklearn
from securemodel.models.structure import from_structure, structure
from securemodel.models.weights import dequantized, read_weights
from securemodel.models.xgboost import from_xgboost

__all__ = [
    "dense_moe",
    "dequantized",
    "from_catboost",
    "from_lightgbm",
    "from_sklearn",
    "from_structure",
    "from_xgboost",
    "read_weights",
    "structure",
]
