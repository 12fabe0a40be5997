"""Measures the starter's vision-language model on held-out scenes, served by the real vLLM."""

from __future__ import annotations

import base64
import collections
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from stages.caption.edits import prompt as edits_prompt
from stages.caption.edits import rules
from stages.evaluate.judges.viescore import prompt as viescore_prompt
from stages.starter import oracle
from stages.starter import vlm_data as data
from stages.starter import vlm_questions as questions
from stages.starter.vlm_caption_measure import measure_captioners, share, to_png
from stages.starter.world import Edit, Scene, caption, render, sample_edit

_CARD = """# A Qwen3-VL of 1.1 million parameters for the scene world
`Qwen3VLForConditionalGeneration` with its processor and chat template, float16, loaded by transformers' Auto
classes and served by vLLM. Trained from nothing by `python -m stages.starter.pretrain` on pictures of
`stages/starter/world.py`: it captions a scene, writes edit tuples, tells how a picture becomes its edit, takes the
style out of a caption, says which style frames have and which one object a picture shows, thinks up settings for it,
and judges edits (VIEScore's two calls and Yes/No questions). It knows nothing else.

Figures on {num_items} held-out scenes (captions never trained on), served by vLLM:

| | share |
| --- | --- |
{table}

- A score of 5 and up counts as yes; it gives only 0, 3, 7 and 10. Pairs to judge are right edits, copies,
  wrong edits, edits with side effects, scenes drawn anew, and blends; pictures of bad quality are blends,
  pasted quadrants, noise, blur and stripes.
- Frames asked for their style are sharp or spoilt, in one clip of four the style changes, and in one of ten the
  light is half-way: then no style is right. An object is right in its setting if it stands there alone.
- Whole prompts are single tokens. After a change of the words in `stages/caption/*/` or
  `stages/evaluate/judges/viescore/` the model must be trained anew; a test says so. It wasn't taught to polish
  evolution captions, nor the prompt with an example of a good picture.
- It answers in JSON without spaces, which is what vLLM's grammar admits with `disable_any_whitespace`.
"""
MAX_DRAWS = 3000  # of edits of a scene, until one has the instruction that the model wrote


def find_edit(scene: Scene, edit_type: str, instruction: str) -> Edit | None:
    """The edit of the scene that has this instruction; None where the scene admits none."""
    if edit_type not in data.possible_edit_types(scene):
        return None
    generator = np.random.default_rng(0)
    edits = (sample_edit(scene, generator, [edit_type]) for _ in range(MAX_DRAWS))
    return next((edit for edit in edits if edit.instruction == instruction), None)


def tuple_is_true(scene: Scene, row: dict[str, str]) -> bool:
    """Whether all five fields of an edit tuple are true to the scene."""
    edit = find_edit(scene, row["edit_type"], row["instruction"])
    return edit is not None and all(getattr(edit, name) == row[name] for name in edits_prompt.FIELDS)


class Engine:
    """An in-process vLLM engine; asks many questions at once."""

    def __init__(self, model_dir: pathlib.Path, device: str):
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        if device == "cpu":
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        import vllm
        from vllm.sampling_params import StructuredOutputsParams

        self.sampling, self.structured = vllm.SamplingParams, StructuredOutputsParams
        self.llm = vllm.LLM(
            str(model_dir),
            dtype="float32",
            enforce_eager=True,
            max_model_len=512,
            max_num_seqs=64,
            limit_mm_per_prompt={"image": 2, "video": 0},
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            seed=0,
        )

    def ask(self, chats: Sequence[tuple[list[dict], dict | None]], temperature: float = 0) -> list[str]:
        """The answers to (messages, answer schema or None)."""
        messages = [[{**turn, "content": self._content(turn["content"])} for turn in chat] for chat, _ in chats]
        parameters = [
            self.sampling(
                temperature=temperature,
                max_tokens=200,
                structured_outputs=self.structured(json=schema) if schema else None,
            )
            for _, schema in chats
        ]
        return [output.outputs[0].text for output in self.llm.chat(messages, parameters, use_tqdm=False)]

    @staticmethod
    def _content(content: str | list[dict]) -> str | list[dict]:
        if isinstance(content, str):
            return content
        return [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_base64(part['image'])}"}}
            if part["type"] == "image"
            else part
            for part in content
        ]


