"""One good edit of each type, and the captions before and after it."""

TYPES = ("color", "add", "remove", "replace", "background", "style")
EDITS = {
    "color": ("red car", "make the red car blue"),
    "add": ("kite", "add a kite in the sky"),
    "remove": ("brown dog", "remove the brown dog on the left"),
    "replace": ("bench", "replace the bench with a stone wall"),
    "background": ("background", "change the background to a beach"),
    "style": ("style", "turn the image into a watercolor"),
}
SOURCE = "A brown dog and a red car beside a bench."
EDITED = {
    "color": "A brown dog and a blue car beside a bench.",
    "add": "A brown dog and a red car beside a bench, a kite above.",
    "remove": "A red car beside a bench.",
    "replace": "A brown dog and a red car beside a stone wall.",
    "background": "A brown dog and a red car beside a bench on a beach.",
    "style": "A watercolor of a brown dog and a red car beside a bench.",
}


def edit_of(edit_type, object=None, instruction=None):
    name, words = EDITS.get(edit_type, ("thing", "turn the thing round"))
    return {
        "edit_type": edit_type,
        "object": name if object is None else object,
        "instruction": instruction or words,
    }
