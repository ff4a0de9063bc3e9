"""Laws that need no reference. Each family's variants inherit them; no family is named here."""

from __future__ import annotations

import copy

import pytest
import torch
from samples import noise
from tolerances import SAME_MATHS
from transformers import DynamicCache

from longview.errors import RequestError
from longview.media import Frame, Medium
from longview.messages import Message, ask, image, video
from longview.models.base import checkpoint_activations


def photo(seed: int) -> Medium:
    picture = noise(seed)
    return Medium("image", "photo", [Frame(picture, 0, None)], *picture.size, 1, None, None, "digest")


def clip(*seeds: int) -> Medium:
    frames = [Frame(noise(seed), index, index / 2) for index, seed in enumerate(seeds)]
    return Medium("video", "clip", frames, *frames[0].image.size, len(frames), 1.0, 2.0, "digest")


def parts(media: list[Medium]):
    return [(image if medium.kind == "image" else video)([f.image for f in medium.frames]) for medium in media]


SAMPLES = {
    "one picture": ("What?", [photo(1)]),
    "three pictures and a clip": ("Which one is brighter?", [photo(1), photo(2), clip(3, 4)]),
    "no picture": ("Hello there, who are you?", []),
}


def prepare(processor, sample: str, train: bool = False):
    question, media = SAMPLES[sample]
    messages = [ask(question, *parts(media))]
    if train:
        messages.append(Message.of("assistant", "A blue one."))
    return processor.prepare(messages, media, train=train)


def logits(model, tensors, **changes) -> torch.Tensor:
    with torch.no_grad():
        return model(**model.embed_pictures(tensors), **changes).logits


def sequence(arguments) -> str:
    """The argument that holds the language sequence: pictures may have made embeddings of the ids."""
    return "inputs_embeds" if "inputs_embeds" in arguments else "input_ids"


def continued(cache: DynamicCache, output) -> dict:
    """What the next pass is given of the one before: the cache, and what some families keep beside it."""
    beside = {"side_cache": output.side_cache} if getattr(output, "side_cache", None) is not None else {}
    return {"past_key_values": cache, **beside}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=SAME_MATHS, rtol=0)


@pytest.mark.parametrize("sample", SAMPLES)
@torch.no_grad()
def test_prefill_and_decode_equal_the_full_forward_at_every_split(tiny, sample):
    model, processor = tiny
    arguments = model.embed_pictures(prepare(processor, sample).load_pixels())
    whole = model(**arguments).logits
    name = sequence(arguments)
    length = arguments[name].shape[1]
    for split in {1, 2, length - 1, *range(3, length - 1, 5)}:
        cache = DynamicCache(config=model.config)
        first = {**arguments, name: arguments[name][:, :split]}
        first["attention_mask"] = arguments["attention_mask"][:, :split]
        begin = model(**first, past_key_values=cache)
        rest = model(**{name: arguments[name][:, split:]}, **continued(cache, begin))
        close(torch.cat([begin.logits, rest.logits], dim=1), whole)


@torch.no_grad()
def test_token_by_token_decoding_equals_the_full_forward(tiny):
    model, processor = tiny
    arguments = model.embed_pictures(prepare(processor, "three pictures and a clip").load_pixels())
    whole = model(**arguments).logits
    cache = DynamicCache(config=model.config)
    name = sequence(arguments)
    steps = arguments.pop(name).split(1, dim=1)
    arguments.pop("attention_mask")
    found = [model(**{name: steps[0]}, past_key_values=cache, **arguments)]
    for step in steps[1:]:
        found.append(model(**{name: step}, **continued(cache, found[-1])))
    close(torch.cat([output.logits for output in found], dim=1), whole)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_alone_equals_the_row_in_any_batch_padded_on_either_side(tiny, side):
    model, processor = tiny
    samples = [prepare(processor, sample) for sample in SAMPLES]
    batch = logits(model, processor.collate(samples, padding_side=side))
    for row, sample in enumerate(samples):
        alone = logits(model, sample.load_pixels())[0]
        kept = slice(batch.shape[1] - len(alone), None) if side == "left" else slice(len(alone))
        close(batch[row, kept], alone)


def test_a_token_before_a_picture_has_no_gradient_from_it_and_one_after_has(tiny):
    model, processor = tiny
    tensors = prepare(processor, "three pictures and a clip").load_pixels()
    pixels = tensors["pixel_values"].clone().requires_grad_()
    output = model(**model.embed_pictures({**tensors, "pixel_values": pixels})).logits[0]
    answers = {}
    for token in range(0, len(output), 7):
        (gradient,) = torch.autograd.grad(output[token].square().sum(), pixels, retain_graph=True)
        answers[token] = gradient.flatten(1).abs().sum(1)  # by picture
    reached = torch.stack(list(answers.values())) > 0
    assert not reached[0].any(), "no picture stands before the first token"
    assert reached[-1].all(), "the last token attends to every picture"
    assert (reached[1:] >= reached[:-1]).all(), "a picture reaches every later token"
    assert (reached[:, :-1] >= reached[:, 1:]).all(), "pictures reach tokens in their order"


