from functools import partial

import pytest
import torch
from support import picture
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mmlens import HookedMLLM
from mmlens.testing import tiny


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A tiny LLaVA in float32, and a batch of two rows with a picture each and one word to predict."""
    model = HookedMLLM.from_pretrained(tiny("llava-siglip-qwen2", tmp_path_factory.mktemp("small32")), device="cpu")
    return model, *question(model)


@pytest.fixture(scope="session")
def llava(small):
    """The model of `small`."""
    return small[0]


@pytest.fixture(scope="session")
def exact(tmp_path_factory):
    """The same in float64, where finite differences are good to many digits."""

    def in_full(norm, x):  # transformers' RMS norm rounds to float32 on the way, whatever the model's dtype
        return norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)

    folder = tiny("llava-clip-llama", tmp_path_factory.mktemp("small64"), dtype=torch.float64)
    model = HookedMLLM.from_pretrained(folder, device="cpu")
    for module in model.hf_model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = partial(in_full, module)
    return model, *question(model)


def question(model):
    texts = ["what is at the left ?", "which object is red and blue ? answer :"]
    inputs = model.to_inputs(texts, images=[picture(1), picture(2)], answer="the")
    return inputs, torch.tensor([model.to_token("car"), model.to_token("boat")])
