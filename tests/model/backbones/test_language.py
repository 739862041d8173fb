"""Language models from a folder and from a package."""

import pytest
import torch

from tinyalign.errors import ModelError
from tinyalign.model.backbones.language import load_language


def test_a_folder_loads_in_the_dtype_and_attention_asked_for(tiny_llm_dir):
    model, tokenizer = load_language(tiny_llm_dir, torch.bfloat16, "eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert not model.training
    assert tokenizer.pad_token_id is not None


def test_a_tokenizer_without_pad_token_gets_one(tiny_llm_dir, tmp_path):
    model, tokenizer = load_language(tiny_llm_dir)
    tokenizer.pad_token = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _, loaded = load_language(tmp_path)
    assert loaded.pad_token_id == loaded.eos_token_id


def test_a_missing_gguf_file_is_named():
    with pytest.raises(ModelError, match=r"nowhere\.gguf"):
        load_language("nowhere.gguf")


@pytest.mark.slow
def test_packaged_smollm2_loads_dense_and_can_be_saved(tmp_path):
    pytest.importorskip("gguf", reason="gguf not installed")
    try:
        model, tokenizer = load_language("smollm2-135m", torch.bfloat16)
    except ModelError as error:
        pytest.skip(str(error))
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    logits = model(input_ids=ids).logits
    assert tokenizer.decode(logits[0, -1].argmax()).strip() == "Paris"
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_language(tmp_path)
    assert torch.equal(loaded(input_ids=ids).logits, logits)