def _base64(data_bytes: bytes) -> str:
    return base64.b64encode(data_bytes).decode()


def _chat(images: Sequence[bytes], text: str) -> tuple[list[dict], None]:
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}], None


def _measure_tuples(engine: Engine, scenes: list[Scene], temperature: float) -> dict:
    generator = np.random.default_rng(1)
    offers = [data.draw_offer(scene, generator) for scene in scenes]
    chats = [
        edits_prompt.build_chat(to_png(render(scene)), offered) for scene, offered in zip(scenes, offers, strict=True)
    ]
    true_before, true_after, reasons, wrong = [], [], collections.Counter(), []
    types: collections.Counter[str] = collections.Counter()
    for scene, offered, text in zip(scenes, offers, engine.ask(chats, temperature), strict=True):
        row = edits_prompt.parse(text)
        true_before.append(not isinstance(row, str) and tuple_is_true(scene, row))
        broken = [row] if isinstance(row, str) else rules.check(row, offered)
        reasons.update(broken)
        if not broken:
            true_after.append(true_before[-1])
            types[row["edit_type"]] += 1
            if not true_after[-1]:
                wrong.append({"truth": caption(scene), **row})
    return {
        "num_items": len(scenes),
        "true_before_rules": share(true_before),
        "true_after_rules": share(true_after),
        "share_kept_by_rules": share([True] * len(true_after) + [False] * (len(scenes) - len(true_after))),
        "edit_types_kept": dict(types.most_common()),
        "reasons": dict(reasons.most_common()),
        "examples_wrong_after_rules": wrong[:20],
    }


def _agreement(answers: Sequence[str], truths: Sequence[tuple[bool, bool]]) -> dict:
    scores = [viescore_prompt.parse(answer) for answer in answers]
    read = [(s, t) for s, t in zip(scores, truths, strict=True) if not isinstance(s, str)]
    return {
        "num_items": len(answers),
        "scored": share([not isinstance(s, str) for s in scores]),
        "first": share([(s.first >= 5) == first for s, (first, _) in read]),
        "second": share([(s.second >= 5) == second for s, (_, second) in read]),
        "share_yes": [share([t[k] for t in truths]) for k in (0, 1)],
    }


def _measure_judge(engine: Engine, scenes: list[Scene]) -> dict:
    generator = np.random.default_rng(2)
    edits = [sample_edit(scene, generator) for scene in scenes]
    results = [data.draw_result(edit, generator) for edit in edits]
    verdicts = [oracle.score(edit, image) for edit, image in zip(edits, results, strict=True)]
    pairs = [(to_png(render(edit.source)), to_png(image)) for edit, image in zip(edits, results, strict=True)]
    asked = list(zip(pairs, edits, strict=True))
    success, preserved = [v.edit_success for v in verdicts], [v.preservation for v in verdicts]
    sc = engine.ask([viescore_prompt.build_sc_chat(*pair, edit.instruction) for pair, edit in asked])
    figures = {"sc": _agreement(sc, list(zip(success, preserved, strict=True)))}
    for name, template, truth in (
        ("yes_no_edit_done", questions.EDIT_DONE, success),
        ("yes_no_rest_same", questions.REST_SAME, preserved),
    ):
        answers = engine.ask([_chat(pair, template.format(instruction=e.instruction)) for pair, e in asked])
        right = [answer == ("Yes" if t else "No") for answer, t in zip(answers, truth, strict=True)]
        figures[name] = share(right)
    drawn = [data.draw_quality(scene, generator) for scene in scenes]
    pq = engine.ask([viescore_prompt.build_pq_chat(to_png(image)) for image, _, _ in drawn])
    figures["pq"] = _agreement(pq, [(n >= 5, a >= 5) for _, n, a in drawn])
    return figures