def test_without_pictures_it_is_the_plain_language_model_bit_for_bit(tiny):
    model, processor = tiny
    ids = prepare(processor, "no picture").text_inputs["input_ids"]
    plain = copy.deepcopy(model.plain_language_model())
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_pictures_and_placeholders_that_differ_in_number_are_an_error_with_both(tiny):
    model, processor = tiny
    tensors = prepare(processor, "three pictures and a clip").load_pixels()
    pictures = len(tensors["pixel_values"])
    tensors["pixel_values"] = tensors["pixel_values"][:-1]
    with pytest.raises(RequestError, match=rf"\b{pictures - 1} pictures.*\b{pictures} placeholders"):
        model(**model.embed_pictures(tensors))


@torch.no_grad()
def test_the_placeholder_positions_of_a_picture_are_the_first_hidden_states_that_depend_on_it(tiny):
    model, processor = tiny
    samples = [prepare(processor, name, train=True) for name in ("three pictures and a clip", "one picture")]
    batch = processor.collate(samples)
    positions = processor.placeholder_positions(batch)
    counts = [sample.num_pictures for sample in samples]
    assert positions.shape[0] == sum(counts)
    assert positions[:, :, 0].tolist() == [[row] * positions.shape[1] for row in (0, 1) for _ in range(counts[row])]
    before = model(**model.embed_pictures(batch), output_hidden_states=True).hidden_states[-1]
    for picture, own in enumerate(positions.tolist()):
        changed = {**batch, "pixel_values": batch["pixel_values"].clone()}
        changed["pixel_values"][picture] += 1
        after = model(**model.embed_pictures(changed), output_hidden_states=True).hidden_states[-1]
        differs = (after != before).any(-1)
        assert differs.nonzero()[0].tolist() in own
        assert not differs[1 - own[0][0]].any()


@torch.no_grad()
def test_features_given_stand_for_the_pixels_that_they_are_of(tiny):
    model, processor = tiny
    tensors = prepare(processor, "three pictures and a clip").load_pixels()
    features = model.encode(tensors["pixel_values"])
    text_inputs = {name: value for name, value in tensors.items() if name != "pixel_values"}
    assert torch.equal(model(**model.embed_pictures(text_inputs, features=features)).logits, logits(model, tensors))


@torch.no_grad()
def test_pictures_alone_are_encoded_as_within_a_conversation(tiny):
    model, processor = tiny
    tensors = prepare(processor, "one picture").load_pixels()
    alone = model.encode(**processor.pixel_inputs([noise(1), noise(2)]))
    assert alone.shape[-1] == model.config.get_text_config().hidden_size
    crops = model.encode(tensors["pixel_values"])
    assert (crops - alone[0]).abs().amax((1, 2)).min() < SAME_MATHS, "the whole picture is one of the crops"


@pytest.mark.parametrize("sample", SAMPLES)
def test_eager_attention_equals_sdpa_in_logits_and_gradients(tiny, sample):
    model, processor = tiny
    tensors = prepare(processor, sample, train=True).load_pixels()
    found = {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        model.zero_grad()
        output = model(**model.embed_pictures(tensors))
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found[attention] = (output.logits.detach(), gradients)
    model.set_attn_implementation("sdpa")
    model.zero_grad()
    close(found["sdpa"][0], found["eager"][0])
    assert found["sdpa"][1].keys() == found["eager"][1].keys()
    for name, gradient in found["sdpa"][1].items():
        reference = found["eager"][1][name]
        scale = max(1.0, float(reference.abs().max()))
        assert float((gradient - reference).abs().max()) < SAME_MATHS * scale, name


def test_gradient_checkpointing_changes_no_gradient(tiny):
    model, processor = tiny
    tensors = prepare(processor, "three pictures and a clip", train=True).load_pixels()
    found = []
    for checkpointed in (False, True):
        model.train()
        checkpoint_activations(model, checkpointed)
        model.zero_grad()
        model(**model.embed_pictures(tensors), use_cache=False).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    checkpoint_activations(model, False)
    model.eval().zero_grad()
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], atol=SAME_MATHS, rtol=0)


def test_a_saved_model_opens_as_the_same_model_with_the_same_official_names(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    processor_again = type(processor).from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    tensors = prepare(processor_again, "one picture").load_pixels()
    assert torch.equal(logits(again, tensors), logits(model, prepare(processor, "one picture").load_pixels()))


def test_every_parameter_belongs_to_a_component_that_a_recipe_can_name(tiny):
    model, _ = tiny
    names = [name for name, _ in model.named_parameters()]
    claimed = {name: [part for part, marks in model.parts.items() if any(m in name for m in marks)] for name in names}
    assert all(claimed.values())
    assert set(model.parts) >= {"vision", "connector", "language"}


def test_the_footprint_counts_the_parameters_and_the_cache_there_really_is(tiny):
    model, processor = tiny
    footprint = type(model).footprint(model.config, torch.float32)
    assert footprint.parameters == sum(p.numel() for p in model.parameters())
    inputs = prepare(processor, "three pictures and a clip")
    assert inputs.visual_tokens == inputs.num_pictures * footprint.patches_per_picture
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        arguments = model.embed_pictures(inputs.load_pixels())
        output = model(**arguments, past_key_values=cache)
    kept = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    kept += sum(beside.nbytes() for name, beside in continued(cache, output).items() if name == "side_cache")
    assert arguments[sequence(arguments)].shape[1] == inputs.length
    num_tokens = inputs.length - footprint.picture_positions * inputs.num_pictures
    assert kept == footprint.token_bytes * num_tokens + footprint.picture_bytes * inputs.num_pictures
