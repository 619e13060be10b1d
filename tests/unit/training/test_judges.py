"""Rewards from a program or an endpoint: what they are asked, what is remembered, and what goes wrong."""

import json
import shlex
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from support.golden import DATA

from justforward.tasks import get_task
from justforward.training.judges import Judge, JudgeError
from justforward.training.rewards import find_reward

SQUAD = get_task("SQuAD")
PYTHON = shlex.quote(sys.executable)
LENGTHS = """
import json, sys
for line in sys.stdin:
    print(len(json.loads(line)["output"]))
    with open("asked.txt", "a") as file:
        file.write(line)
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    Path("judge.py").write_text(LENGTHS)


def samples(count):
    return SQUAD.load(DATA).validation[:count]


def program(text="", **judging):
    if text:
        Path("judge.py").write_text(text)
    return find_reward(f"command:{PYTHON} judge.py", SQUAD, **judging)


def asked():
    return [json.loads(line) for line in Path("asked.txt").read_text().splitlines()]


def test_a_program_gets_lines_of_json_and_is_asked_once():
    three = samples(3)
    assert program(cache=Path("out/rewards.jsonl"))(three, ["a", "bbb", "a"]) == [1, 3, 1]
    first = asked()[0]
    assert first["prompt"] == SQUAD.prompt(three[0])
    assert (first["output"], first["correct"], first["row"]) == ("a", list(three[0].correct), three[0].data)
    again = program(cache=Path("out/rewards.jsonl"))
    assert again(three, ["a", "bbb", "cc"]) == [1, 3, 2]
    assert [one["output"] for one in asked()] == ["a", "bbb", "a", "cc"]


def test_lines_that_a_kill_or_a_disk_damaged_are_asked_again():
    (one,) = samples(1)
    path = Path("rewards.jsonl")
    program(cache=path)([one, one], ["a", "bbb"])
    first, second = path.read_text().splitlines()
    path.write_text(first.replace("1.0", "9.0") + "\n" + second[:-5])
    assert program(cache=path)([one, one], ["a", "bbb"]) == [1, 3]
    assert len(asked()) == 4
    assert program(cache=path)([one, one], ["a", "bbb"]) == [1, 3]
    assert len(asked()) == 4


def test_an_edited_program_is_another_judge():
    (one,) = samples(1)
    program(cache=Path("rewards.jsonl"))([one], ["a"])
    assert program(LENGTHS + "\n# edited", cache=Path("rewards.jsonl"))([one], ["a"]) == [1]
    assert len(asked()) == 2


def test_a_program_that_fails_once_is_asked_again(caplog):
    text = "import os, sys\nif not os.path.exists('x'):\n    open('x', 'w')\n    sys.exit('no luck')\nprint(7)"
    assert program(text)(samples(1), ["a"]) == [7]
    assert "ended with exit status 1: no luck: asked again" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("print(1); print(2)", "gave 2 answers to 1 requests"),
        ("print('fine')", "a line of its output is no JSON number: 'fine'"),
        ("print('[1]')", r"an answer is no number: \[1\]"),
        ("raise SystemExit('broken judge')", "ended with exit status 1: broken judge"),
        ("import time\nwhile True: pass", r"no answer to 1 requests in 0.2 s \(--reward_timeout\)"),
    ],
)
def test_what_goes_wrong_is_one_line(text, message):
    judge = program(text, timeout=0.2 if "while" in text else 60, retries=1)
    with pytest.raises(JudgeError, match=rf"^--reward command:.*judge.py: {message}$"):
        judge(samples(1), ["a"])


def test_commands_that_are_none():
    for name, message in (("command:", "names no program"), ("command:'x", "No closing"), ("command:./nix", "no prog")):
        with pytest.raises(JudgeError, match=message):
            find_reward(name, SQUAD)


def test_no_verdict_is_not_a_number_and_not_remembered():
    judge = program("print('null')", cache=Path("rewards.jsonl"))
    assert str(judge(samples(1), ["a"])) == "[nan]"
    assert Path("rewards.jsonl").read_text() == ""


class Scores(BaseHTTPRequestHandler):
    answers: list  # of (status, body), the last again and again
    seen: list

    def do_POST(self):
        self.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = HTTPServer(("127.0.0.1", 0), Scores)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/score"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_gets_a_batch_and_is_asked_again_where_it_is_down(endpoint):
    Scores.answers, Scores.seen = [(503, ""), (200, '{"rewards": [0.5, {"reward": 1}]}')], []
    judge = find_reward(endpoint, SQUAD)
    assert isinstance(judge, Judge)
    assert judge(samples(2), ["a", "bbb"]) == [0.5, 1.0]
    assert judge(samples(2), ["a", "bbb"]) == [0.5, 1.0]
    assert len(Scores.seen) == 2
    assert [one["output"] for one in Scores.seen[-1]["requests"]] == ["a", "bbb"]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, "", "HTTP 404 Not Found"),
        (500, "", "HTTP 500 Internal Server Error"),
        (200, "<html>", "the answer is no JSON: '<html>'"),
        (200, '{"scores": [1]}', "holds no list of rewards"),
        (200, "[1, 2]", "gave 2 answers to 1 requests"),
    ],
)
def test_what_an_endpoint_says_wrong_is_one_line(endpoint, status, body, message):
    Scores.answers, Scores.seen = [(status, body)], []
    with pytest.raises(JudgeError, match=message):
        Judge(endpoint, SQUAD, retries=1)(samples(1), ["a"])


def test_an_endpoint_that_is_not_there():
    with pytest.raises(JudgeError, match=r"^--reward http://127.0.0.1:9/: .*refused"):
        Judge("http://127.0.0.1:9/", SQUAD, retries=0)(samples(1), ["a"])
