"""The tokenizer of the starter's vision-language model, and the processor around it.

Byte-level BPE as Qwen's, but without merges: a piece of text is one token where the vocabulary has it whole,
and bytes otherwise, so any text round-trips. The vocabulary has the scene world's words and, whole, every
fixed part of the prompts and of their JSON answers: to so small a model a page of rules is one token.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from stages.caption.customization import prompt as customization_prompt
from stages.caption.edits import prompt as edits_prompt
from stages.caption.evolution import prompt as evolution_prompt
from stages.caption.proposals import prompt as proposals_prompt
from stages.caption.video import prompt as video_prompt
from stages.evaluate.judges.viescore import prompt as viescore_prompt
from stages.starter import vlm_questions as questions
from stages.starter.clips import STILL_CAPTION
from stages.starter.world import BACKGROUNDS, COLORS, EDIT_TYPES, PLACES, SHAPES

END_OF_TEXT, IMAGE_TOKEN, VIDEO_TOKEN = "<|endoftext|>", "<|image_pad|>", "<|video_pad|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE_TOKEN, VIDEO_TOKEN)

IMAGE_SIZE = 64  # pixels: what the processor makes of any square image
PATCH_SIZE = 16
NUM_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' or 'image' in part or 'image_url' in part %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def _fixed_parts(text: str, mark: str = "\0") -> list[str]:
    return [part for part in text.split(mark) if part]


def _caption_pieces() -> list[str]:
    """The fixed parts of what the caption engines ask besides edit tuples, and of the answers."""
    hints = {name: line for name, line in evolution_prompt.edit_types().items() if name in EDIT_TYPES}
    asked = evolution_prompt.prompt_text("\0", "color").replace(hints["color"], "\0")
    found = [*_fixed_parts(asked), *hints.values(), '{"evolution_caption":"']
    found += [*_fixed_parts(video_prompt.clean_text("\0")), '{"caption":"']
    found += _fixed_parts(video_prompt.verify_text("\0"))
    found += [customization_prompt.object_text(), '{"reason":"', '","is_unique":', "true", "false", ',"object":"']
    found += [*_fixed_parts(customization_prompt.backgrounds_text("\0")), '{"backgrounds":["', '","', '"]}']
    return found


def pieces() -> list[str]:
    """All texts that are one token each, besides bytes and special tokens."""
    edit_lines = edits_prompt.edit_types()
    listed = ", ".join(edits_prompt.styles())
    type_lines = [f"- {name}: {line.format(styles=listed)}" for name, line in edit_lines.items() if name in EDIT_TYPES]
    prompt = edits_prompt.prompt_text(["color"])
    found = prompt.split(next(line for line in type_lines if line.startswith("- color")))
    found += type_lines
    found += ['{"edit_type":"', *(f'","{name}":"' for name in edits_prompt.FIELDS[1:]), '"}']
    found += [*_fixed_parts(viescore_prompt.sc_text("\0")), viescore_prompt.pq_text(), *_caption_pieces()]
    found += ['{"score":[', '],"reasoning":"', "10", *questions.REASONS]
    for question in questions.QUESTIONS:
        found += _fixed_parts(question.format(instruction="\0", object="\0", setting="\0"))
    found += ["Yes", "No", "system\n", "user\n", "assistant\n"]
    found += [*COLORS, *BACKGROUNDS, *(f" {shape}" for shape in SHAPES), *(f" {place}" for place in PLACES), *PLACES]
    found += [
        " and ",
        " on ",
        " background",
        "background ",
        " at night",
        "make the ",
        "replace the ",
        " with a ",
    ]
    found += ["remove the ", "add a ", "turn it into a ", "day", "night", " scene", *EDIT_TYPES]
    found += [" then ", "the background shifts from ", " to ", "the ", " turns ", " morphs into a", " fades out"]
    found += ["a ", " fades in", " moves to the", "night falls", "day breaks", STILL_CAPTION]
    return list(dict.fromkeys(found))


def proposal_pieces() -> list[str]:
    """The fixed parts of what the engine that proposes and verifies edits asks, and of the answers."""
    edit_lines, listed = edits_prompt.edit_types(), ", ".join(edits_prompt.styles())
    examples = [f"- {name}: {line}" for name in EDIT_TYPES for line in proposals_prompt.good_examples()[name]]
    asked = proposals_prompt.proposal_text(["color"], {"color": "\0"}).replace("- color: \0", "\0")
    found = _fixed_parts(asked.replace(f"- color: {edit_lines['color'].format(styles=listed)}", "\0"))
    found += [*examples, '{"edits":[', '","object":"', '"},{"edit_type":"', '"}]}']
    found += [*_fixed_parts(proposals_prompt.verify_text("\0", "\0")), '","is_valid":', ',"edited_caption":"']
    return [*found, *questions.VERIFY_REASONS.values(), *questions.VAGUE_INSTRUCTIONS.values()]


def build_tokenizer(more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """The tokenizer, from the prompts' present words. Longer pieces win over shorter ones.

    `more` pieces get the ids behind all others, so that what was learned of these stays where it is.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    by_length = functools.partial(sorted, key=lambda piece: (-len(piece), piece))
    known = pieces()
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}

    def give_ids(new: Sequence[str]) -> None:
        for piece in by_length(new):
            vocabulary.setdefault("".join(part for part, _ in as_bytes.pre_tokenize_str(piece)), len(vocabulary))

    give_ids(known)
    if more:
        vocabulary |= {token: len(vocabulary) + index for index, token in enumerate(SPECIAL_TOKENS)}
        give_ids(more)
    whole = by_length({*known, *more})
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True, fuse_unk=False))
    pattern = "|".join(re.sub(r"([^\w\s])", r"\\\1", piece) for piece in whole)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def build_processor(proposals: bool = False) -> Qwen3VLProcessor:
    """Tokenizer, image and video processor and chat template; any square image becomes 64x64, 16 tokens.

    With `proposals` the vocabulary has the pieces of the engine that proposes and verifies edits, too.
    """
    size = {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2}
    settings = {
        "patch_size": PATCH_SIZE,
        "merge_size": 1,
        "size": size,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**settings),
        tokenizer=build_tokenizer(proposal_pieces() if proposals else ()),
        video_processor=Qwen3VLVideoProcessor(**settings),
        chat_template=CHAT_TEMPLATE,
    )
