"""The page in a real browser, with parties that compute a linear model on their shares; answers against plain torch."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from securemodel import page as package
from securemodel.edge import recipe
from securemodel.service.app import make_app
from securemodel.service.settings import Settings
from tests.page.lenet import EXAMPLE, MEAN, STD, Digits
from tests.page.linear_service import FRAC_BITS, Model, Party, linear_service, running
from tests.service import front

DRAWS = np.random.default_rng(5)
DIGITS = Model("digits", DRAWS.normal(size=(10, 784)) / 20, DRAWS.normal(size=10), [1, 28, 28], [["divide", 255.0]])
LOANS = Model("loans", DRAWS.normal(size=(2, 3)), DRAWS.normal(size=2), [3], labels=["repays", "<b>defaults</b>"],
              columns=["income", "age", "debt"], kind="probabilities", rows=4)  # fmt: skip
COLORS = Model("colors", DRAWS.normal(size=(4, 48)) / 9, np.zeros(4), [3, 4, 4],
               [["resize", 4, 4], ["divide", 255.0], ["subtract", [0.1, 0.2, 0.3]]])  # fmt: skip
Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def shared() -> Iterator[list[Party]]:
    with linear_service(DIGITS, LOANS, COLORS) as parties:
        yield parties


@pytest.fixture
def parties(shared: list[Party]) -> list[Party]:
    for party in shared:
        party.requests.clear()
        assert not party.faults, "a fault of another test was not met"
    return shared


def address(parties: list[Party], rank: int = 0) -> str:
    return parties[0].service["parties"][rank]["url"] + "/"


def given(parties: list[Party], index: int = -1) -> np.ndarray:
    """What the parties' shares of a request add up to: what the page shared."""
    total = sum(party.requests[index].shares()[0] for party in parties)
    return np.asarray(total) / 2.0**FRAC_BITS


def torch_says(model: Model, x: np.ndarray) -> np.ndarray:
    weights, bias = torch.from_numpy(model.weights), torch.from_numpy(model.bias)
    return torch.nn.functional.linear(torch.from_numpy(x).flatten(1), weights, bias).numpy()


def scores(page: Page) -> np.ndarray:
    cells = page.locator("#answers td").all_inner_texts()
    return np.array([float(cell.removesuffix(" %")) for cell in cells])


def ask(page: Page) -> None:
    page.evaluate("document.getElementById('status').textContent = ''")
    page.click("#go")
    expect(page.locator("#status")).to_contain_text("answered")


def choose(page: Page, model: str, way: str) -> None:
    page.select_option("#model", model)
    if page.locator("#ways").is_visible():
        page.get_by_role("radio", name=way).check()


def picture(values: np.ndarray, name: str = "picture.png") -> dict:
    """A file for an upload."""
    out = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(out, "png")
    return {"name": name, "mimeType": "image/png", "buffer": out.getvalue()}


def table(text: str) -> dict:
    return {"name": "people.csv", "mimeType": "text/csv", "buffer": text.encode()}


def draw(page: Page) -> None:
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 60, steps=5)
    page.mouse.move(box["x"] + 120, box["y"] + 220, steps=5)
    page.mouse.up()


# ---- what people do
def test_a_drawn_digit_gets_the_answer_of_plain_torch(parties: list[Party], visit: Visit) -> None:
    page = visit(address(parties))
    draw(page)
    ask(page)
    x = given(parties)
    assert x.shape == (1, 1, 28, 28) and x.min() == 0 and x.max() == 1 and 30 < (x > 0.5).sum() < 150
    assert x[0, 0, 5:7, 8:20].mean() > 0.9, "the upper stroke is where it was drawn"
    wanted = torch_says(DIGITS, x)[0]
    assert np.abs(scores(page) - wanted).max() < 0.002
    assert page.locator(".answer").inner_text() == str(wanted.argmax())
    assert page.evaluate("document.activeElement.id") == "result-title"


