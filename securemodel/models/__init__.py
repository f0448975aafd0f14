"""Models of other libraries as torch modules, which `securemodel.compile` takes; `import securemodel` does not load it."""

from securemodel.models.sklearn import from_sklearn
from securemodel.models.structure import from_structure, structure

__all__ = ["from_sklearn", "from_structure", "structure"]
