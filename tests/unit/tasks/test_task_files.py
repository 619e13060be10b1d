"""Task files: the three kinds, all sources of rows, and one line for every mistake."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from support.hub import fake_hub

from justforward.tasks import find_task, names
from justforward.tasks.from_file import digest, pinned

ROOT = Path(__file__).parents[3]
OPTIONS = '[options]\n0 = " terrible"\n1 = " great"\n'
REVIEWS = 'name = "reviews"\nprompt = "Review: {text}\\nIt was"\nlabel = "label"\n'
CLASSIFICATION = REVIEWS + 'train = "a.csv"\nvalidation = "a.csv"\n' + OPTIONS
CHOICE = (
    'name = "quiz"\nprompt = "Q: {q}\\nA:"\nchoices = ["a", "b"]\nanswer = "right"\n'
    'train = "a.jsonl"\nvalidation = "a.jsonl"\n'
)
GENERATION = 'name = "capitals"\nprompt = "{q}"\nanswer = "a"\ntrain = "a.jsonl"\nvalidation = "a.jsonl"\n'
CSV = 'text,label\nfine,1\n"bad, very bad",0\n'


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text(CSV)


def load(toml, name="task.toml"):
    Path(name).write_text(toml, encoding="utf-8")
    return find_task("", name)


def load_rows(toml, *rows):
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load(toml)
    return task, task.load(None).train


def error_of(work, *arguments):
    with pytest.raises(ValueError) as caught:
        work(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_classification_from_csv():
    task = load(CLASSIFICATION)
    splits = task.load(None)
    first, second = splits.train
    assert (task.name, task.metric, task.generation, task.separator) == ("reviews", "accuracy", False, "\n\n")
    assert first.candidates == ("0", "1")
    assert [s.correct for s in splits.train] == ["1", "0"]
    assert [s.id for s in splits.validation] == [0, 1]
    assert task.verbalize(second, "0") == "Review: bad, very bad\nIt was terrible"
    assert task.prompt_sfc(first) == ""


@pytest.mark.parametrize(("value", "key"), [(1, "1"), ("1", "1"), (0, "0")])
def test_labels_are_compared_as_text(value, key):
    _, (sample,) = load_rows(CLASSIFICATION.replace("a.csv", "a.jsonl"), {"text": "x", "label": value})
    assert sample.correct == key


def test_truth_values_and_numbers_are_text_as_in_json():
    toml = REVIEWS.replace("{text}", "{text} {stars}") + 'train = "a.jsonl"\nvalidation = "a.jsonl"\n'
    toml += '[options]\ntrue = " yes"\nfalse = " no"\n'
    task, (sample,) = load_rows(toml, {"text": True, "stars": 4.5, "label": False})
    assert (task.prompt(sample), sample.correct) == ("Review: true 4.5\nIt was", "false")


def test_other_keys_of_a_task():
    toml = (
        'calibration = "It was"\nseparator = " ### "\nmay_be_empty = ["text"]\nmetric = "accuracy"\n'
        + CLASSIFICATION
        + '[columns]\ntext = "Review Text"\n'
    )
    Path("a.csv").write_text("Review Text,label\n,1\n")
    task = load(toml)
    (sample,) = task.load(None).train
    assert (task.prompt(sample), task.prompt_sfc(sample), task.separator) == ("Review: \nIt was", "It was", " ### ")


@pytest.mark.parametrize(("answer", "right"), [(1, "no"), ("1", "no"), ("no", "no"), (0, "yes"), ("yes", "yes")])
def test_choices_by_index_or_text(answer, right):
    first = {"q": "?", "a": "yes", "b": "no", "right": 0}
    task, (_, sample) = load_rows(CHOICE, first, {**first, "right": answer})
    assert (sample.candidates, sample.correct) == (("yes", "no"), right)
    assert task.target(sample) == ("yes", "no").index(right)
    assert task.verbalize(sample, "yes") == "Q: ?\nA: yes"


def test_choices_in_one_list_with_a_text_of_their_own():
    toml = CHOICE.replace('["a", "b"]', '"c"') + 'choice_text = " {choice}, {unit}."\nanswer_kind = "index"\n'
    task, (sample,) = load_rows(toml, {"q": "?", "c": [3, "4", "5"], "unit": "m", "right": 2})
    assert (sample.candidates, sample.correct) == (("3", "4", "5"), "5")
    assert task.verbalize(sample, "4") == "Q: ?\nA: 4, m."


def test_an_answer_that_could_be_two_choices_must_be_explained():
    row = {"q": "?", "a": "1", "b": "2", "right": "1"}
    message = error_of(load_rows, CHOICE, row)
    assert message.startswith("a.jsonl, line 1: field 'right' is '1', which is a choice and the index of another")
    for kind, right in (("text", "1"), ("index", "2")):
        _, (sample,) = load_rows(CHOICE + f'answer_kind = "{kind}"\n', row)
        assert sample.correct == right


def test_generation():
    task, (one, two) = load_rows(GENERATION, {"q": "x", "a": "y"}, {"q": "x", "a": ["y", 7]})
    assert (task.generation, task.metric) == (True, "f1")
    assert (one.candidates, one.correct, two.correct) == (None, ("y",), ("y", "7"))
    assert task.verbalize(one, task.gold(one)) == "x y\n"
    toml = GENERATION + 'answer_text = ": {answer}."\nmetric = "em"\n'
    task, (one,) = load_rows(toml, {"q": "x", "a": "y"})
    assert (task.verbalize(one, "y"), task.metric) == ("x: y.", "em")


def write_rows(name, rows):
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), name)
    elif name.endswith("json"):
        Path(name).write_text(json.dumps(rows))
    elif name.endswith("jsonl"):
        Path(name).write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        mark = "\t" if name.endswith("tsv") else ","
        lines = [mark.join(map(str, row.values())) for row in rows]
        Path(name).write_text("\r\n".join([mark.join(rows[0]), *lines, ""]), encoding="utf-8-sig")


@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.json", "r.jsonl", "r.parquet"])
def test_every_kind_of_file_gives_the_same_rows(name):
    write_rows(name, [{"text": "Zoë", "label": 1}, {"text": "b", "label": 0}])
    samples = load(CLASSIFICATION.replace("a.csv", name)).load(None).train
    assert [(s.data["text"], s.correct) for s in samples] == [("Zoë", "1"), ("b", "0")]


def test_files_are_relative_to_the_task_file(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    Path("deep/task.toml").write_text(CLASSIFICATION)
    Path("a.csv").rename("deep/a.csv")
    assert len(find_task("", "deep/task.toml").load(None).train) == 2


@pytest.mark.parametrize(("size", "count"), [(3, 3), (0.2, 2), (0.01, 1)])
def test_a_split_is_a_function_of_its_seed(size, count):
    Path("a.csv").write_text("text,label\n" + "".join(f"row {i},1\n" for i in range(10)))

    def halves(seed):
        toml = REVIEWS + f'file = "a.csv"\nsplit = {{ validation = {size}, seed = {seed} }}\n' + OPTIONS
        splits = load(toml).load(None)
        return [[s.data["text"] for s in half] for half in (splits.train, splits.validation)]

    train, validation = halves(0)
    assert len(validation) == count
    assert sorted(train + validation) == [f"row {i}" for i in range(10)]
    assert (train, validation) == (sorted(train), sorted(validation))
    assert halves(0) == [train, validation]
    assert any(halves(seed) != [train, validation] for seed in (1, 2, 3))


def test_rows_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(path, config, *, split):
        asked.append((path, config, split))
        return [[{"text": f"{name} {i}", "label": 1} for i in range(4)] for name in split]

    fake_hub(monkeypatch, load_dataset)
    hub = REVIEWS + 'hub = "me/reviews"\nconfig = "en"\n'
    assert len(load(hub + 'validation = "test"\n' + OPTIONS).load(None).validation) == 4
    splits = load(hub + "split = { validation = 1 }\n" + OPTIONS).load(None)
    assert asked == [("me/reviews", "en", ["train", "test"]), ("me/reviews", "en", ["train"])]
    assert (len(splits.train), len(splits.validation)) == (3, 1)


def test_hub_that_cannot_be_reached(monkeypatch):
    def load_dataset(path, config, *, split):
        raise ConnectionError("no\nnetwork")

    fake_hub(monkeypatch, load_dataset)
    message = error_of(load(REVIEWS + 'hub = "me/reviews"\n' + OPTIONS).load, None)
    assert message.startswith("reviews: cannot reach me/reviews on the Hugging Face hub (no network); with files, the")


class FromTheLibrary(Exception):
    """What no reader of ours raises."""


def test_whatever_the_library_of_data_sets_raises_is_one_line(monkeypatch):
    def fails(path, config, *, split):
        raise FromTheLibrary("scripts are\nno longer run") from OSError("found me.py")

    def fails_later(path, config, *, split):
        return [broken_rows(), []]

    def broken_rows():
        yield {"text": "x", "label": 1}
        raise FromTheLibrary("cannot decode")

    task = load(REVIEWS + 'hub = "me/reviews"\n' + OPTIONS)
    fake_hub(monkeypatch, fails)
    assert error_of(task.load, None).startswith(
        "reviews: the data set me/reviews cannot be read (scripts are no longer run: found me.py); its splits are named"
    )
    fake_hub(monkeypatch, fails_later)
    assert "the data set me/reviews cannot be read (cannot decode); " in error_of(task.load, None)
    fake_hub(monkeypatch, fails)
    message = error_of(find_task("SST2").load, None)
    assert message.startswith(
        "SST2: the data set nyu-mll/glue cannot be read (scripts are no longer run: found me.py); "
    )
    assert "; without the hub, give --data_dir DIR" in message


def test_what_a_library_says_leaves_room_for_the_mend(monkeypatch):
    def fails(path, config, *, split):
        raise FromTheLibrary("cannot cast " + "text: string\n" * 99 + "as names don't match") from OSError("x" * 999)

    fake_hub(monkeypatch, fails)
    message = error_of(load(REVIEWS + 'hub = "me/reviews"\n' + OPTIONS).load, None)
    assert message.startswith("reviews: the data set me/reviews cannot be read (cannot cast text: string text: string ")
    assert " ... " in message
    assert "as names don't match: xxx" in message
    assert message.index("; its splits are named by train and validation") < 450


@pytest.mark.parametrize("hub", ["./rows", "rows", "{tmp_path}/deep/rows"])
def test_a_folder_as_a_data_set_is_relative_to_the_task_file(hub, monkeypatch, tmp_path):
    asked = []

    def load_dataset(path, config, *, split):
        asked.append(path)
        return [[{"text": "x", "label": 1}]] * 2

    fake_hub(monkeypatch, load_dataset)
    Path("deep/rows").mkdir(parents=True)
    load(REVIEWS + f'hub = "{hub}"\n'.format(tmp_path=tmp_path) + OPTIONS, "deep/task.toml").load(None)
    assert asked in (["./deep/rows"], [f"{tmp_path}/deep/rows"])


TOP = "task.toml: "
WRONG_TOML = [
    (CLASSIFICATION.replace("prompt", "promt"), "unknown key 'promt' (did you mean 'prompt'?); known: name, prompt"),
    (CLASSIFICATION.replace('"Review: {text}\\nIt was"', "3"), "prompt: must be a string, not 3"),
    (CLASSIFICATION.replace("{text}", "{text"), "prompt: unbalanced braces (expected '}' before end of string): a fi"),
    (CLASSIFICATION.replace("{text}", "text}"), "prompt: unbalanced braces (Single '}' encountered in format string)"),
    (CLASSIFICATION.replace("{text}", "{text.x}"), "prompt: {text.x} must be the plain name of a field"),
    (CLASSIFICATION.replace("{text}", "{text[0]}"), "prompt: {text[0]} must be the plain name of a field"),
    (CLASSIFICATION.replace("{text}", "{text!r}"), "prompt: {text} must be the plain name of a field"),
    (CLASSIFICATION.replace("{text}", "{text:>{w}}"), "prompt: {text} must be the plain name of a field"),
    (CLASSIFICATION.replace("{text}", "{}"), "prompt: {} names no field"),
    (CLASSIFICATION.replace("{text}", "{{text}}"), "prompt: names no {field}"),
    (CLASSIFICATION.replace("{text}", "{text} {label}"), "prompt: {label} is what is to be answered"),
    (CLASSIFICATION + "[columns]\nx = 3\n", "columns.x: must be a string, not 3"),
    (CLASSIFICATION.replace("name = ", "# "), "the key 'name' is missing"),
    (
        CLASSIFICATION.replace("name =", "#") + 'name = "x"\n',
        "'name' is missing (keys below [options] or another table",
    ),
    (CLASSIFICATION.replace('"reviews"', '"a/b"'), "name: must be of letters, digits"),
    (CLASSIFICATION.replace('"reviews"', '"SST2"'), "name: 'SST2' is a task of its own already"),
    ('name = "x"\n' + CLASSIFICATION, "not valid TOML: a key is given twice (at line 2, column 17)"),
    (CLASSIFICATION + "[options\n", "not valid TOML: "),
    (
        CLASSIFICATION.replace('label = "label"\n', ""),
        "what is to be answered? Give label and [options], or choices and",
    ),
    ('answer = "label"\n' + CLASSIFICATION, "given are: answer, label, options"),
    (GENERATION.replace('answer = "a"\n', ""), "given are: none of them"),
    (CHOICE.replace('answer = "right"\n', ""), "given are: choices"),
    (CHOICE.replace('["a", "b"]', '["a", "a"]'), "choices: must be a list of different strings, not ['a', 'a']"),
    (CHOICE.replace('["a", "b"]', "[1]"), "choices: must be a list of different strings, not [1]"),
    (CHOICE + 'answer_kind = "word"', "answer_kind: must be 'index' or 'number' or 'letter' or 'text', not 'word'"),
    (CHOICE + 'choice_text = " {option}"', "choice_text: must hold {choice}"),
    (CHOICE + 'answer_text = "x"', "answer_text: is for generation, and this is multiple choice: leave it out"),
    (CHOICE.replace("{q}", "{q}{right}"), "prompt: {right} is what is to be answered"),
    (
        GENERATION + 'calibration = "x"',
        "calibration: is for classification and multiple choice, and this is generation",
    ),
    (GENERATION + 'answer_text = "x"', "answer_text: must hold {answer}"),
    (GENERATION + 'metric = "accuracy"', "metric: accuracy is no metric of generated text; use f1 or em"),
    ('metric = "f1"\n' + CLASSIFICATION, "metric: f1 is no metric of a chosen option; use accuracy"),
    ('metric = "acuracy"\n' + CLASSIFICATION, "metric: unknown metric 'acuracy' (did you mean 'accuracy'?)"),
    (CLASSIFICATION + 'metric = "accuracy"\n', "options.metric: stands below [options]: move metric above it"),
    (CLASSIFICATION.replace('1 = " great"\n', ""), "options: there must be at least two, not 1"),
    (CLASSIFICATION.replace(" great", " "), "options.1: is empty"),
    (CLASSIFICATION.replace(" great", " terrible "), "options.1: has the text of options.0"),
    (CLASSIFICATION.replace('" great"', "3"), "options.1: must be a string, not 3"),
    ('may_be_empty = ["txt"]\n' + CLASSIFICATION, "may_be_empty: no template names 'txt' (did you mean 'text'?)"),
    (REVIEWS + OPTIONS, "where are the rows? Give train and validation, or file and split, or hub; 'train' is missing"),
    (
        REVIEWS + 'train = "a.csv"\n' + OPTIONS,
        "where are the rows? Give train and validation, or file and split, or hub; 'va",
    ),
    (REVIEWS + 'file = "a.csv"\n' + OPTIONS, "or hub; 'split' is missing"),
    (REVIEWS + 'hub = "x/y"\nfile = "a.csv"\n' + OPTIONS, "file: does not go with hub: leave it out"),
    ('file = "a.csv"\nsplit = { validation = 1 }\n' + CLASSIFICATION, "train: does not go with file and split"),
    ("split = { validation = 1 }\n" + CLASSIFICATION, "split: does not go with train and validation: leave it out"),
    (
        REVIEWS + 'file = "a.csv"\nsplit = { validation = 1.5 }\n' + OPTIONS,
        "split.validation: must be a share between 0",
    ),
    (REVIEWS + 'file = "a.csv"\nsplit = { seed = 1 }\n' + OPTIONS, "split.validation: must be a share between 0 and 1"),
    (REVIEWS + 'file = "a.csv"\nsplit = { validation = 1, sed = 1 }\n' + OPTIONS, "split: unknown key 'sed'"),
    (REVIEWS + 'file = "a.csv"\nsplit = { validation = 1, seed = -1 }\n' + OPTIONS, "split.seed: must be an integer"),
    (REVIEWS + 'hub = "./none"\n' + OPTIONS, "hub: there is no folder none"),
    (REVIEWS + 'hub = "x/y"\nquotes = true\n' + OPTIONS, "quotes: is for .csv and .tsv files: leave it out"),
    ("quotes = true\n" + CHOICE, "quotes: is for .csv and .tsv files: leave it out"),
    ('quotes = "none"\n' + CLASSIFICATION, "quotes: must be true or false, not 'none'"),
    ('delimiter = ";;"\n' + CLASSIFICATION, "delimiter: must be one character, and no quotation mark, not ';;'"),
    ("delimiter = '\"'\n" + CLASSIFICATION, "delimiter: must be one character"),
    ("may_be_empty = [1]\n" + CLASSIFICATION, "may_be_empty: must be a list of strings, not [1]"),
    ('may_be_empty = ["right"]\n' + CHOICE, "may_be_empty: no template names 'right'; named are: q, a, b"),
    (CLASSIFICATION + '"1.0" = " good"\n', "options.1.0: is the same label as options.1"),
    (CLASSIFICATION + f"x = {'[' * 2000}", "not valid TOML: too deeply nested"),
    (CLASSIFICATION + f"x = {'1' * 5000}", "not valid TOML: Exceeds the limit"),
]


@pytest.mark.parametrize(("toml", "complaint"), WRONG_TOML, ids=range(len(WRONG_TOML)))
def test_wrong_task_file(toml, complaint):
    Path("a.jsonl").write_text("")
    message = error_of(load, toml)
    assert message.startswith(TOP)
    assert complaint in message
    assert names() == sorted(names())


def test_files_that_cannot_be_read():
    missing = CLASSIFICATION.replace("a.csv", "b.csv")
    assert error_of(load, missing) == "b.csv: cannot be read: No such file or directory"
    Path("b.txt").write_text("")
    message = error_of(load, CLASSIFICATION.replace("a.csv", "b.txt"))
    assert message == "b.txt: unknown kind of file: the name ends with one of .jsonl, .json, .csv, .tsv, .parquet"
    assert error_of(find_task, "", "no.toml") == "no.toml: there is no such file"
    assert error_of(find_task, "", "a.csv") == "a.csv: a task file ends with .toml or .py"
    Path("task.toml").write_bytes(b'name = "caf\xe9"')
    assert error_of(find_task, "", "task.toml") == "task.toml: not UTF-8 text; save the file as UTF-8"


WRONG_CSV = [
    ("txt,label\nx,1\n", "line 2: field 'text' is missing (did you mean 'txt'?); the fields present are: txt, label"),
    (CSV + "x,2\n", "line 4: field 'label' must be one of '0', '1', not '2'"),
    (CSV + " ,1\n", "line 4: field 'text' is empty (may_be_empty = [\"text\"] in the task file allows that)"),
    ('text,label\n"two\nlines",1\n,0\n', "line 4: field 'text' is empty"),
    (CSV + "a,b,1\n", "line 4: 3 cells, and the first line names 2 columns: text, label (a cell with the delimiter"),
    (CSV + "a\n", "line 4: 1 cells, and the first line names 2 columns"),
    (CSV + '"open,1\nmore,1\n', "line 4: not valid CSV: unexpected end of data (a cell with quotes or"),
    (CSV + '"a" b,1\n', "line 4: not valid CSV: ',' expected after '\"'"),
    ("text,label,text\nx,1,y\n", "line 1: the column 'text' is given twice"),
    ("text,label\n", "there are no rows in it"),
    ("", "there are no rows in it"),
]


@pytest.mark.parametrize(("csv", "complaint"), WRONG_CSV, ids=range(len(WRONG_CSV)))
def test_wrong_csv(csv, complaint):
    Path("a.csv").write_text(csv)
    message = error_of(load(CLASSIFICATION).load, None)
    assert message.startswith(("a.csv, line ", "a.csv: "))
    assert complaint in message


def test_csv_that_is_not_utf8():
    Path("a.csv").write_bytes(CSV.encode() + b"caf\xe9,1\n")
    assert error_of(load(CLASSIFICATION).load, None) == "a.csv: not UTF-8 text; save the file as UTF-8"


WORDS = CLASSIFICATION.replace("a.csv", "a.jsonl").replace("0 =", "negative =").replace("1 =", "positive =")
GOOD_CHOICE = {"q": "?", "a": "yes", "b": "no", "right": 0}
WRONG_ROWS = [
    (WORDS, "x", "a row must be a JSON object with text, not 'x'"),
    (WORDS, {"text": "x"}, "field 'label' is missing; the fields present are: text"),
    (WORDS, {"text": None, "label": "positive"}, "field 'text' must be a string, not None"),
    (WORDS, {"text": ["x"], "label": "positive"}, "field 'text' must be a string, not ['x']"),
    (
        WORDS,
        {"text": "x", "label": "postive"},
        "one of 'negative', 'positive', not 'postive' (did you mean 'positive'?)",
    ),
    (
        WORDS + '[columns]\ntext = "txet"\n',
        {"text": "x"},
        "there is no 'txet', which [columns] names 'text' (did you mean 'te",
    ),
    (CHOICE, {**GOOD_CHOICE, "a": " "}, "field 'a' is empty"),
    (CHOICE, {**GOOD_CHOICE, "a": None}, "field 'a' is empty (may_be_empty = [\"a\"] in the task file leaves empty ch"),
    (CHOICE, {**GOOD_CHOICE, "a": ["x"]}, "field 'a' must be a string, not ['x']"),
    (
        CHOICE,
        {**GOOD_CHOICE, "right": 2},
        "field 'right' must be one of the choices 'yes', 'no', or an index from 0 to 1, not 2",
    ),
    (CHOICE, {**GOOD_CHOICE, "right": -1}, "or an index from 0 to 1, not -1"),
    (CHOICE, {**GOOD_CHOICE, "right": "yess"}, "index from 0 to 1, not 'yess' (did you mean 'yes'?)"),
    (CHOICE, {**GOOD_CHOICE, "right": True}, "'yes', 'no', or an index from 0 to 1, not true (answers that are"),
    (CHOICE + 'answer_kind = "text"\n', GOOD_CHOICE, "field 'right' must be one of the choices 'yes', 'no', not 0"),
    (CHOICE + 'answer_kind = "index"\n', {**GOOD_CHOICE, "right": "yes"}, "must be an index from 0 to 1, not 'yes'"),
    (
        CHOICE.replace('["a", "b"]', '"c"'),
        {"q": "?", "c": "yes", "right": 0},
        "field 'c' must be a list of at least one",
    ),
    (CHOICE.replace('["a", "b"]', '"c"'), {"q": "?", "c": ["x", ""], "right": 0}, "field 'c' is empty"),
    (GENERATION, {"q": "?", "a": []}, "field 'a' must be a list of at least one entry, each a string, not []"),
    (GENERATION, {"q": "?", "a": None}, "field 'a' must be a string, not None"),
    (GENERATION, {"q": "?", "a": [" "]}, "field 'a' is empty"),
    (GENERATION, {"q": "?"}, "field 'a' is missing"),
]


@pytest.mark.parametrize(("toml", "row", "complaint"), WRONG_ROWS, ids=range(len(WRONG_ROWS)))
def test_wrong_row(toml, row, complaint):
    message = error_of(load_rows, toml, row)
    assert message.startswith("a.jsonl, line 1: ")
    assert complaint in message


def test_damaged_json():
    Path("a.json").write_text("[\n{]")
    task = load(CLASSIFICATION.replace("a.csv", "a.json"))
    assert error_of(task.load, None).startswith("a.json: not valid JSON: Expecting property name")
    Path("a.json").write_text('{"text": 1}')
    assert error_of(task.load, None).startswith("a.json: must be a JSON list of objects")
    Path("a.json").write_text('[{"text": "x", "label": 1}, {"text": "x", "text": "y", "label": 1}]')
    assert error_of(task.load, None) == "a.json: field 'text' is given twice"
    Path("a.jsonl").write_text('{"text": "x", "label": 1, "label": 0}')
    message = error_of(load(CLASSIFICATION.replace("a.csv", "a.jsonl")).load, None)
    assert message == "a.jsonl, line 1: field 'label' is given twice"


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (
            pyarrow.table([pyarrow.array(["x"])] * 2, names=["text", "text"]),
            "a.parquet: the column 'text' is given twice",
        ),
        (
            pyarrow.table([pyarrow.array([b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())], names=["text"]),
            "a.parquet: not a Parquet file that can be read: 'utf-8' codec can't decode byte 0xe9",
        ),
    ],
    ids=["twice", "not UTF-8"],
)
def test_parquet_with_what_cannot_be_read(table, complaint):
    pyarrow.parquet.write_table(table, "a.parquet")
    assert complaint in error_of(load(CLASSIFICATION.replace("a.csv", "a.parquet")).load, None)


def test_fields_whose_names_differ_in_form_alone():
    row = {"caf\u00e9": "x", "cafe\u0301": "y", "label": 1}
    message = error_of(load_rows, CLASSIFICATION.replace("a.csv", "a.jsonl").replace("text", "caf\u00e9"), row)
    assert message.startswith("a.jsonl, line 1: two fields have the same name: ")


def test_parquet_that_is_none():
    Path("a.parquet").write_text("text,label")
    message = error_of(load(CLASSIFICATION.replace("a.csv", "a.parquet")).load, None)
    assert message.startswith("a.parquet: not a Parquet file that can be read: ")


def test_a_split_that_leaves_nothing_to_train_on():
    toml = REVIEWS + 'file = "a.csv"\nsplit = { validation = 2 }\n' + OPTIONS
    message = error_of(load(toml).load, None)
    assert message == "a.csv: there are 2 rows, and split.validation 2 leaves none to train on"


def test_data_dir_is_not_for_a_task_with_rows():
    assert "says itself where its rows are" in error_of(load(CLASSIFICATION).load, ".")


PYTHON = """from justforward.tasks import Task, register

