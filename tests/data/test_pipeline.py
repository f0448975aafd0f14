"""Pipelines on joint tables: what scikit-learn does to one table, whoever has its columns and rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import securemodel
from protocols.errors import InputError
from securemodel.data.encoders import TargetEncoder, WoEEncoder
from securemodel.data.encoding import OneHotEncoder, OrdinalEncoder
from securemodel.data.imputing import SimpleImputer
from securemodel.data.pipeline import Label, Pipeline
from securemodel.data.power import PowerTransformer
from securemodel.data.prepared import Prepared
from securemodel.data.scaling import MinMaxScaler, StandardScaler
from securemodel.data.schema import Schema
from securemodel.data.splits import Public, fold_numbers, split_rows
from tests.data.joint_stand_in import StandIn

compose = pytest.importorskip("sklearn.compose")
impute = pytest.importorskip("sklearn.impute")
theirs = pytest.importorskip("sklearn.preprocessing")
model_selection = pytest.importorskip("sklearn.model_selection")

COLUMNS = """
[table]
keys = ["id"]
split = "columns"
minimum = 5
[columns.income]
owner = "bank"
kind = "number"
low = 0.0
high = 500000.0
missing = true
[columns.age]
owner = "bank"
kind = "integer"
low = 18
high = 99
[columns.city]
owner = "shop"
kind = "category"
values = ["Ghent", "Oslo", "Utrecht"]
missing = true
[columns.orders]
owner = "shop"
kind = "integer"
low = 0
high = 1000
[columns.defaulted]
owner = "registry"
kind = "boolean"
"""
ROWS = COLUMNS.replace('split = "columns"', 'split = "rows"').replace('keys = ["id"]\n', "")
ROWS = "\n".join(line for line in ROWS.splitlines() if not line.startswith("owner"))
CITIES = np.array(["Ghent", "Oslo", "Utrecht"], object)


def table(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    made = {
        "income": draw.lognormal(10.5, 0.6, rows).clip(0, 5e5),
        "age": draw.integers(18, 99, rows).astype(float),
        "city": draw.integers(0, 3, rows).astype(float),
        "orders": draw.poisson(20, rows).astype(float),
    }
    made["defaulted"] = (draw.random(rows) < 0.2 + 0.2 * (made["city"] == 1) + 0.2 * (made["age"] < 40)).astype(float)
    made["income"][draw.random(rows) < 0.15] = np.nan
    made["city"][draw.random(rows) < 0.1] = np.nan
    return made


def vertical(rows: int = 200, seed: int = 0, **changes) -> StandIn:
    values, schema = table(rows, seed), Schema.parse(COLUMNS)
    owners = ("bank", "shop", "registry")
    tables = {party: {n: values[n] for n, c in schema.columns.items() if c.owner == party} for party in owners}
    return StandIn(schema, tables, **changes)


def horizontal(rows: int = 200, seed: int = 0) -> StandIn:
    values, cut = table(rows, seed), 2 * rows // 3
    tables = {"east": {n: v[:cut] for n, v in values.items()}, "west": {n: v[cut:] for n, v in values.items()}}
    return StandIn(Schema.parse(ROWS), tables)


def steps() -> Pipeline:
    return Pipeline(
        income=[SimpleImputer("median", add_indicator=True), StandardScaler()],
        age=MinMaxScaler(),
        city=OneHotEncoder(),
        orders=[PowerTransformer()],
    )


def sklearn_of(values: dict[str, np.ndarray]):
    """The same of scikit-learn, fitted, and its features of rows."""
    known = [np.array([*CITIES, np.nan], object)]
    of = compose.ColumnTransformer(
        [
            ("income", theirs_pipeline(impute.SimpleImputer(strategy="median", add_indicator=True), theirs.StandardScaler()), [0]),
            ("age", theirs.MinMaxScaler(), [1]),
            ("city", theirs.OneHotEncoder(categories=known, sparse_output=False), [2]),
            ("orders", theirs.PowerTransformer(), [3]),
        ]
    )  # fmt: skip
    of.fit(frame(values))
    return lambda values: of.transform(frame(values))


def theirs_pipeline(*made):
    from sklearn.pipeline import make_pipeline

    return make_pipeline(*made)


def frame(values: dict[str, np.ndarray]) -> np.ndarray:
    made = np.empty((len(values["age"]), 4), object)
    made[:, 0], made[:, 1], made[:, 3] = values["income"], values["age"], values["orders"]
    there = ~np.isnan(values["city"])
    made[:, 2] = np.nan
    made[there, 2] = CITIES[values["city"][there].astype(int)]
    return made


def features(data) -> np.ndarray:
    return torch.cat(
        [torch.cat([p.tensor for p in data.columns[name]]) for name in data.columns if name != "defaulted"], 1
    ).numpy()


def test_columns_of_owners_as_scikit_learn_and_nothing_is_asked():
    train, test = vertical(), vertical(80, seed=1)
    prepared = steps().fit(train)
    assert train.asked == []
    wanted = sklearn_of(table(200))
    np.testing.assert_allclose(features(prepared(train)), wanted(table(200)), atol=2e-5)
    np.testing.assert_allclose(features(prepared(test)), wanted(table(80, seed=1)), atol=2e-5)
    assert list(prepared(train).columns) == ["bank", "shop", "defaulted"]
    assert prepared.feature_names_out == (
        "income", "missingindicator_income", "age", "city_Ghent", "city_Oslo", "city_Utrecht", "city_nan", "orders",
    )  # fmt: skip
    assert prepared.features["bank"] == ("income", "missingindicator_income", "age")
    label = prepared(test).columns["defaulted"][0]
    assert label.party == "registry" and label.tensor.tolist() == table(80, seed=1)["defaulted"].tolist()


def test_rows_of_parties_as_scikit_learn():
    train, test = horizontal(), horizontal(60, seed=1)
    prepared = steps().fit(train)
    assert 0 < len(train.asked) <= 8
    made = prepared(test)
    assert [[part.party for part in column] for column in made.columns.values()] == [["east", "west"]] * 2
    wanted = sklearn_of(table(200))(table(60, seed=1))
    found = features(made)
    np.testing.assert_allclose(found[:, :7], wanted[:, :7], atol=1e-4)
    assert np.corrcoef(found[:, 7], wanted[:, 7])[0, 1] > 0.999  # of 41 lambdas
    assert prepared.features == {"features": prepared.feature_names_out}


def test_each_party_fits_and_reads_its_own_alone():
    made = {me: steps().fit(vertical(me=me)) for me in (None, "bank", "shop", "registry")}
    assert len({prepared.feature_names_out for prepared in made.values()}) == 1
    everything = made[None]
    mine = made["bank"]
    assert torch.equal(mine["income"][0].parameters["statistics_"], everything["income"][0].parameters["statistics_"])
    assert mine["orders"][0].parameters["lambdas_"].tolist() == [0.0]
    data = mine(vertical(me="bank"))
    assert torch.equal(data.columns["bank"][0].tensor, everything(vertical()).columns["bank"][0].tensor)
    with pytest.raises(AssertionError, match="rows of shop"):
        data.columns["shop"][0].tensor  # noqa: B018
    assert data.columns["shop"][0].shape == (200, 5)


def test_all_parameters_are_told_where_that_is_asked():
    joint = vertical()
    prepared = steps().fit(joint, reveal="all")
    assert all(fitted.known for column in prepared.columns for fitted in column.fitted)
    assert all(set(query.reveal.values()) == {"all"} for query in joint.asked)
    own = steps().fit(vertical())
    for column, same in zip(prepared.columns, own.columns, strict=True):
        for a, b in zip(column.fitted, same.fitted, strict=True):
            assert all(torch.equal(a.parameters[name], b.parameters[name]) for name in a.parameters)


# ---- then(model)
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1)).eval()


def test_a_pipeline_and_a_model_are_one_program():
    prepared, test = steps().fit(vertical()), vertical(10, seed=1)
    whole = prepared.then(model())
    program = securemodel.compile(
        whole, whole.examples(5), weights=whole.weights("registry"), inputs=whole.inputs, outputs="bank",
        parties=("bank", "shop", "registry"),
    )  # fmt: skip
    raw = prepared.raw(test)
    assert list(raw) == ["bank", "shop"] and whole.columns == {"bank": ("income", "age"), "shop": ("city", "orders")}
    with securemodel.local(program) as session:
        found = session.run(*(part.tensor for (part,) in raw.values()))
    data = prepared(test)
    alone = securemodel.compile(
        Joined(whole.model), (torch.zeros(5, 3), torch.zeros(5, 5)), weights="registry", inputs=("bank", "shop"),
        outputs="bank", parties=("bank", "shop", "registry"),
    )  # fmt: skip
    with securemodel.local(alone) as session:
        wanted = session.run(data.columns["bank"][0].tensor, data.columns["shop"][0].tensor)
    assert torch.equal(found, wanted)
    torch.testing.assert_close(found, whole(*(part.tensor for (part,) in raw.values())), atol=1e-3, rtol=0)


class Joined(nn.Module):
    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def forward(self, bank: torch.Tensor, shop: torch.Tensor) -> torch.Tensor:
        return self.of(torch.cat([bank, shop], 1))


def test_a_party_without_others_parameters_compiles_the_same_program():
    digests = set()
    for me in (None, "bank", "shop", "registry"):
        whole = steps().fit(vertical(me=me)).then(model())
        digests.add(
            securemodel.compile(
                whole, whole.examples(5), weights=whole.weights("registry"), inputs=whole.inputs, outputs="bank",
                parties=("bank", "shop", "registry"),
            ).digest
        )  # fmt: skip
    assert len(digests) == 1


def test_an_unknown_category_does_not_get_into_a_program():
    prepared = steps().fit(vertical())
    whole = prepared.then(model())
    program = securemodel.compile(
        whole, whole.examples(2), weights=whole.weights("registry"), inputs=whole.inputs, outputs="bank",
        parties=("bank", "shop", "registry"),
    )  # fmt: skip
    bank, shop = whole.examples(2)
    shop[1, 0] = 7
    with securemodel.local(program) as session, pytest.raises(InputError, match="shop"):
        session.run(bank, shop)
    test = vertical(5)
    test.tables["shop"]["city"][3] = 7.0
    with pytest.raises(InputError, match=r"'city' that its steps refuse\n  where: row 3 of 'shop'"):
        prepared(test).columns["shop"][0].tensor  # noqa: B018


def test_a_training_reads_what_a_pipeline_makes():
    prepared = steps().fit(joint := vertical(60))
    net = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step(bank, shop, defaulted):
        loss = nn.functional.binary_cross_entropy_with_logits(net(torch.cat([bank, shop], 1)).squeeze(1), defaulted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    job = securemodel.compile_training(
        step, net, optimizer, batch=prepared(joint).batches(20, seed=2), parties=["bank", "shop", "registry"],
        reveal={"loss": "all"},
    )  # fmt: skip
    with job.local() as run:
        losses = [float(one["loss"]) for one in run.train_epoch()]
    assert len(losses) == 3 and all(0 < loss < 3 for loss in losses)


# ---- labels
@pytest.mark.parametrize("smooth", ["auto", 20.0])
@pytest.mark.parametrize("kind", ["columns", "rows", "alone"])
def test_a_target_encoder_as_scikit_learn(smooth, kind):
    train = horizontal() if kind == "rows" else vertical()
    train = replace(
        train, schema=Schema.parse((ROWS if kind == "rows" else COLUMNS).replace("minimum = 5", "minimum = 1"))
    )
    if kind == "alone":  # which withholds nothing from itself
        schema = Schema.parse(COLUMNS.replace("registry", "shop"))
        train = StandIn(
            schema, {"bank": train.tables["bank"], "shop": {**train.tables["shop"], **train.tables["registry"]}}
        )
    pipeline = Pipeline({("income", "age", "orders"): "drop"}, city=TargetEncoder("defaulted", smooth))
    prepared = pipeline.fit(train)
    values = table(200)
    numbers = fold_numbers(Public(200), 5)
    sklearn = theirs.TargetEncoder(
        categories=[np.array([*CITIES, np.nan], object)], smooth=smooth, cv=model_selection.PredefinedSplit(numbers)
    )
    wanted = sklearn.fit_transform(frame(values)[:, 2:3], values["defaulted"])
    np.testing.assert_allclose(features(prepared(train)), wanted, atol=1e-6)
    again = sklearn.transform(frame(values)[:, 2:3])
    np.testing.assert_allclose(features(prepared.transform(train)), again, atol=1e-6)
    assert not np.allclose(wanted, again)
    assert len(train.asked) == {"columns": 1, "rows": 2, "alone": 0}[kind]
    if kind == "columns":
        assert set(train.asked[0].reveal.values()) == {"shop"}


def test_categories_of_few_rows_are_withheld():
    train = vertical(60)
    train.tables["shop"]["city"][:] = 0.0
    train.tables["shop"]["city"][:4] = 1.0  # fewer than 5
    train.tables["shop"]["city"][4:24] = 2.0  # what would give them away
    prepared = Pipeline({("income", "age", "orders"): "drop"}, city=TargetEncoder("defaulted")).fit(train)
    p = prepared["city"][0].parameters
    assert (
        p["encodings_"][0, 0, 1]
        == p["target_mean_"][0]
        == pytest.approx(train.tables["registry"]["defaulted"].mean(), abs=1e-6)
    )
    assert p["encodings_"][0, 0, 2] == p["target_mean_"][0] != p["encodings_"][0, 0, 0]


@pytest.mark.parametrize("kind", ["columns", "alone"])
def test_weights_of_evidence(kind):
    pd = pytest.importorskip("pandas")
    train, values = vertical(), table(200)
    if kind == "alone":
        schema = Schema.parse(COLUMNS.replace("registry", "bank").replace("shop", "bank"))
        train = StandIn(schema, {"bank": values, "club": {"age": np.zeros(200)}})
    pipeline = Pipeline(
        income=WoEEncoder("defaulted", 4), age=WoEEncoder("defaulted", 3), city=WoEEncoder("defaulted"), orders="drop"
    )
    prepared = pipeline.fit(train)
    made = features(prepared(train))
    y = values["defaulted"]
    bins = [pd.qcut(pd.Series(values["income"]), 4).cat.codes, pd.qcut(pd.Series(values["age"]), 3).cat.codes]
    bins.append(pd.Series(values["city"]).fillna(-1).astype(int))
    for at, codes in enumerate(bins):
        table_of = pd.DataFrame({"bin": codes.to_numpy(), "y": y}).groupby("bin")["y"].agg(["sum", "count"])
        woe = np.log((table_of["sum"] + 0.5) / y.sum()) - np.log(
            (table_of["count"] - table_of["sum"] + 0.5) / (1 - y).sum()
        )
        np.testing.assert_allclose(made[:, at], woe.loc[codes].to_numpy(), atol=1e-5)
        shares = table_of["sum"] / y.sum() - (table_of["count"] - table_of["sum"]) / (1 - y).sum()
        found = prepared[("income", "age", "city")[at]][0].parameters["iv_"]
        assert found.tolist() == pytest.approx([(shares * woe).sum()], abs=1e-6)


# ---- parameters that nobody learns
def quiet() -> Pipeline:
    return Pipeline(income=SimpleImputer(add_indicator=True), age=StandardScaler(), city=OneHotEncoder(), orders="drop")


def test_secret_parameters_as_scikit_learn(tmp_path):
    train, test = horizontal(), horizontal(40, seed=1)
    prepared = quiet().fit(train, reveal="nobody")
    assert train.asked == []
    prepared.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "east.safetensors", "pipeline.json", "public.safetensors", "west.safetensors",
    ]  # fmt: skip
    again = Prepared.load(tmp_path, train.schema)
    whole = again.then(nn.Identity())
    program = securemodel.compile(
        whole, whole.examples(8), weights=whole.weights({}), inputs="east", outputs="east", parties=("east", "west")
    )
    rows = torch.cat([part.tensor for part in prepared.raw(test)["features"]])
    with securemodel.local(program) as session:
        found = session.run(rows).numpy()
    values, others = table(200), table(40, seed=1)
    income = impute.SimpleImputer(add_indicator=True).fit(values["income"][:, None])
    income = income.transform(others["income"][:, None])
    age = theirs.StandardScaler().fit(values["age"][:, None]).transform(others["age"][:, None])
    np.testing.assert_allclose(found[:, 0], income[:, 0], atol=5e5 * 2.0**-16)
    np.testing.assert_array_equal(found[:, 1], income[:, 1])
    np.testing.assert_allclose(found[:, 2], age[:, 0], atol=2.0**-9)
    assert prepared.feature_names_out[:3] == ("income", "missingindicator_income", "age")


def test_a_training_takes_secret_parameters():
    prepared = quiet().fit(joint := horizontal(60), reveal="nobody")
    net, head = nn.Linear(7, 1), prepared.head
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def step(features, defaulted):
        rows = head(features) * torch.tensor([2.0**-17, 1, 1, 1, 1, 1, 1])
        loss = nn.functional.binary_cross_entropy_with_logits(net(rows).squeeze(1), defaulted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    job = securemodel.compile_training(
        step, {"net": net, "head": head}, optimizer, batch=prepared(joint).batches(30), parties=["east", "west"],
        reveal={"loss": "all"}, weights={f"head.{n}": o for n, o in head.weights().items()},
    )  # fmt: skip
    with job.local() as run:
        assert all(0 < float(one["loss"]) < 3 for one in run.train_epoch())


@pytest.mark.parametrize(
    ("pipeline", "wanted"),
    [
        (
            lambda: Pipeline({("income", "city", "orders"): "drop"}, age=MinMaxScaler()),
            "MinMaxScaler of 'age' cannot stay secret",
        ),
        (
            lambda: Pipeline({("city", "orders", "age"): "drop"}, income=[SimpleImputer(), StandardScaler()]),
            "only those of its last",
        ),
        (lambda: Pipeline({("city", "orders", "age"): "drop"}, income=SimpleImputer("median")), "cannot stay secret"),
    ],
)
def test_what_cannot_stay_secret(pipeline, wanted):
    with pytest.raises(InputError, match=wanted):
        pipeline().fit(horizontal(), reveal="nobody")


# ---- what goes wrong
def test_everything_that_does_not_fit_is_said_at_once():
    pipeline = Pipeline(
        income=StandardScaler(), city=StandardScaler(), salary=StandardScaler(), defaulted=TargetEncoder("paid")
    )
    with pytest.raises(InputError) as caught:
        pipeline.fit(vertical())
    text = str(caught.value)
    for wanted in (
        "'salary'",
        "'age' is in no step",
        "'orders' is in no step",
        "'income' may be missing",
        "categories of 'city'",
        "'paid'",
    ):
        assert wanted in text


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: Pipeline({("age", "income"): StandardScaler()}, age=MinMaxScaler()), "two steps for 'age'"),
        (lambda: Pipeline(age=3), "int is no step"),
        (lambda: Pipeline(age=[StandardScaler(), "drop"]), "list is no step"),
        (lambda: Pipeline(), "without features"),
        (lambda: Pipeline(age="drop"), "without features"),
        (lambda: steps().transform(vertical()), "not fitted"),
        (lambda: steps()(vertical()), "not fitted"),
        (lambda: steps().then(model()), "not fitted"),
        (lambda: steps().fit(vertical(held_out=True)), "force=True"),
        (lambda: steps().fit(vertical(), reveal="bank"), "reveal='bank'"),
        (lambda: steps().fit(vertical())["salary"], "no column 'salary'"),
        (lambda: steps().fit(vertical())(horizontal()), "another schema"),
        (lambda: steps().fit(vertical()).fit_transform(vertical()), "not the rows of the fit"),
        (
            lambda: Pipeline({("income", "orders", "city"): "drop"}, age=TargetEncoder("defaulted")).fit(vertical()),
            "no categories",
        ),
        (lambda: Pipeline({("income", "orders", "age"): "drop"}, city=WoEEncoder("age")).fit(vertical()), "no boolean"),
        (
            lambda: Pipeline({("income", "orders"): "drop"}, age=WoEEncoder("city"), city="drop").fit(vertical()),
            "may be missing",
        ),
    ],
)
def test_mistakes(make, wanted):
    with pytest.raises(InputError, match=wanted):
        make()


def test_rows_held_out_may_be_forced():
    assert steps().fit(vertical(held_out=True), force=True).feature_names_out


def test_a_label_may_have_steps_and_be_a_category():
    pipeline = Pipeline(
        income=Label(SimpleImputer(), StandardScaler()),
        age="passthrough",
        orders="drop",
        city=Label(SimpleImputer("most_frequent")),
    )
    data = pipeline.fit(joint := vertical())(joint)
    assert list(data.columns) == ["bank", "income", "city", "defaulted"]
    assert data.columns["city"][0].dtype == data.columns["city"][0].tensor.dtype == torch.int64
    assert abs(float(data.columns["income"][0].tensor.mean())) < 1e-5
    assert data.columns["bank"][0].tensor[:, 0].tolist() == table(200)["age"].tolist()


def test_fitted_on_training_rows_only():
    joint = vertical()
    train, test = split_rows(Public(200, 3), 0.8)
    prepared = steps().fit(joint.at(train))
    mean = prepared["age"][0].parameters["data_max_"]
    assert mean.tolist() == [table(200)["age"][train].max()]
    assert len(prepared(joint.at(test, held_out=True))) == 40


# ---- on disk
def test_a_saved_pipeline_is_the_same(tmp_path):
    prepared = Pipeline(
        income=[SimpleImputer("median", add_indicator=True), StandardScaler()], age=WoEEncoder("defaulted", 3), city=OrdinalEncoder(
            encoded_missing_value=-1), orders=TargetEncoderless()
    ).fit(joint := vertical())  # fmt: skip
    prepared.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bank.safetensors",
        "pipeline.json",
        "public.safetensors",
        "shop.safetensors",
    ]
    again = Prepared.load(tmp_path, joint.schema)
    assert again.feature_names_out == prepared.feature_names_out
    np.testing.assert_array_equal(features(again.transform(joint)), features(prepared.transform(joint)))
    (tmp_path / "shop.safetensors").unlink()
    alone = Prepared.load(tmp_path, joint.schema, "bank")
    test = vertical(20, seed=5, me="bank")
    assert torch.equal(alone(test).columns["bank"][0].tensor, prepared(vertical(20, seed=5)).columns["bank"][0].tensor)


def TargetEncoderless():
    return MinMaxScaler((-1, 1), clip=True)


def test_each_party_writes_its_own_file(tmp_path):
    steps().fit(vertical(me="bank")).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bank.safetensors",
        "pipeline.json",
        "public.safetensors",
    ]
    assert (tmp_path / "bank.safetensors").stat().st_mode & 0o077 == 0


def test_rows_of_parties_have_public_parameters(tmp_path):
    prepared = steps().fit(joint := horizontal(60))
    prepared.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipeline.json", "public.safetensors"]
    again = Prepared.load(tmp_path, joint.schema, "east")
    np.testing.assert_array_equal(features(again(joint)), features(prepared(joint)))
