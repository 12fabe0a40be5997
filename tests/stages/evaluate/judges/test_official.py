"""The official words are read from a checkout in its layout: read, never run. The files here are our own."""

import hashlib
import json

import pytest

from cluster.errors import UserError
from stages.evaluate.judges.imgedit.judge import EDIT_TYPES
from stages.evaluate.judges.judge import EditToJudge
from stages.evaluate.judges.tasks import get_judge

VIE_PROMPTS = '''# written by a script
import nothing_that_exists
raise SystemExit("it was run")

_context_no_delimit = """Be fair.
{
"score" : [...]
}"""

_prompts_0shot_two_image_edit_rule = """Two images.
"""
_prompts_0shot_tie_rule_SC = """
Two scores.

Editing instruction: <instruction>
"""
_prompts_0shot_subject_image_gen_rule = "A subject.\\n"
_prompts_0shot_sdig_rule_SC = "Two scores.\\nText Prompt: <prompt>\\n"
_prompts_0shot_rule_PQ = "One " "image.\\n"
'''
IMGEDIT = {
    name: f"\nRate the {name}.\nediting instruction is : <edit_prompt>.\nBelow are the images:\n" for name in EDIT_TYPES
}
EDIT = EditToJudge("m/1", b"source", b"edited", "make {it} red", "add")


def checkout(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder)


def words(call):
    return [part.get("text") or part["image"] for part in call.content]


@pytest.mark.parametrize("place", ["vie_prompts.py", "viescore/vie_prompts.py"])
def test_viescore(tmp_path, place):
    judge = get_judge("viescore", checkout(tmp_path, {place: VIE_PROMPTS}))
    sc, pq = judge.calls(EDIT)
    context = 'Be fair.\n{\n"score" : [...]\n}\n'
    said = context + "Two images.\n\n\nTwo scores.\n\nEditing instruction: {}\n"
    assert words(sc) == [b"source", b"edited", said.replace("{}", "make {it} red")]
    assert words(pq) == [b"edited", context + "One image.\n"]
    assert sc.schema is None and pq.schema is None  # as the official script asks
    digest = hashlib.sha256(
        (said.replace("{}", "<instruction>") + "\0" + context + "One image.\n").encode()
    ).hexdigest()
    assert judge.prompts.version == f"official:{digest[:12]}" and judge.prompts.hash == digest[:16]
    assert judge.prompts.sources == (str(tmp_path / place),)


def test_viescore_of_subjects(tmp_path):
    judge = get_judge("viescore_subject", checkout(tmp_path, {"vie_prompts.py": VIE_PROMPTS}))
    text = words(judge.calls(EDIT)[0])[-1]
    assert text.endswith("}\nA subject.\n\nTwo scores.\nText Prompt: make {it} red\n")


@pytest.mark.parametrize("place", ["prompts.json", "Basic/prompts.json", "Benchmark/Basic/prompts.json"])
def test_imgedit(tmp_path, place):
    judge = get_judge("imgedit", checkout(tmp_path, {place: json.dumps(IMGEDIT | {"other": 1})}))
    (call,) = judge.calls(EDIT)
    text = "\nRate the add.\nediting instruction is : make {it} red.\nBelow are the images:\n"
    assert words(call) == [text, b"source", b"edited"]  # its words say "below"
    assert judge.prompts.version.startswith("official:") and len(judge.prompts.version) == 21


@pytest.mark.parametrize(
    ("task", "files", "message"),
    [
        ("viescore", {}, "there is none of vie_prompts.py, viescore/vie_prompts.py.*TIGER-AI-Lab/VIEScore"),
        ("viescore", {"vie_prompts.py": "def f(:"}, "vie_prompts.py isn't Python that can be read"),
        ("viescore", {"vie_prompts.py": b"\xff\xfe"}, "vie_prompts.py can't be read"),
        ("viescore", {"vie_prompts.py": "x = " + "(" * 5000}, "vie_prompts.py isn't Python that can be read"),
        ("viescore", {"vie_prompts.py": "a = 1"}, "vie_prompts.py has no _context_no_delimit"),
        (
            "viescore",
            {"vie_prompts.py": VIE_PROMPTS.replace('"One " "image.\\n"', 'open("x").read()')},
            "_prompts_0shot_rule_PQ isn't a plain string",
        ),
        ("viescore", {"vie_prompts.py": VIE_PROMPTS.replace("<instruction>", "")}, "tie_rule_SC has no <instruction>"),
        ("viescore_subject", {"vie_prompts.py": VIE_PROMPTS.replace("<prompt>", "")}, "sdig_rule_SC has no <prompt>"),
        ("imgedit", {}, "there is none of prompts.json, Basic/prompts.json.*PKU-YuanGroup/ImgEdit"),
        ("imgedit", {"prompts.json": "{"}, "prompts.json isn't JSON"),
        ("imgedit", {"prompts.json": "[]"}, "has no text 'extract'"),
        ("imgedit", {"prompts.json": json.dumps(IMGEDIT | {"style": 3})}, "has no text 'style'"),
        ("imgedit", {"prompts.json": json.dumps(IMGEDIT | {"add": "Rate."})}, "'add' has no <edit_prompt>"),
    ],
)
def test_what_is_missing_is_named(tmp_path, task, files, message):
    with pytest.raises(UserError, match=message):
        get_judge(task, checkout(tmp_path / "checkout", files))