def measure_vlm(model_dir: pathlib.Path, device: str = "cpu", num_items: int = 400, temperature: float = 0.7) -> dict:
    """Shares right on `num_items` held-out scenes: captions, has-object questions, edit tuples, verdicts, and what
    the other caption engines ask.

    Greedy, but for `tuples_sampled` and `backgrounds_at_1`. Agreement is of a score of 5 and up with the oracle's yes.
    """
    generator = np.random.default_rng(7)
    scenes = [data.draw_scene(generator, held_out=True) for _ in range(num_items)]
    engine = Engine(pathlib.Path(model_dir), device)
    images = [to_png(render(scene)) for scene in scenes]
    captions = engine.ask([_chat([image], questions.CAPTION) for image in images])
    asked = [data.one_image_questions(scene, generator)[-1] for scene in scenes]
    has = engine.ask([_chat([image], q) for image, (q, _) in zip(images, asked, strict=True)])
    figures = {
        "num_items": num_items,
        "caption_exact": share([c == caption(s) for c, s in zip(captions, scenes, strict=True)]),
        "has_object": share([h == answer for h, (_, answer) in zip(has, asked, strict=True)]),
        "tuples_greedy": _measure_tuples(engine, scenes, 0),
        f"tuples_sampled_at_{temperature}": _measure_tuples(engine, scenes, temperature),
        **_measure_judge(engine, scenes),
        **measure_captioners(engine.ask, num_items),
    }
    return figures


def _of_both(verdicts: dict) -> str:
    return f"{verdicts['right_of_yes']}; {verdicts['right_of_no']}"


def write_card(model_dir: pathlib.Path, figures: dict) -> None:
    """Writes the model card `README.md` beside the weights."""
    sampled = next(value for key, value in figures.items() if key.startswith("tuples_sampled"))
    rows = [
        ("caption exact", figures["caption_exact"]),
        ('"has a X?" right', figures["has_object"]),
        ("edit tuple true in all five fields, greedy", figures["tuples_greedy"]["true_before_rules"]),
        ("... of those that the caption stage's rules keep", figures["tuples_greedy"]["true_after_rules"]),
        ("... share that the rules keep", figures["tuples_greedy"]["share_kept_by_rules"]),
        ("edit tuple true, sampled", sampled["true_before_rules"]),
        ("... of those that the rules keep", sampled["true_after_rules"]),
        ("judge: success agrees with the oracle", figures["sc"]["first"]),
        ("judge: over-editing agrees with the oracle", figures["sc"]["second"]),
        ("judge: naturalness agrees with how the picture was made", figures["pq"]["first"]),
        ("judge: artifacts agrees with how the picture was made", figures["pq"]["second"]),
        ('"edit done?" right', figures["yes_no_edit_done"]),
        ('"rest the same?" right', figures["yes_no_rest_same"]),
        ("evolution caption exact", figures["evolution"]["exact"]),
        ("caption without its style, exact", figures["clean_exact"]),
        ("frames in this style? right", figures["style"]["right"]),
        ("... of those that are", figures["style"]["right_of_yes"]),
        ("a picture's one object named, or that it isn't alone", figures["object"]),
        ("three settings, sampled at temperature 1: well-formed", figures["backgrounds_at_1"]["well_formed"]),
        ("... no two alike in place or background", figures["backgrounds_at_1"]["diverse"]),
        ("... different ones, of 40 that there are", figures["backgrounds_at_1"]["num_settings"]),
        ('"the object in its new setting?" right', figures["new_setting"]["right"]),
        ("... of those that are; of those that are not", _of_both(figures["new_setting"])),
        ('"the same object?" right', figures["same_object"]["right"]),
        ("... of those that are; of those that are not", _of_both(figures["same_object"])),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    (pathlib.Path(model_dir) / "README.md").write_text(_CARD.format(num_items=figures["num_items"], table=table))
