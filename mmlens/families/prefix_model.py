"""A text-only language model that is shown pictures: a vision tower, one linear projection, and a language model.

The setting of LiMBeR (Merullo et al. 2023) and of Schwettmann et al. (2023), as classes that transformers saves and
loads: importing this file makes AutoConfig, AutoModelForImageTextToText and AutoProcessor know them.
"""

from typing import Any, no_type_check

from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AddedToken,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.generation.utils import GenerationMixin
from transformers.processing_utils import ProcessorMixin


@no_type_check  # transformers gives configurations an __init__ that takes more than their fields
class PrefixConfig(PretrainedConfig):
    """The configurations of a language model and of a vision tower, and what of the tower becomes the prefix.

    `feature_layer` is an index of the tower's hidden states (0: what enters its first block, -1: what its last block
    returns), or None for the tower's own output, behind its final norm where it has one. `drop_cls` leaves out the first
    position of a tower that has a class token. `image_token_id` marks the positions that the prefix takes; it may lie
    outside of the language model's vocabulary, since it is never embedded.
    """

    model_type = "mmlens-prefix"
    sub_configs_defaults = {  # noqa: RUF012 (transformers declares it so)
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="gptj"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="beit"),
    }

    text_config: dict | PretrainedConfig | None = None
    vision_config: dict | PretrainedConfig | None = None
    feature_layer: int | None = None
    drop_cls: bool = True
    image_token_id: int = 50257
    tie_word_embeddings: bool = False


class PrefixModel(PreTrainedModel, GenerationMixin):
    """A language model whose embeddings hold projected tower features where the tokens say `image_token_id`."""

    config_class = PrefixConfig
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012 (transformers declares it so)
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    def __init__(self, config: PrefixConfig) -> None:
        super().__init__(config)
        text: Any = config.text_config
        vision: Any = config.vision_config
        language_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
        if not language_class._supports_sdpa:
            text._attn_implementation = "eager"  # GPT-J computes its own attention, and refuses any other name
        pooled = {"add_pooling_layer": False} if vision.model_type in ("beit", "vit") else {}
        self.vision_tower = AutoModel.from_config(vision, **pooled)
        self.projector = nn.Linear(vision.hidden_size, text.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(text)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another token embedding in place."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's unembedding."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another unembedding in place."""
        self.language_model.set_output_embeddings(new_embeddings)

    def set_attn_implementation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, attn_implementation: str | dict[str, Any], **options: Any
    ) -> None:
        """Choose how the tower and the language model compute attention; one that has only its own (GPT-J) keeps it."""
        chosen: Any = attn_implementation
        if isinstance(chosen, str):
            chosen = dict.fromkeys(("", "vision_config", "text_config"), chosen)
        self.config._attn_implementation_internal = chosen.get("", self.config._attn_implementation)
        for name, part in (("vision_config", self.vision_tower), ("text_config", self.language_model)):
            if name in chosen and part._can_set_attn_implementation():
                part.set_attn_implementation(chosen[name], **options)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return what each picture's positions hold: tower features, projected into the language model's stream."""
        layer = self.config.feature_layer
        outputs = self.vision_tower(
            pixel_values=pixel_values.to(self.vision_tower.dtype), output_hidden_states=layer is not None, return_dict=True
        )
        features = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]
        return self.projector(features[:, 1:] if self.config.drop_cls else features)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Return what the language model returns; positions are counted from each row's first real token unless given."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("a run needs either input_ids or inputs_embeds, and not both")
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds = self._embed(input_ids, pixel_values)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            counted = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            position_ids = counted[:, -inputs_embeds.shape[1] :]  # pyright: ignore[reportOptionalMemberAccess]
        if past_key_values is not None:  # newer transformers call it `cache`, and warn of this name
            kwargs["past_key_values"] = past_key_values
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def _embed(self, tokens: Tensor, pixel_values: Tensor | None) -> Tensor:
        """Return the token embeddings with the pictures' features in them: any token stands in for a placeholder."""
        if pixel_values is None:
            return self.get_input_embeddings()(tokens)
        held = tokens == self.config.image_token_id
        embedded = self.get_input_embeddings()(tokens.masked_fill(held, 0))
        features = self.get_image_features(pixel_values).to(embedded)
        if int(held.sum()) != features.shape[0] * features.shape[1]:
            raise ValueError(
                f"every placeholder takes one feature: got {int(held.sum())} placeholders and {features.shape[0]} pictures "
                f"of {features.shape[1]} features. Let the processor write the placeholders"
            )
        return embedded.masked_scatter(held[..., None], features)


@no_type_check  # what is saved of it is read from the signature of its __init__
class PrefixProcessor(ProcessorMixin):
    """An image processor and a tokenizer: in a text, `image_token` becomes as many tokens as a picture has positions.

    A tokenizer that does not know `image_token` is given it as an added token behind its last one; the language model's
    embedding stays as it is, because what stands at those positions is replaced. One without a padding token pads with
    its end token.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        keeps_cls: bool = False,
        chat_template: str | None = None,
        image_token: str = "<image>",
        **kwargs: Any,
    ) -> None:
        self.patch_size, self.keeps_cls, self.image_token = patch_size, keeps_cls, image_token
        if image_token not in tokenizer.get_vocab():
            tokenizer.add_tokens([AddedToken(image_token, normalized=False, special=True)], special_tokens=True)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any = None, text: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Return what the model takes: tokens (`kwargs` are the tokenizer's, `padding` and kin) and pixels."""
        texts = [text] if isinstance(text, str) else list(text)
        shown: dict[str, Any] = {} if images is None else dict(self.image_processor(images, return_tensors="pt"))
        if images is not None:
            rows, columns = (side // self.patch_size for side in shown["pixel_values"].shape[-2:])
            expanded = self.image_token * (rows * columns + self.keeps_cls)
            texts = [text.replace(self.image_token, expanded) for text in texts]
        tensors = kwargs.pop("return_tensors", None)
        tokens = self.tokenizer(texts, **kwargs)
        return BatchFeature({"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"], **shown}, tensors)


AutoConfig.register(PrefixConfig.model_type, PrefixConfig)
AutoModelForImageTextToText.register(PrefixConfig, PrefixModel)
AutoProcessor.register(PrefixConfig, PrefixProcessor)