register(Task(name="mine", fields={"x": str, "y": (0, 1)}, template=lambda row: row["x"],
              words={0: " no", 1: " yes"}, correct=lambda row: row["y"]))
"""


def test_python_file():
    Path("mine.py").write_text(PYTHON)
    before = names()
    task = find_task("", "mine.py")
    assert find_task("", "mine.py").name == task.name == "mine"
    assert names() == before
    Path("mine").mkdir()
    for split in ("train", "validation"):
        Path(f"mine/{split}.jsonl").write_text('{"x": "q", "y": 1}')
    assert [s.correct for s in task.load(".").train] == [1]
    assert error_of(task.load, None).startswith(
        "mine: it has no data set on the hub: give --data_dir DIR with DIR/mine/"
    )


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("x = 1\n", "must register one task with justforward.tasks.register; it registers: none"),
        (PYTHON + PYTHON.replace('"mine"', '"two"'), "it registers: mine, two"),
        (PYTHON.replace('"mine"', '"SST2"'), "line 3: AssertionError: task 'SST2' is registered twice"),
        ("import nothing_of_the_kind\n", "line 1: ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("x = 1\ny = (\n", "line 2: SyntaxError: '(' was never closed"),
    ],
    ids=range(5),
)
def test_wrong_python_file(code, complaint, tmp_path):
    Path("wrong.py").write_text(code)
    assert complaint in error_of(find_task, "", "wrong.py")


def test_digest_is_of_what_training_sees():
    def of(toml=CLASSIFICATION, rows=CSV):
        Path("a.csv").write_text(rows)
        task = load(toml)
        return digest(task, task.load(None).train)

    first = of()
    assert of("# a remark\n" + CLASSIFICATION) == first
    assert of(rows=CSV.replace("bad", "awful")) != first
    assert of(rows=CSV.replace("fine,1", "fine,0")) != first
    assert of(CLASSIFICATION.replace("Review", "Text")) != first
    assert of(CLASSIFICATION.replace("great", "good")) != first
    task = load(CLASSIFICATION)
    splits = task.load(None)
    assert pinned({"task_file": "task.toml", "x": 1}, task, splits) == {"task_file": first, "x": 1}
    assert pinned({"task_file": None, "x": 1}, task, splits) == {"task_file": None, "x": 1}
