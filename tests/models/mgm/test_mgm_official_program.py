"""The authors' way to call their models: prompt strings, two sizes of a picture, the arguments of their scripts."""

from __future__ import annotations

import pytest
import torch
from mgm_golden import synthetic
from samples import tiny_model
from transformers import TextIteratorStreamer

from longview import AutoModelForCausalLM, AutoTokenizer
from longview.models import mgm


@pytest.fixture(scope="module", params=mgm.Config.variants)
def checkpoint(request, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = tiny_model(mgm, request.param, tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def prepared(model, *pictures):
    turns = [{"from": "human", "value": "<image>\n" * len(pictures) + "What is this?"}, {"from": "gpt", "value": None}]
    return model.processor(model.processor.render(turns), list(pictures))


def test_generate_takes_what_the_authors_scripts_give_it(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, device_map="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    inputs = prepared(model, synthetic(40, 30), synthetic(20, 30))
    found = model.generate(
        inputs["input_ids"],
        images=inputs["images"].half(),
        images_aux=inputs["images_aux"].half(),
        do_sample=False,
        temperature=None,
        top_p=None,
        num_beams=1,
        max_new_tokens=5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=model.processor.end_tokens,
        pad_token_id=0,
        use_cache=True,
    )
    assert found.shape[0] == 1
    assert 0 < found.shape[1] <= 5, "new tokens only"
    again = model.generate(**inputs, do_sample=False, max_new_tokens=5, eos_token_id=model.processor.end_tokens)
    assert again.tolist() == found.tolist(), "half precision of the pixels decides nothing here"


def test_greedy_tokens_are_the_likeliest_of_the_plain_forward_pass(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    inputs = prepared(model, synthetic(40, 30))
    (tokens,) = model.generate(**inputs, do_sample=False, max_new_tokens=4, eos_token_id=None)
    ids = torch.cat([inputs["input_ids"][0], tokens])[None]
    with torch.no_grad():
        logits = model(input_ids=ids, images=inputs["images"], images_aux=inputs["images_aux"]).logits[0]
    assert logits[-5:-1].argmax(-1).tolist() == tokens.tolist()


def test_a_streamer_receives_the_text_that_generate_returns(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = model.processor.tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    (tokens,) = model.generate(**prepared(model, synthetic(40, 30)), max_new_tokens=8, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(tokens, skip_special_tokens=True)
