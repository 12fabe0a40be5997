"""DreamBooth's subjects and prompts, from a checkout of its repository: the object of a picture in other settings."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.errors import UserError
from cluster.folder import Folder
from stages.ingest.benchmarks.listing import Listed, Listing, plain_path, published
from stages.ingest.sources import IMAGE_SUFFIXES

PROMPTS_FILE = "prompts_and_classes.txt"
LIVE_CLASSES = ("cat", "dog")  # their subjects have the second list of prompts
NUM_PROMPTS = 25
NUM_PICTURES = (4, 6)
_PROMPT = re.compile(r"""^\s*(['"])(?P<text>.+)\1\.format\(unique_token,\s*class_token\)\s*,?\s*$""")
MAX_TEXT_BYTES = 1 << 20


class DreamBoothSettings(BaseModel):
    """How a subject and a prompt become an item."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reference: int = Field(0, ge=0, lt=NUM_PICTURES[0], description="Which of a subject's pictures is shown, by name.")
    instruction_template: str = Field(
        "Generate the main object shown in the first image in a different setting and pose: {prompt}",
        description="Of {prompt}; as customize.instruction_template where an editor was trained with that.",
    )

    @field_validator("instruction_template")
    @classmethod
    def _has_its_place(cls, value: str) -> str:
        if "{prompt}" not in value:
            raise ValueError("it has no {prompt}")
        return value


def list_dreambooth(folder: Folder, settings: DreamBoothSettings) -> Listing:
    """An item for each subject and prompt; an id is `subject/picture/number of the prompt`, 00 to 24.

    Raises UserError: there is no list of prompts and classes, or it isn't of the known form.
    """
    folder = next((place for place in (folder, folder.sub("dataset")) if place.exists(PROMPTS_FILE)), folder)
    if not folder.exists(PROMPTS_FILE):
        raise UserError(
            f"{folder.url} has no {PROMPTS_FILE}. Name a checkout of google/dreambooth, or its folder dataset/."
        )
    place = folder.path(PROMPTS_FILE)
    with folder.open(PROMPTS_FILE) as stream:
        classes, prompts = read_prompts(stream.read(MAX_TEXT_BYTES).decode("utf-8", errors="replace"), place)
    items, problems = [], []
    for subject, class_name in classes.items():
        names = [name for name in folder.sub(subject).list() if name.lower().endswith(IMAGE_SUFFIXES)]
        stems = [name.rpartition(".")[0] for name in names]
        numbered = [f"{index:02d}" for index in range(len(names))]
        if stems != numbered or not NUM_PICTURES[0] <= len(names) <= NUM_PICTURES[1]:
            problems.append(
                f"{subject} holds {', '.join(names) or 'no pictures'}; a subject has {NUM_PICTURES[0]} to "
                f"{NUM_PICTURES[1]}, numbered from 00.jpg on"
            )
        kind = "live" if class_name in LIVE_CLASSES else "object"
        wanted = f"{settings.reference:02d}"
        name = next((name for name, stem in zip(names, stems, strict=True) if stem == wanted), f"{wanted}.jpg")
        for number, template in enumerate(prompts[kind]):
            prompt = " ".join(template.replace("{0}", "").replace("{1}", class_name).split())
            metadata = {"benchmark": "dreambooth", "subject": subject, "class": class_name, "reference": name}
            items.append(
                Listed(
                    f"{subject}/{name.rpartition('.')[0]}/{number:02d}",
                    kind,
                    settings.instruction_template.replace("{prompt}", prompt),
                    f"{subject}/{name}",
                    src_caption=f"a {class_name}",
                    tgt_caption=prompt,
                    metadata=metadata | {"prompt": prompt, "num_references": len(names)},
                )
            )
    return Listing(folder, items, published("dreambooth"), num_sources=len(classes), problems=problems)


def read_prompts(text: str, place: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The class of every subject, and both lists of prompts, `{0}` the place of a name and `{1}` of the class.

    Nothing of the file is run: it is read line by line. Raises UserError, naming the line.
    """
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"object": [], "live": []}
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.strip().lower()
        if words in ("classes", "object prompts", "live subject prompts"):
            section = words.split()[0]
        elif section == "classes" and "," in line:
            subject, _, class_name = (part.strip() for part in line.partition(","))
            if (subject, class_name) != ("subject_name", "class"):
                if not plain_path(subject) or not class_name or subject in classes:
                    raise UserError(f"{place}, line {number}: {line.strip()!r} isn't a new subject with its class.")
                classes[subject] = class_name
        elif section in prompts and (match := _PROMPT.match(line)):
            template = match["text"]
            if set("{}") & set(template.replace("{0}", "").replace("{1}", "")):
                raise UserError(f"{place}, line {number}: {template!r} has other places than {{0}} and {{1}}.")
            prompts[section].append(template)
    for kind, found in prompts.items():
        if len(found) != NUM_PROMPTS:
            raise UserError(f"{place} has {len(found)} prompts for {kind} subjects; there should be {NUM_PROMPTS}.")
    return classes, prompts
