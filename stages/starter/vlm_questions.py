"""What the starter's vision-language model is asked besides the prompts of the caption and evaluate stages.

One-image and two-image questions whose answer is the one token Yes or No, the sentences that it gives as reasons for
its scores and verdicts, and instructions that are too vague.
"""

from __future__ import annotations

from collections.abc import Iterable

CAPTION = "Describe the image in one sentence."
HAS_OBJECT = "Does the image have a {object}? Answer Yes or No."
EDIT_DONE = (
    "The second image is an edit of the first one after this instruction: {instruction}\n"
    "Does it show what the instruction asks for? Answer Yes or No."
)
REST_SAME = (
    "The second image is an edit of the first one after this instruction: {instruction}\n"
    "Is everything that the instruction does not mention the same in both? Answer Yes or No."
)
NEW_SETTING = (
    "The second image should show the {object} of the first one in this setting: {setting}\nDoes it? Answer Yes or No."
)
SAME_OBJECT = "Is the {object} of the first image in the second one, with the same shape and color? Answer Yes or No."
QUESTIONS = (CAPTION, HAS_OBJECT, EDIT_DONE, REST_SAME, NEW_SETTING, SAME_OBJECT)


def object_questions(shown: Iterable[str], gone: Iterable[str] = ()) -> list[dict[str, str]]:
    """What a benchmark item asks of its edit, and the right answers: of each object that it should show, and of each
    that it should show no more.
    """
    wanted = [(name, "Yes") for name in shown] + [(name, "No") for name in gone]
    return [{"question": HAS_OBJECT.format(object=name), "answer": answer} for name, answer in wanted]


SUCCESS_REASONS = {
    10: "The edit was done.",
    3: "Something was changed there, but not as asked.",
    0: "The edit was not done.",
}
OVER_EDITING_REASONS = {
    10: " All the rest is the same.",
    7: " The rest is the same but for slight differences.",
    3: " Something else was changed or lost.",
    0: " Much of the rest is another scene.",
}
NATURALNESS_REASONS = {
    10: "The scene hangs together.",
    3: "Some parts do not belong together.",
    0: "Two scenes are mixed.",
}
ARTIFACTS_REASONS = {
    10: " There are no artifacts.",
    7: " There are faint artifacts.",
    3: " There are plain artifacts.",
    0: " Artifacts spoil the image.",
}
UNIQUE_REASONS = {True: "One object stands alone.", False: "Two objects share the image."}
REASONS = tuple(
    reason
    for reasons in (SUCCESS_REASONS, OVER_EDITING_REASONS, NATURALNESS_REASONS, ARTIFACTS_REASONS, UNIQUE_REASONS)
    for reason in reasons.values()
)

VERIFY_REASONS = {
    "fits": "The image admits it, and the change is plain to see.",
    "vague": "It does not say what exactly is to change.",
    "type": "It is an edit of another type.",
    "hard": "It is too hard to do well.",
    "absent": "There is no such object.",
    "same": "It would change nothing.",
    "alike": "Two objects would be alike.",
    "two": "It asks for two changes at once.",
    "last": "It is the only object.",
    "third": "There is no room for a third object.",
    "taken": "Something stands there.",
}
VAGUE_INSTRUCTIONS = {
    "color": "make it another color",
    "replace": "replace something",
    "background": "make the background nicer",
    "remove": "remove what is in the way",
    "add": "add something near it",
    "style": "turn it into something else",
}
