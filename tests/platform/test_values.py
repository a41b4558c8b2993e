"""What people write, on the command line and in files, and what it is read as."""

import json
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from echostill.platform.config import Config, StageConfig, load
from echostill.platform.errors import UsageError
from echostill.platform.values import describe_type, read_yaml


class Inner(Config):
    name: str = "x"
    rate: float = 0.5


class Deep(Config):
    objective: Inner = Inner()


class Everything(StageConfig):
    text: str = ""
    maybe: str | None = "set"
    source: str | tuple[str, ...] = ()
    whole: int = 1
    number: float = 1.0
    budget: int | float = 0.1
    workers: int | Literal["auto"] = "auto"
    flag: bool = False
    seeds: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    grid: dict[str, tuple[Any, ...]] = {}
    labels: dict[str, str] = {}
    inner: Inner = Inner()
    deep: tuple[Deep, ...] = ()


def from_line(text):
    return load(Everything, "select", None, [text])


def from_file(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    return load(Everything, "select", str(file))


TEXTS = ["2026", "no", "007", "1:30", "[0-9]+", "2026-01-02", "Case #12", "a: b", "{x}", "true"]
TEXTS += [
    "1e5",
    "0x1F",
    "'quoted'",
    "*",
    "&a",
    "!tag",
    "%d",
    "@home",
    "a # b",
    "- x",
    "null x",
    "1_000",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_text_on_the_command_line(text):
    assert from_line(f"text={text}").text == text
    assert from_line(f"maybe={text}").maybe == text
    assert from_line(f"inner.name={text}").inner.name == text


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_stays_text(text):
    assert from_line(f"text={text}").text == text


@pytest.mark.parametrize("text", ["2026", "no", "007", "1:30", "2026-01-02", "0x1F", "1e5", "on"])
def test_text_stays_text_in_files(tmp_path, text):
    assert from_file(tmp_path, f"text: {text}").text == text
    assert from_file(tmp_path, f"names: [{text}, {text}]").names == (text, text)
    assert from_file(tmp_path, f"labels: {{{text}: {text}}}").labels == {text: text}


def test_a_list_of_texts_or_one_text():
    assert from_line("source=[a, 007]").source == ("a", "007")
    assert from_line("source=Case #12").source == "Case #12"
    assert from_line("source=[a").source == "[a"


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("whole=5", "whole", 5),
        ("whole=1_000", "whole", 1000),
        ("whole=1e5", "whole", 100_000),
        ("number=1e-4", "number", 1e-4),
        ("number=3", "number", 3.0),
        ("number=.5", "number", 0.5),
        ("budget=300", "budget", 300),
        ("budget=0.1", "budget", 0.1),
        ("budget=1.0", "budget", 1.0),
        ("budget=1e3", "budget", 1000),
        ("workers=auto", "workers", "auto"),
        ("workers=3", "workers", 3),
        ("flag=yes", "flag", True),
        ("flag=off", "flag", False),
        ("maybe=null", "maybe", None),
        ("maybe=", "maybe", None),
        ("seeds=[0, 1]", "seeds", (0, 1)),
        ("names=[no, 1]", "names", ("no", "1")),
        ("grid={a: [1, 0.5, x]}", "grid", {"a": (1, 0.5, "x")}),
        ("inner={name: 5, rate: 1e-3}", "inner", Inner(name="5", rate=1e-3)),
        ("deep=[{objective: {rate: 2}}]", "deep", (Deep(objective=Inner(rate=2.0)),)),
    ],
)
def test_numbers_lists_and_groups_are_read_where_they_are_asked_for(tmp_path, line, key, value):
    found = getattr(from_line(line), key)
    assert found == value
    assert json.dumps(found, default=str) == json.dumps(value, default=str)  # 1 is not 1.0 here
    written = line.replace("=", ": ", 1)
    assert getattr(from_file(tmp_path, written), key) == value


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("whole=010", ["whole", "a whole number", "'010'"]),
        ("whole=1:30", ["whole", "'1:30'"]),
        ("whole=0.5", ["whole", "a whole number"]),
        ("flag=2", ["flag", "true or false"]),
        ("flag=maybe", ["flag", "true or false"]),
        ("seeds=3", ["seeds", "a list of whole numbers"]),
        ("seeds=[a]", ["seeds", "'a'"]),
        ("number=nan", ["number"]),
        ("source={a: 1}", []),
    ],
)
def test_one_fault_gives_one_message(line, words):
    if not words:
        assert from_line(line).source == "{a: 1}"
        return
    with pytest.raises(UsageError) as raised:
        from_line(line)
    said = str(raised.value)
    assert all(word in said for word in words), said
    assert said.count("key '") == 1
    assert "tuple" not in said
    assert "\n" not in said


def test_a_quoted_number_is_text(tmp_path):
    with pytest.raises(UsageError, match="without quotes"):
        from_file(tmp_path, 'whole: "5"')
    assert from_file(tmp_path, "text: '5'").text == "5"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("whole: 1\nwhole: 2", "'whole' is given twice, in lines 1 and 2"),
        ("inner: {rate: 1, rate: 2}", "'rate' is given twice"),
        ("a: 1\n---\nb: 2", "YAML"),
        ("whole:1", "space after the colon"),
        ("\twhole: 1", "YAML"),
        ("whole: *x", "YAML"),
        ("whole: !!python/object/apply:os.system [true]", "YAML"),
        ("- 1", "not a list"),
    ],
)
def test_what_yaml_does_to_people_is_refused_in_words(tmp_path, text, words):
    with pytest.raises(UsageError) as raised:
        from_file(tmp_path, text)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_of_other_encodings(tmp_path):
    file = tmp_path / "c.yaml"
    for encoding in ("utf-8-sig", "utf-16"):
        file.write_text("text: größe\r\nwhole: 3\r\n", encoding=encoding)
        assert load(Everything, "select", str(file)).text == "größe"
    file.write_bytes("text: größe".encode("latin-1"))
    with pytest.raises(UsageError, match="not valid YAML"):
        load(Everything, "select", str(file))


def test_merge_keys_and_anchors_work():
    document = read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")
    assert document["b"] == {"x": "1", "y": "3"}
    with pytest.raises(yaml.YAMLError):
        read_yaml("b: {<<: {x: 1}, y: 2, y: 3}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("objective.rate=2", ["unknown key 'objective", "deep[].objective"]),
        ("rate=2", ["unknown key 'rate'", "inner.rate"]),
        ("inner.nam=2", ["unknown key 'inner.nam'", "Did you mean 'name'"]),
        ("wholle=2", ["unknown key 'wholle'", "Did you mean 'whole'"]),
        ("zzz=2", ["unknown key 'zzz'", "Valid keys", "workers"]),
    ],
)
def test_a_wrong_key_is_answered_with_where_it_lives(line, words):
    with pytest.raises(UsageError) as raised:
        from_line(line)
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_types_in_words():
    assert describe_type(str | tuple[str, ...]) == "text or a list of texts"
    assert describe_type(int | Literal["auto"]) == "a whole number or 'auto'"
    assert describe_type(Inner | None) == "a group of keys or null"
