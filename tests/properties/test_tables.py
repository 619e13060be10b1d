"""Tables as people have them: the right rows come out, or one line that names the file; never anything else.

What is written is known, so a row that is lost, changed or shifted is seen.
"""

import json
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.cases import cases

from justforward.tasks import find_task

MARKS = "\",;\t\n\r '\\a\u0301é🙂\ufeff\u2028\xa0\x00|1"
words = st.text(st.sampled_from(MARKS), min_size=1, max_size=8)
# Quotation marks at the ends of cells are where tables go wrong.
texts = st.one_of(words, words.map('"{}'.format), words.map('{}"'.format), words.map('"{}"'.format)).filter(str.strip)
LABELS = {"1": ("1", "1.0", "1.00"), "0": ("0", "0.0"), "é": ("é", unicodedata.normalize("NFD", "é"))}
REVIEWS = 'name = "t"\nprompt = "{text}"\nlabel = "label"\n'
OPTIONS = '[options]\n1 = " great"\n0 = " bad"\n"é" = " so"\n'


QUIZ = 'name = "t"\nprompt = "{q}"\nanswer = "right"\n'


def load(folder, toml, file):
    """The training samples, or the line that refuses their file."""
    files = f'train = "{file}"\nvalidation = "{file}"\n'
    (folder / "t.toml").write_text(files + toml, encoding="utf-8")
    try:
        return find_task("", str(folder / "t.toml")).load(None).train
    except ValueError as error:
        refused = str(error)
    assert refused.startswith(str(folder / file))
    return refused


def read(folder, keys, file):
    """(text, label) of the rows, or the line that refuses their file."""
    samples = load(folder, REVIEWS + keys + OPTIONS, file)
    return samples if isinstance(samples, str) else [(sample.data["text"], sample.correct) for sample in samples]


@st.composite
def tables(draw):
    """What a table is written from, and how."""
    extra = draw(st.sampled_from([[], ["more"], [""], ["", ""], ["more", "", ""]]))
    names = draw(st.permutations(["text", "label", *(name for name in extra if name)]))
    rows = [
        (draw(texts), draw(st.sampled_from(list(LABELS))), draw(texts))
        for _ in range(draw(st.integers(min_value=1, max_value=5)))
    ]
    return {
        "names": names,
        "rows": rows,
        "spelled": [draw(st.sampled_from(LABELS[label])) for _, label, _ in rows],
        "nameless": extra.count(""),
        "short": [draw(st.booleans()) for _ in rows],
        "overlong": [draw(st.sampled_from([0, 0, 0, 1, 2])) for _ in rows],
        "blank": [draw(st.sampled_from([0, 0, 0, 1])) for _ in rows],
        "end": draw(st.sampled_from(["\n", "\r\n", "\r"])),
        "suffix": draw(st.sampled_from(["csv", "tsv"])),
        "mark": draw(st.sampled_from([None, ";", "|", ",", "\t"])),
        "told": draw(st.sampled_from(["key", "sep", "nowhere"])),
        "quoting": draw(st.sampled_from(["none", "needed", "all"])),
        "key": draw(st.booleans()),
        "encoding": draw(st.sampled_from([*["utf-8", "utf-8-sig"] * 4, "utf-16", "utf-16-le", "latin-1", "cp1252"])),
    }


def written(table, delimiter):
    """The table as text."""

    def cell(text):
        needed = any(mark in text for mark in f'"{delimiter}\r\n')
        if table["quoting"] == "all" or (table["quoting"] == "needed" and needed):
            return '"' + text.replace('"', '""') + '"'
        return text

    def line(cells, nameless):
        return delimiter.join([*map(cell, cells), *[""] * nameless]) + table["end"]

    parts = [f"sep={delimiter}{table['end']}"] if table["told"] == "sep" else []
    parts.append(line(table["names"], table["nameless"]))
    for i, (text, _, more) in enumerate(table["rows"]):
        by_name = {"text": text, "label": table["spelled"][i], "more": more}
        parts += [table["end"]] * table["blank"][i]
        count = 0 if table["short"][i] else table["nameless"] + table["overlong"][i]
        parts.append(line([by_name[name] for name in table["names"]], count))
    return "".join(parts)


