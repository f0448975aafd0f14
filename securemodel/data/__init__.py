"""Tables of several parties as one: alignment, statistics, preparation and evaluation, without anybody seeing another's rows."""

from securemodel.data.align import Aligned, ChangedSetWarning, TooFewRows
from securemodel.data.answers import LeakWarning
from securemodel.data.association import chi_square, population_stability
from securemodel.data.column import Column
from securemodel.data.connecting import connect, local
from securemodel.data.counting import group_by, histogram, value_counts
from securemodel.data.discretizing import Clip, KBinsDiscretizer
from securemodel.data.encoders import TargetEncoder, WoEEncoder
from securemodel.data.encoding import OneHotEncoder, OrdinalEncoder
from securemodel.data.evaluate import Evaluation, evaluate
from securemodel.data.evaluation import EvaluationSetup, evaluation
from securemodel.data.evidence import information_value, woe
from securemodel.data.imputing import SimpleImputer
from securemodel.data.joint import Joint
from securemodel.data.moments import correlation, covariance, vif
from securemodel.data.pipeline import Label, Pipeline
from securemodel.data.power import PowerTransformer
from securemodel.data.prepared import Prepared
from securemodel.data.problems import TableErrors
from securemodel.data.propose import propose
from securemodel.data.query import Query
from securemodel.data.scaling import MinMaxScaler, RobustScaler, StandardScaler
from securemodel.data.schema import Schema
from securemodel.data.statistics import describe, quantiles
from securemodel.data.table import Source, Table, read, table

__all__ = [
    "Aligned", "ChangedSetWarning", "Clip", "Column", "Evaluation", "EvaluationSetup", "Joint", "KBinsDiscretizer", "Label", "LeakWarning",
    "MinMaxScaler", "OneHotEncoder", "OrdinalEncoder", "Pipeline", "PowerTransformer", "Prepared", "Query",
    "RobustScaler", "Schema", "SimpleImputer", "Source", "StandardScaler", "Table", "TableErrors", "TargetEncoder", "TooFewRows",
    "WoEEncoder", "chi_square", "connect", "correlation", "covariance", "describe", "evaluate", "evaluation", "group_by", "histogram",
    "information_value", "local", "population_stability", "propose", "quantiles", "read", "table", "value_counts",
    "vif", "woe",
]  # fmt: skip
