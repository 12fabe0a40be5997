"""A frozen vision-language model that verifies edits; its gradient reaches the pixels (NP-Edit, section 4.2)."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from cluster.errors import UserError, one_line
from stages.train.vlm.preprocessing import model_inputs, pixel_settings


def load_verifier(model: str, device: str, dtype: torch.dtype) -> Verifier:
    """The verifier from a model folder. Raises UserError if the folder holds no model that it knows."""
    try:
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
        pixel_settings(getattr(processor, "image_processor", None))  # before the weights are read
        network = AutoModelForImageTextToText.from_pretrained(
            model, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
        return Verifier(network.to(device), processor)
    except (OSError, ValueError, KeyError) as error:
        text = one_line(error)
        raise UserError(
            f"{model} can't verify edits as a vision-language model ({text}): name a folder with a Qwen2-VL, "
            "Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision model, its processor and its weights as safetensors."
        ) from error


class Verifier:
    """Asks Yes/No questions about images. A row is a question and its images: (source, edited), or (edited,).

    All rows of a call have the same number of images. The weights are frozen; dropout is off.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self._settings = pixel_settings(processor.image_processor)
        self._prompt_ids = functools.lru_cache(maxsize=4096)(self._tokenized)
        self.yes_id, self.no_id = self._answer_id("Yes"), self._answer_id("No")

    def yes_no_logits(self, images: list[torch.Tensor], questions: list[str]) -> torch.Tensor:
        """Logits of (Yes, No) as the answer's first token, `[B, 2]` in float32.

        `images`: one or two tensors `[B, 3, H, W]` in [0, 1].
        """
        head = self.model.get_output_embeddings()
        answers = [self.yes_id, self.no_id]
        bias = None if head.bias is None else head.bias[answers].float()
        # Two rows of the head, in float32: the difference of two large bfloat16 logits would be coarse.
        return F.linear(self._answer_states(images, questions).float(), head.weight[answers].float(), bias)

    def loss(
        self, images: list[torch.Tensor], questions: list[str], right: list[bool], vocabulary: bool = False
    ) -> torch.Tensor:
        """Eq. 4: `-log sigmoid(l_right - l_wrong)` of each row, `[B]`.

        With `vocabulary` the cross-entropy of the right answer over all tokens instead (section 5.3).
        """
        says_yes = torch.tensor(right, device=images[0].device)
        if vocabulary:
            logits = self.model.get_output_embeddings()(self._answer_states(images, questions)).float()
            target = torch.where(says_yes, self.yes_id, self.no_id)
            return F.cross_entropy(logits, target, reduction="none")
        yes, no = self.yes_no_logits(images, questions).unbind(1)
        return F.softplus(torch.where(says_yes, no - yes, yes - no))

    def _answer_states(self, images: list[torch.Tensor], questions: list[str]) -> torch.Tensor:
        """The hidden states `[B, D]` that predict the answers' first tokens: no other position meets the head."""
        inputs = model_inputs(images, self._settings)
        image_texts = tuple(self.processor.replace_image_token(inputs, image_idx=i) for i in range(len(images)))
        rows = [torch.tensor(self._prompt_ids(question, image_texts)) for question in questions]
        last = torch.tensor([len(row) - 1 for row in rows])
        # Padded on the right, where causal attention never looks, every token keeps the position it has alone.
        pad = self.processor.tokenizer.pad_token_id or 0
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        mask = torch.arange(input_ids.shape[1]) <= last[:, None]
        inputs |= {"input_ids": input_ids, "attention_mask": mask.long()}
        if "mm_token_type_ids" in self.processor.model_input_names:
            inputs["mm_token_type_ids"] = ((input_ids == self.processor.image_token_id) & mask).int()
        device = images[0].device
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        hidden = self.model.model(**inputs, use_cache=False).last_hidden_state
        return hidden[torch.arange(len(rows), device=device), last.to(device)]

    def _tokenized(self, question: str, image_texts: tuple[str, ...]) -> list[int]:
        """Token ids of the chat up to the answer; `image_texts` stand for the images, a token per image token."""
        text = self._prompt(question, len(image_texts))
        if text.count(self.processor.image_token) != len(image_texts):
            raise UserError(
                f'The question "{question}" holds {self.processor.image_token}, which stands for an image in the '
                "model's prompts; take it out of the row's text."
            )
        (text,), _ = self.processor.get_text_with_replacements([text], list(image_texts))
        return self._encoded(text)

    def _prompt(self, question: str, num_images: int) -> str:
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)

    def _encoded(self, text: str) -> list[int]:
        tokenizer = self.processor.tokenizer
        begun = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)  # the template wrote it already
        return tokenizer(text, add_special_tokens=not begun)["input_ids"]

    def _answer_id(self, answer: str) -> int:
        """The token of an answer behind the prompt. Raises ValueError if it is not exactly one."""
        prompt = self._prompt("?", 0)
        before, after = self._encoded(prompt), self._encoded(prompt + answer)
        if after[: len(before)] != before or len(after) != len(before) + 1:
            raise ValueError(f"its tokenizer has no single token for the answer {answer}")
        return after[-1]