@cases(200)
@given(table=tables())
def test_tables(table, tmp_path):
    default = {"csv": ",", "tsv": "\t"}[table["suffix"]]
    delimiter = table["mark"] or default
    content = written(table, delimiter)
    cells = [text for text, _, more in table["rows"] for text in ([text, more] if "more" in table["names"] else [text])]
    plain = table["quoting"] == "none"
    assume(not plain or not any(mark in text for text in cells for mark in f"{delimiter}\r\n"))
    # What begins a plain table looks like a byte order mark, or else is one.
    assume(not content.startswith("\ufeff"))
    try:
        data = content.encode(table["encoding"])
    except UnicodeEncodeError:
        assume(False)
    file = f"t.{table['suffix']}"
    (tmp_path / file).write_bytes(data)
    keys = f"delimiter = {json.dumps(delimiter)}\n" if table["told"] == "key" else ""
    keys += f"quotes = {'false' if plain else 'true'}\n" if table["key"] else ""
    found = read(tmp_path, keys, file)
    right = [(text, label) for text, label, _ in table["rows"]]
    if isinstance(found, list):
        # CSV is known to enclose cells in quotes: without a key, those around a whole cell are not its text.
        bare = plain and delimiter != "\t" and not table["key"]
        assert len(found) == len(right)
        assert all(map(same, found, right)) if bare else found == right
        return
    unicode = table["encoding"] in ("utf-8", "utf-8-sig") or (
        content.isascii() and not table["encoding"].startswith("utf-16")
    )
    told = delimiter == default or table["told"] != "nowhere"
    # A row without the cells of nameless columns, and with a delimiter in quotes, reads as well without the quotes.
    clear = delimiter != "\t" and not table["nameless"] and not any(m in t for t in cells for m in "\r\n")
    quotes_told = table["key"] or (clear and not plain)
    assert not (unicode and told and quotes_told), (found, content)


PIECES = ["a", '"a', 'a"', '"a"', '"', "1", '""a""', "b c"]
careless = st.lists(st.sampled_from(PIECES), min_size=1, max_size=2)


@cases(300)
@given(
    rows=st.lists(st.tuples(careless, st.sampled_from("10")), min_size=1, max_size=4),
    label_first=st.booleans(),
    nameless=st.integers(0, 2),
    suffix=st.sampled_from(["csv", "tsv"]),
)
def test_careless_tables(rows, label_first, nameless, suffix, tmp_path):
    """Cells written as they are, quotation marks and delimiters included: no row goes, nothing moves."""
    delimiter = {"csv": ",", "tsv": "\t"}[suffix]
    right = [(delimiter.join(pieces), label) for pieces, label in rows]
    lines = [["text", "label"], *right]
    lines = [[*(reversed(line) if label_first else line), *[""] * nameless] for line in lines]
    file = f"t.{suffix}"
    (tmp_path / file).write_text("\n".join(map(delimiter.join, lines)))
    found = read(tmp_path, "", file)
    if not isinstance(found, list) or (len(found) == len(right) and all(map(same, found, right))):
        return
    # Lines that are no rows by themselves can be one cell.
    assert suffix == "csv"
    assert any(delimiter in text for text, _ in right)
    assert any("\n" in text for text, _ in found)


def same(found, right):
    """Whether two rows differ in quotation marks at most, which CSV puts around cells."""
    return (found[0].replace('"', ""), found[1]) == (right[0].replace('"', ""), right[1])