def test_no_party_gets_the_input_and_the_page_shows_what_each_gets(parties: list[Party], visit: Visit) -> None:
    page = visit(address(parties))
    page.click("#example")
    ask(page)
    sent = [party.requests[-1] for party in parties]
    assert [request.tensors[0].share.form for request in sent] == ["values", "seed"]
    shares = [request.shares()[0].reshape(-1) for request in sent]
    begin = int(np.flatnonzero(sum(shares))[0])
    for share, title in zip(shares, ("bank gets", "hospital gets"), strict=True):
        assert len(np.unique(share)) == 784 and np.abs(share / 2.0**63).mean() > 0.4, "uniform, not small numbers"
        shown = page.locator(".share", has_text=title).locator("code").last.inner_text().split()
        assert shown == [f"{int(word) % 2**64:016x}" for word in share[begin : begin + 16]]
    assert sent[1].tensors[0].share.data.hex() in page.locator("#sent").inner_text()
    assert "To see your input, bank and hospital would have to work together." in page.locator("#trust").inner_text()


def test_the_keyboard_is_enough(parties: list[Party], visit: Visit) -> None:
    page = visit(address(parties))
    expect(page.locator("#ask")).to_be_visible()

    def tab_to(id: str) -> None:
        for _ in range(20):
            if page.evaluate("document.activeElement.id") == id:
                return
            page.keyboard.press("Tab")
        pytest.fail(f"{id} cannot be reached with the keyboard")

    tab_to("pad")
    for key in ("Space", "ArrowLeft", "Shift+ArrowLeft", "Shift+ArrowDown"):
        page.keyboard.press(key)
    expect(page.locator("#status")).to_have_text("row 16, column 13, painted")
    tab_to("go")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("answered")
    x = given(parties)[0, 0]
    assert x[14, 14] == x[14, 12] == x[15, 12] == 1 and x[14, 20] == 0 == x[3, 3]
    tab_to("save")
    with page.expect_download():
        page.keyboard.press("Enter")


def test_uploaded_pictures_are_prepared_as_the_recipe_says(parties: list[Party], visit: Visit) -> None:
    page = visit(address(parties))
    choose(page, "colors", "Pictures")
    values = DRAWS.integers(0, 256, (2, 9, 7, 3))
    page.set_input_files("#pictures", [picture(values[0], "first.png"), picture(values[1], "second.png")])
    expect(page.locator("#previews canvas")).to_have_count(2)
    ask(page)
    steps = recipe.read(COLORS.recipe, "x")
    wanted = recipe.apply(steps, values.transpose(0, 3, 1, 2).astype(float), "x")
    x = given(parties)
    assert x.shape == (2, 3, 4, 4) and np.abs(x - wanted).max() <= 2.0**-FRAC_BITS
    names = page.locator("#answers tbody th").all_inner_texts()
    answers = page.locator("#answers tbody td").all_inner_texts()
    assert names == ["first.png", "second.png"]
    assert [int(answer.split(":")[0]) for answer in answers] == torch_says(COLORS, x).argmax(1).tolist()


def test_a_gray_picture_can_be_turned_light_on_dark(parties: list[Party], visit: Visit) -> None:
    page = visit(address(parties))
    choose(page, "digits", "Pictures")
    page.set_input_files("#pictures", [picture(np.full((28, 28), 255))])
    page.check("#swap")
    ask(page)
    assert not given(parties).any()


