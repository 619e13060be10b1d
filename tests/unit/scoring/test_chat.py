"""Prompts as conversations: tokens are those of the tokenizer's own template, and rows' texts stay texts."""

import copy

import pytest
from support.golden import MODEL
from transformers import AutoTokenizer

from justforward.scoring.chat import ChatEncoder, encoder_of
from justforward.scoring.prompts import PromptEncoder
from justforward.tasks import as_conversations, get_task

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def plain():
    return AutoTokenizer.from_pretrained(MODEL)


def with_template(tokenizer, template):
    made = copy.deepcopy(tokenizer)
    made.chat_template = template
    if template == CHATML:
        made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


def sst2(system=None):
    return as_conversations(get_task("SST2"), chat=True, system=system)


def sample(task, text="a fine film .", label=1, index=0):
    return task.sample({"sentence": text, "label": label}, index)


@pytest.mark.parametrize("template", [CHATML, MISTRAL])
@pytest.mark.parametrize("shots", [0, 2])
def test_tokens_are_those_of_the_template_with_one_first_token(template, shots, plain):
    tokenizer, task = with_template(plain, template), sst2()
    encoder = encoder_of(tokenizer, task)
    shown = [sample(task, f"film number {i} .", i % 2, i) for i in range(shots)]
    rows = encoder.candidates(sample(task), shown)
    turns = []
    for one in shown:
        answer = task.words[one.correct].strip()
        turns += [{"role": "user", "content": task.prompt(one)}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": "a fine film . It was"})
    opened = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    for row, word in zip(rows, ("terrible", "great"), strict=True):
        expected = tokenizer(opened + word, add_special_tokens=False)["input_ids"]
        own = [token for token in row.tokens if token not in encoder.first]
        assert own == [token for token in expected if token not in encoder.first]
        assert tokenizer.decode(row.tokens[row.start :]).strip() == word
        assert sum(token == tokenizer.bos_token_id for token in row.tokens[:2]) == 1


def test_a_system_text_begins_the_conversation(plain):
    encoder = encoder_of(with_template(plain, CHATML), sst2("Judge the film."))
    text = encoder.tokenizer.decode(encoder.gold(sample(encoder.task)).tokens)
    assert text.index("Judge the film.") < text.index("a fine film")
    assert text.count("Judge the film.") == 1


def test_a_control_token_that_a_row_spells_stays_text(plain):
    tokenizer = with_template(plain, CHATML)
    encoder, task = encoder_of(tokenizer, sst2()), sst2()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    spelt = encoder.gold(sample(task, "good <|im_end|> film"))
    assert spelt.tokens.count(end) == encoder.gold(sample(task)).tokens.count(end) == 1
    assert "good <|im_end|> film" in tokenizer.decode(spelt.tokens)


def test_the_end_of_a_turn_is_found_and_ends_an_answer_that_is_trained_on(plain):
    for template, text in ((CHATML, "<|im_end|>"), (MISTRAL, plain.eos_token)):
        tokenizer = with_template(plain, template)
        task = as_conversations(get_task("SQuAD"), chat=True, system=None)
        encoder = encoder_of(tokenizer, task)
        assert isinstance(encoder, ChatEncoder)
        assert encoder.end_of_turn == tokenizer.convert_tokens_to_ids(text)
        row = {"id": "1", "title": "t", "context": "It has 3 rooms.", "question": "How many?"}
        one = task.sample({**row, "answers": {"text": ["3"], "answer_start": [7]}}, 0)
        gold = encoder.gold(one)
        assert gold.tokens[-1] == encoder.end_of_turn
        assert tokenizer.decode(gold.tokens[gold.start : -1]).strip() == "3"
        prompt = encoder.generation(one)
        assert gold.tokens[: gold.start] == prompt


def test_calibration_has_an_assistants_turn_too(plain):
    encoder = encoder_of(with_template(plain, CHATML), sst2())
    rows = encoder.candidates(sample(encoder.task), calibration=True)
    assert encoder.tokenizer.decode(rows[1].tokens).endswith("<|im_start|>assistant\ngreat")


def test_mistakes_are_one_line(plain):
    with pytest.raises(ValueError, match="the tokenizer of this model has none"):
        encoder_of(plain, sst2())
    with pytest.raises(ValueError, match="says: only user and assistant roles"):
        encoder_of(with_template(plain, MISTRAL), sst2("A system text."))
    with pytest.raises(ValueError, match="shows no turns of user and assistant"):
        encoder_of(with_template(plain, "{{ messages[0].role }}"), sst2())
    with pytest.raises(ValueError, match="give --chat_template with it"):
        as_conversations(get_task("SST2"), chat=False, system="x")


def test_a_task_is_plain_text_unless_told_otherwise(plain):
    assert type(encoder_of(with_template(plain, CHATML), get_task("SST2"))) is PromptEncoder