strings = st.text(st.sampled_from([*'a"é\n\x00 🙂' * 4, "\ud83d", "\ude00"]), min_size=1, max_size=4)
strings = strings.filter(str.strip)
values = st.recursive(
    st.one_of(
        strings, st.integers(), st.floats(), st.none(), st.booleans(), st.integers(5000, 6000).map(lambda n: 10**n)
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(strings, inner, max_size=2),
    max_leaves=4,
)


def dumped(value):
    """JSON of any value, integers of any length."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {dumped(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dumped, value)) + "]"
    if type(value) is int and abs(value) > 10**4000:
        return "1" + "0" * 5000
    return json.dumps(value)


def readable(line):
    """Whether a line of JSON holds texts that are Unicode, and no integer that is too long."""
    if "0" * 5000 in line:
        return False
    try:
        return bool(json.dumps(json.loads(line), ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


@cases(200)
@given(
    rows=st.lists(
        st.tuples(strings, st.sampled_from([1, "1", 1.0, "1.0", 0]), st.dictionaries(strings, values, max_size=2)),
        min_size=1,
        max_size=3,
    ),
    kind=st.sampled_from(["json", "jsonl"]),
)
def test_json(rows, kind, tmp_path):
    lines = [dumped({**more, "text": text, "label": label}) for text, label, more in rows]
    file = f"t.{kind}"
    content = "[" + ",\n".join(lines) + "]" if kind == "json" else "\n".join(lines)
    (tmp_path / file).write_text(content, encoding="utf-8")
    found = read(tmp_path, "", file)
    unread = [i for i, line in enumerate(lines, start=1) if not readable(line)]
    if unread:
        assert f"{file}, {'row' if kind == 'json' else 'line'} {unread[0]}: " in found
    else:
        right = [(json.loads(json.dumps(text)), "1" if label in (1, "1", "1.0") else "0") for text, label, _ in rows]
        assert found == right


@st.composite
def quizzes(draw):
    """Rows of choices, and how their answers are given."""
    names = draw(st.sampled_from(["ABCDE", "abcde", "vwxyz", "BADCE", "", "."]))
    kind = draw(st.sampled_from(["index", "number", "letter", "text"]))
    words = st.sampled_from(["1", "2", "3", "A", "b", "0", "yes", "no", "é", "e\u0301", "", "4.0", "x y"])
    rows = []
    width = draw(st.integers(2, 5))
    for _ in range(draw(st.integers(1, 5))):
        choices = draw(st.lists(words, min_size=width, max_size=width))
        right = [i for i, text in enumerate(choices) if text]
        assume(right)
        rows.append((choices, draw(st.sampled_from(right))))
    return names, kind, rows


@cases(200)
@given(
    quiz=quizzes(),
    told=st.booleans(),
    as_string=st.booleans(),
    decoration=st.sampled_from(["{}", "({})", "{}.", " {}"]),
)
def test_choices(quiz, told, as_string, decoration, tmp_path):
    names, kind, rows = quiz
    fields = list(names[: len(rows[0][0])]) if len(names) > 1 else None
    lines = []
    for choices, right in rows:
        answer = {"index": right, "number": right + 1, "text": choices[right]}.get(kind)
        if kind == "letter":
            answer = decoration.format(fields[right] if fields else "ABCDE"[right])
        answer = str(answer) if as_string else answer
        listed = {"c": {"text": choices}} if names else {"c": choices}
        row = dict(zip(fields, choices, strict=True)) if fields else listed
        lines.append(json.dumps({"q": "?", **row, "right": answer}))
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    listed = "c.text" if names else "c"
    toml = f"choices = {json.dumps(fields or listed)}\nmay_be_empty = {json.dumps(fields or [listed])}\n"
    found = load(tmp_path, QUIZ + toml + (f'answer_kind = "{kind}"\n' if told else ""), "t.jsonl")
    if isinstance(found, str):
        assert not told, found
        assert "answer_kind = " in found
        return
    assert [sample.correct for sample in found] == [choices[right] for choices, right in rows]
    assert [list(sample.candidates or ()) for sample in found] == [[c for c in choices if c] for choices, _ in rows]


@cases(200)
@given(
    choices=st.lists(st.sampled_from(["w", "x", "A", "b", "1", "2"]), min_size=2, max_size=4),
    labels=st.sampled_from(["ABCD", "abcd", "1234", "0123"]).flatmap(st.permutations),
    right=st.integers(0, 3),
    key=st.sampled_from(['choice_labels = "c.label"\n', 'answer_kind = "letter"\n', ""]),
    as_number=st.booleans(),
)
def test_labels(choices, labels, right, key, as_number, tmp_path):
    """An answer that is a row's own label is that choice, or is refused: whatever else it could be."""
    labels, right = labels[: len(choices)], right % len(choices)
    number = as_number and labels[right].isdigit()
    answer = int(labels[right]) if number else labels[right]
    row = {"q": "?", "c": {"text": choices, "label": labels}, "right": answer}
    (tmp_path / "t.jsonl").write_text(json.dumps(row), encoding="utf-8")
    found = load(tmp_path, QUIZ + 'choices = "c.text"\n' + key, "t.jsonl")
    if isinstance(found, str):
        assert "choice_labels" not in key
        assert 'choice_labels = "c.label"' in found or "answer_kind = " in found
        return
    assert [sample.correct for sample in found] == [choices[right]]


@pytest.mark.parametrize("numbers", [[1, 3, 2], [1], [2, 2], ["1", "2"], [1.0, 2.0]])
def test_numbers_without_a_zero_are_never_taken_silently(numbers, tmp_path):
    rows = [{"q": "?", "c": ["w", "x", "y", "z"], "right": number} for number in numbers]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refused = load(tmp_path, QUIZ + 'choices = "c"\n', "t.jsonl")
    assert "never 0" in refused
    assert 'answer_kind = "index" (from 0) or answer_kind = "number" (from 1)' in refused
    for kind, first in (("index", 0), ("number", 1)):
        samples = load(tmp_path, QUIZ + f'choices = "c"\nanswer_kind = "{kind}"\n', "t.jsonl")
        assert not isinstance(samples, str)
        assert [sample.correct for sample in samples] == ["wxyz"[int(float(n)) - first] for n in numbers]