def test_rows_of_a_table_are_matched_by_name_and_come_back_as_csv(parties: list[Party], visit: Visit) -> None:
    page = visit(address(parties))
    choose(page, "loans", "CSV file")
    rows = DRAWS.normal(size=(11, 3)).round(3)
    lines = "".join(f'"{debt}",x y,{income},{age}\r\n' for income, age, debt in rows)
    page.set_input_files("#csv", [table("debt,note,income,age\r\n" + lines)])
    expect(page.locator("#csv-found")).to_have_text("11 rows. Left out: note.")
    ask(page)
    expect(page.locator("#status")).to_have_text("11 of 11 answered.")
    assert [request.rows for request in parties[0].requests] == [4, 4, 3]
    with page.expect_download() as download:
        page.click("#save")
    found = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    wanted = torch_says(LOANS, rows)
    assert [row["row"] for row in found] == [f"line {line}" for line in range(2, 13)]
    names = ["y repays", "y <b>defaults</b>"]
    assert np.abs(np.array([[float(row[name]) for name in names] for row in found]) - wanted).max() < 1e-3
    assert [row["y answer"] for row in found] == [LOANS.labels[best] for best in wanted.argmax(1)]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("income,age\n1,2\n", ["line 1: the column debt is missing"]),
        ("income,age,debt,age\n1,2,3,4\n", ["line 1: the column age is there twice"]),
        ("income,age,debt\n1,2,3\n1,,3\n1,2\n1,2,1e400x\n",
         ["line 3, column age: it is empty", "line 4: 2 cells, but line 1 has 3", "line 5, column debt: “1e400x” is not a number"]),
        ('income,age,debt\n1,2,"3\n', ["line 2: a quotation mark is wrong, or never closed"]),
        ("income,age,debt\n", ["the file needs a line of names, and rows"]),
        ("income,age,debt\n1,2,3\n4,1e9,6\n", ["number 5 is beyond ±1048576"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_told_and_nothing_is_sent(
    parties: list[Party], visit: Visit, text: str, faults: list[str]
) -> None:
    page = visit(address(parties))
    choose(page, "loans", "CSV file")
    page.set_input_files("#csv", [table(text)])
    page.click("#go")
    expect(page.locator("#faults p")).to_have_text(faults)
    assert not parties[0].requests and not page.locator("#result").is_visible()


def test_typed_numbers(parties: list[Party], visit: Visit) -> None:
    page = visit(address(parties))
    choose(page, "loans", "Type")
    page.get_by_label("income").fill("1.5")
    page.get_by_label("debt").fill("1,5")
    page.click("#go")
    expect(page.locator("#faults")).to_have_text("A number is missing or wrong: age, debt.")
    assert page.evaluate("document.activeElement.title") == "age"
    page.get_by_label("age").fill("-2")
    page.get_by_label("debt").fill("1e-1")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("1 of 1 answered.")
    assert np.abs(given(parties) - [[1.5, -2, 0.1]]).max() < 2.0**-FRAC_BITS
    assert np.abs(scores(page) - 100 * torch_says(LOANS, np.array([[1.5, -2, 0.1]]))[0]).max() < 0.1
    assert "<b>defaults</b>" in page.locator("#answers").inner_text(), "texts of a service are no markup"


# ---- many rows, and parties that refuse
def test_only_failed_rows_are_asked_again(parties: list[Party], visit: Visit) -> None:
    page = visit(address(parties))
    choose(page, "loans", "CSV file")
    page.set_input_files("#csv", [table("income,age,debt\n" + "".join(f"{n},0,0\n" for n in range(10)))])
    parties[1].faults += [None, {"status": 429, "code": "budget", "what": "the budget of today is used up"}, None]
    page.click("#go")
    expect(page.locator("#status")).to_have_text("6 of 10 answered.")
    expect(page.locator("#faults")).to_have_text("hospital: the budget of today is used up")
    assert page.locator("#answers").get_by_text("failed: budget").count() == 4
    before = len(parties[0].requests)
    page.click("#retry")
    expect(page.locator("#status")).to_have_text("10 of 10 answered.")
    assert len(parties[0].requests) == before + 1 and given(parties)[:, 0].tolist() == [4, 5, 6, 7]
    assert not page.locator("#retry").is_visible()


def test_many_rows_can_be_paused(parties: list[Party], visit: Visit) -> None:
    page = visit(address(parties))
    choose(page, "loans", "CSV file")
    page.set_input_files("#csv", [table("income,age,debt\n" + "1,2,3\n" * 700)])
    held: list = []
    page.route("**/infer_many", lambda route: held.append(route) if len(held) < 2 else route.continue_())
    page.click("#go")
    expect(page.locator("#pause")).to_be_visible()
    page.click("#pause")
    expect(page.locator("#pause")).to_have_text("Go on")
    page.wait_for_timeout(100)
    assert len(held) == 2, "one POST to each party"
    for route in held:
        route.continue_()
    expect(page.locator("#status")).to_have_text("256 of 700 rows")
    assert len(parties[0].requests) == 64
    page.click("#pause")
    expect(page.locator("#status")).to_have_text("700 of 700 answered.")
    assert "700 rows; the CSV file has all of them." in page.locator("#answers").inner_text()


def test_what_is_refused_for_a_moment_is_asked_again_with_new_shares(parties: list[Party], visit: Visit) -> None:
    page = visit(address(parties), expected=("503",))
    page.click("#example")
    parties[1].faults.append({"status": 503, "code": "queue_full", "what": "the queue is full", "retry_after": 0.1})
    ask(page)
    first, second = parties[0].requests
    assert first.id != second.id and not np.array_equal(first.shares()[0], second.shares()[0])
    assert np.array_equal(
        second.shares()[0] + parties[1].requests[-1].shares()[0], np.rint(given(parties) * 65536).astype(int)
    )
    assert "asked 2 times" in page.locator("#sent").inner_text()


def test_a_party_that_cannot_be_reached_is_named(parties: list[Party], visit: Visit) -> None:
    page = visit(address(parties), expected=("ERR_FAILED",))
    expect(page.locator("#ask")).to_be_visible()
    page.route(f"{address(parties, 1)}v2/**", lambda route: route.abort())
    page.click("#example")
    page.click("#go")
    expect(page.locator("#faults")).to_have_text("hospital: cannot be reached in time")
    assert len({request.id for request in parties[0].requests}) == 1


def test_an_api_key_is_asked_for_and_kept_nowhere(visit: Visit) -> None:
    with linear_service(DIGITS, key="s3cret") as parties:
        page = visit(address(parties), expected=("401",))
        page.click("#example")
        page.click("#go")
        expect(page.locator("#faults")).to_have_text("bank: the API key is not known (ask for a new one)")
        page.get_by_label("API key").fill("s3cret")
        ask(page)
        assert np.abs(scores(page) - torch_says(DIGITS, given(parties))[0]).max() < 0.002
        kept = page.evaluate(
            "JSON.stringify([localStorage, sessionStorage, document.cookie, history.state, location.href])"
        )
        assert json.loads(kept) == [{}, {}, "", None, address(parties)]


# ---- who serves the page
def test_a_page_from_another_origin_reaches_all_parties(parties: list[Party], visit: Visit) -> None:
    other = Party("mirror", 0, {}, service=parties[0].service)
    routes = [Route("/service.json", lambda _: JSONResponse(other.service)), Route("/{path:path}", other.file)]
    with running(Starlette(routes=routes)) as (url,):
        page = visit(url)
        page.click("#example")
        ask(page)
        assert np.abs(scores(page) - torch_says(DIGITS, given(parties))[0]).max() < 0.002


def test_the_offline_page_works_from_a_disk(parties: list[Party], visit: Visit, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(package.offline_page(parties[0].service))
    page = visit(path.as_uri())
    page.click("#example")
    ask(page)
    assert np.abs(scores(page) - torch_says(DIGITS, given(parties))[0]).max() < 0.002


@pytest.mark.parametrize("way", ["file", "address"])
def test_the_offline_page_can_be_given_a_service(parties: list[Party], visit: Visit, tmp_path: Path, way: str) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(package.offline_page())
    page = visit(path.as_uri())
    if way == "file":
        text = json.dumps(parties[0].service).encode()
        page.set_input_files(
            "#service-file", [{"name": "service.json", "mimeType": "application/json", "buffer": text}]
        )
    else:
        page.get_by_label("or its address").fill(address(parties))
        page.click("#load")
    page.click("#example")
    ask(page)
    assert np.abs(scores(page) - torch_says(DIGITS, given(parties))[0]).max() < 0.002


@pytest.mark.parametrize("path", ["app.js", "share.js", "style.css"])
def test_a_file_with_one_byte_more_is_refused(visit: Visit, path: str) -> None:
    with linear_service(DIGITS) as parties:
        kind, content, mark = parties[0].files[path]
        parties[0].files[path] = kind, content + b"\n", mark
        page = visit(address(parties), expected=("Failed to find a valid digest",))
        page.wait_for_timeout(300)
        if path == "style.css":
            assert page.evaluate("document.styleSheets.length") == 0
        else:
            expect(page.locator("#notice")).to_contain_text("It has not started")
            assert not page.locator("#ask").is_visible()


def test_a_script_that_the_page_does_not_know_never_runs(parties: list[Party], visit: Visit) -> None:
    page = visit(address(parties), expected=("TrustedHTML", "TrustedScript"))
    expect(page.locator("#ask")).to_be_visible()
    page.evaluate("""() => {
        const add = (fill) => { const script = document.createElement("script"); fill(script); document.body.append(script); };
        try { document.body.insertAdjacentHTML("beforeend", "<b>markup</b>"); } catch (error) { console.error(String(error)); }
        try { add((script) => { script.text = "window.stolen = 1"; }); } catch (error) { console.error(String(error)); }
    }""")
    assert page.evaluate("window.stolen") is None and page.locator("b").count() == 0


def test_the_copies_of_the_page_are_compared(visit: Visit) -> None:
    with linear_service(DIGITS) as parties:
        kind, content, mark = parties[1].files["share.js"]
        parties[1].files["share.js"] = kind, content + b"//", mark
        page = visit(address(parties))
        page.click("#compare")
        expect(page.locator("#copies td")).to_have_text(
            [f"{len(package.files())} files as listed", "differs: share.js"]
        )


# ---- everybody can use it
def test_axe_finds_nothing_in_any_view(visit: Visit) -> None:
    with linear_service(DIGITS, LOANS, key="k") as parties:
        page = visit(address(parties), expected=("401",))

        def examine(view: str) -> None:
            for scheme, rules in (("light", None), ("dark", {"runOnly": ["color-contrast"]})):
                page.emulate_media(color_scheme=scheme)
                found = Axe().run(page, options=rules).response
                assert found["passes"]
                told = "; ".join(f"{one['id']} {one['nodes'][0]['html']}" for one in found["violations"])
                assert not told, f"{view}, {scheme}: {told}"

        page.click("#example")
        page.click("#go")
        expect(page.locator("#faults")).to_be_visible()
        examine("draw, with a fault")
        page.fill("#key", "k")
        ask(page)
        page.click("#compare")
        expect(page.locator("#copies table")).to_be_visible()
        examine("one answer, what is revealed, copies")
        page.get_by_role("radio", name="Pictures").check()
        page.set_input_files("#pictures", [picture(np.zeros((28, 28)))])
        expect(page.locator("#previews canvas")).to_have_count(1)
        examine("pictures")
        choose(page, "loans", "Type")
        examine("fields")
        page.get_by_role("radio", name="CSV file").check()
        page.set_input_files("#csv", [table("income,age,debt\n" + "1,2,3\n" * 5)])
        ask(page)
        examine("many answers")


def test_the_offline_page_without_a_service_is_accessible(visit: Visit, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(package.offline_page())
    page = visit(path.as_uri())
    expect(page.locator("#connect")).to_be_visible()
    assert not Axe().run(page).response["violations"]


def test_nothing_is_wider_than_a_phone_of_320_pixels(parties: list[Party], visit: Visit) -> None:
    page = visit(address(parties), viewport={"width": 320, "height": 640})
    page.click("#example")
    ask(page)
    page.click("#compare")
    expect(page.locator("#copies table")).to_be_visible()
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) == 320
    choose(page, "loans", "CSV file")
    page.set_input_files("#csv", [table("income,age,debt\n" + "1,2,3\n" * 5)])
    ask(page)
    assert page.evaluate(wide) == 320
    font = page.evaluate("parseFloat(getComputedStyle(document.querySelector('#status')).fontSize)")
    assert font >= 16


def test_names_of_files_and_services_are_never_markup(visit: Visit) -> None:
    bad = '<img src="x" onerror="alert(1)">'
    with linear_service(DIGITS) as parties:
        parties[0].service.update(name=bad, trust=[bad])
        parties[0].service["models"][0]["card"]["labels"] = [bad] * 10
        page = visit(address(parties))
        page.get_by_role("radio", name="Pictures").check()
        page.set_input_files("#pictures", [picture(np.zeros((28, 28)), f"{bad}.png".replace("/", ""))])
        ask(page)
        assert page.locator("img").count() == 0 and page.title() == bad
        assert re.search("onerror", page.locator("#trust").inner_text())


# ---- with the secure engine
@pytest.fixture(scope="module")
def lenet() -> Iterator[tuple[Digits, list[Party]]]:
    digits = Digits()
    with digits.session, linear_service(digits) as parties:
        yield digits, parties


def test_digits_read_by_the_engine_are_those_of_plain_torch(lenet: tuple[Digits, list[Party]], visit: Visit) -> None:
    digits, parties = lenet
    page = visit(address(parties))
    page.click("#example")
    ask(page)
    assert page.locator(".answer").inner_text() == "7"
    with torch.no_grad():
        wanted = digits.plain(torch.from_numpy(given(parties)).float()).numpy()
    assert np.abs(scores(page) - wanted[0]).max() < 0.005
    page.get_by_role("radio", name="Pictures").check()
    images = np.load(EXAMPLE / "images.npz")
    page.set_input_files("#pictures", [picture(image, f"{n}.png") for n, image in enumerate(images["images"][:20])])
    ask(page)
    with torch.no_grad():
        pixels = torch.from_numpy(images["images"][:20]).float().unsqueeze(1) / 255
        wanted = digits.plain((pixels - MEAN) / STD).argmax(1).tolist()
    answers = page.locator("#answers tbody td").all_inner_texts()
    assert [int(answer.split(":")[0]) for answer in answers] == wanted
    assert (np.array(wanted) == images["labels"][:20]).mean() > 0.8


# ---- with the real front
def test_the_page_of_real_fronts_asks_them(visit: Visit) -> None:
    service: dict = {}
    keys, marks = front.Keys(), {path: mark for path, (_, _, mark) in package.files().items()}
    apps = [
        make_app(front.Desk(), front.settings(rank=rank, document=lambda: service, keys=keys, now_ms=Settings.now_ms))
        for rank in range(2)
    ]
    with running(*apps) as urls:
        parties = [
            {"name": name, "url": url, "page": marks} for name, url in zip(("bank", "hospital"), urls, strict=True)
        ]
        service.update({**front.SERVICE, "parties": parties, "dealer": "notary", "keys": True, "trust": ["nobody"]})
        page = visit(urls[1], expected=("401",))
        page.get_by_role("radio", name="CSV file").check()
        rows = DRAWS.uniform(-1, 1, (20, 4)).round(3)
        page.set_input_files("#csv", [table("a,b,c,d\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows))])
        page.click("#go")
        expect(page.locator("#faults")).to_contain_text("bank: ")
        page.fill("#key", keys.lines)
        ask(page)
        with page.expect_download() as download:
            page.click("#save")
        found = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
        answers = np.array([[float(row[f"y {index}"]) for index in range(3)] for row in found])
        assert np.abs(answers - rows @ front.WEIGHTS).max() < 1e-3
        page.click("#compare")
        expect(page.locator("#copies td")).to_have_text([f"{len(marks)} files as listed"] * 2)
