"""Records of every shape: what is learned of them, and what is told of those that cannot be used."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.sources import ReadOptions
from llama_dyt.data.opening import open_data
from llama_dyt.data.records.reader import ShapedRecords, column_problems
from llama_dyt.data.records.record_shape import RECORD_SHAPES, Pair, RecordShape

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
RECORDS = [
    {"prompt": "p", "completion": "c"},
    {"instruction": "do", "input": "", "output": "done"},
    {"instruction": "do {x}", "input": "{y}", "output": "done"},
    {"messages": CHAT},
    {"conversations": SHARED, "id": 7},
]
HEAD = "Below is an instruction that describes a task"
REST = "rite a response that appropriately completes the request.\n\n"
READ = [
    ("p", "c"),
    (f"{HEAD}. W{REST}### Instruction:\ndo\n\n### Response:", "done"),
    (
        f"{HEAD}, paired with an input that provides further context. W{REST}"
        "### Instruction:\ndo {x}\n\n### Input:\n{y}\n\n### Response:",
        "done",
    ),
    ("user: hi", "ho"),
    ("user: hi", "ho"),
]


def options(shape="auto", columns=None, skip=False, template=None):
    records = ShapedRecords(shape, columns or {}, template)
    return ReadOptions(("prompt", "completion"), skip_bad_lines=skip, records=records)


def read(path, **more):
    return [values for values, _ in open_data(path, options(**more)).iterate()]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_each_record_is_read_by_its_own_shape(tmp_path):
    assert read(write(tmp_path / "all.jsonl", RECORDS)) == READ


def test_an_array_is_read_as_lines_are(tmp_path):
    path = tmp_path / "all.json"
    for indent in (None, 2):
        path.write_text("\ufeff \n" + json.dumps(RECORDS, indent=indent) + "\n")
        assert read(path) == READ
    write(path, RECORDS)
    assert read(path) == READ


def test_a_long_array_is_read_piece_by_piece_and_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr("llama_dyt.data.formats.json_file._CHARACTERS", 16)
    path = tmp_path / "all.json"
    path.write_text(json.dumps(RECORDS * 3, indent=1))
    source = open_data(path, options())
    walked = list(source.iterate())
    assert [values for values, _ in walked] == READ * 3
    assert list(source.iterate(walked[6][1])) == walked[7:]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"prompt": "p", "completion": "c"}, {"prompt": "p"', r"broken.json, record 1: is not valid JSON"),
        ('[{"prompt": "p", "completion": "c"} {}]', r"record 1: is not valid JSON \(',' or '\]' expected\)"),
        ('[{"prompt": "p", "completion": "c"}, 7]', "record 1: is a JSON int, not an object"),
    ],
)
def test_a_broken_array_is_told_with_its_record(tmp_path, text, told):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DataError, match=told):
        read(path)


def test_comma_separated_values_are_read_with_quotes_and_gone_on_with(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_bytes(b'\xef\xbb\xbfid,prompt,completion\r\n1,"a, ""b""\nc",d\r\n\r\n2,e,f\r\n')
    source = open_data(path, options())
    walked = list(source.iterate())
    assert [values for values, _ in walked] == [('a, "b"\nc', "d"), ("e", "f")]
    assert list(source.iterate(walked[0][1])) == walked[1:]


def test_a_row_of_another_length_is_told_with_its_line(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,completion\na,b\nc, d, e\n")
    with pytest.raises(DataError, match=r"pairs.csv, up to line 3: the row has 3 values, the header 2"):
        read(path)


def test_parquet_has_conversations_and_columns_of_other_types(tmp_path):
    path = tmp_path / "chat.parquet"
    table = {"messages": [CHAT, CHAT], "score": [0.5, 1.0], "prompt_id": [1, 2]}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    assert read(path) == [("user: hi", "ho")] * 2


def test_columns_of_other_names_are_read_where_they_are_named(tmp_path):
    records = [{"question": "q", "answer": "a"}, {"talk": [{"who": "user", "says": "hi"}]}]
    path = write(tmp_path / "named.jsonl", records)
    columns = {"prompt": "question", "completion": "answer"}
    columns |= {"messages": "talk", "role": "who", "content": "says"}
    with pytest.raises(DataError, match=r"line 2: the last message of 'talk' is the user's, not the assistant's"):
        read(path, columns=columns)
    assert read(path, columns=columns, skip=True) == [("q", "a")]


BAD = [
    ({"prompt": "p"}, "has no field 'completion'"),
    ({"instruction": "p"}, "has no field 'output'"),
    ({"prompt": "p", "completion": ""}, "field 'completion' is empty"),
    ({"prompt": "p", "completion": 3}, "field 'completion' is int, not a string"),
    ({"messages": "hi"}, "field 'messages' is str, not a list of messages"),
    ({"messages": []}, "field 'messages' is empty"),
    ({"messages": [{"role": "asistant", "content": "x"}]}, "message 1 of 'messages': unknown role 'asistant'"),
    ({"messages": [{"role": "assistant"}]}, "message 1 of 'messages' has no field 'content'"),
    ({"messages": [CHAT[0], {"role": "assistant", "content": " "}]}, "message 2 of 'messages' is an empty answer"),
    ({"messages": CHAT[:1]}, "the last message of 'messages' is the user's"),
    ({"conversations": [{"from": "gtp", "value": "x"}]}, "message 1 of 'conversations': unknown role 'gtp'"),
]


@pytest.mark.parametrize(("record", "reason"), BAD, ids=[reason[:40] for _, reason in BAD])
def test_a_record_that_cannot_be_used_is_told_with_its_line_or_counted(tmp_path, record, reason):
    path = write(tmp_path / "bad.jsonl", [RECORDS[0], record, RECORDS[0]])
    with pytest.raises(DataError, match=rf"bad\.jsonl, line 2: {reason}.*--skip_bad_lines"):
        read(path)
    source = open_data(path, options(skip=True))
    assert [values for values, _ in source.iterate()] == [("p", "c")] * 2
    assert source.bad_lines == 1


def test_a_file_of_no_known_shape_is_told_what_would_be_one(tmp_path):
    path = write(tmp_path / "text.jsonl", [{"text": "t"}] * 3)
    with pytest.raises(DataError, match=r"have text \(str\): name .*--columns .*alpaca: instruction, output"):
        read(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["t"]}), tmp_path / "text.parquet")
    with pytest.raises(DataError, match=r"has no column to learn from; its records have text \(string\)"):
        read(tmp_path / "text.parquet")


def test_wrong_column_flags_are_told_together():
    problems = column_problems(["instruction", "promt=x", "input=context"])
    assert [problem.split(":")[0] for problem in problems] == ["--columns instruction", "--columns promt=x"]
    assert "did you mean 'prompt'" in problems[1]


def test_a_shape_of_ones_own_is_one_class(tmp_path, monkeypatch):
    class Quiz(RecordShape):
        name, columns, needed = "quiz", ("riddle", "solution"), ("riddle", "solution")

        def read(self, record, names):
            return Pair(record[names["riddle"]], record[names["solution"]])

    monkeypatch.setattr(RECORD_SHAPES, "_entries", {})
    RECORD_SHAPES.register(Quiz())
    assert read(write(tmp_path / "quiz.jsonl", [{"riddle": "r", "solution": "s"}])) == [("r", "s")]


def test_fingerprints_are_those_of_before_there_were_shapes(tmp_path):
    path = write(tmp_path / "pairs.jsonl", RECORDS[:1])
    plain = open_data(path, ReadOptions(("prompt", "completion"))).fingerprint
    assert open_data(path, options()).fingerprint == plain
    assert open_data(path, options(shape="alpaca")).fingerprint != plain
