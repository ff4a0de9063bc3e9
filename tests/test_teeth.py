"""Teeth: each of these one-line vandalisms must turn the suite red. Slow, because each runs tests of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FUSION, ATTENTION, VISUAL, COMPAT, MODEL, PROCESSOR = (
    f"models/owl3/{name}.py" for name in ("fusion", "attention", "visual_kv_cache", "compat", "model", "processor")
)
GOLDEN, LAWS, TEXTS = "models/owl3/test_golden.py", "models/test_laws.py", "models/owl3/test_processor.py"
SEQUENCE = "models/sequence.py"
OVIS_FUSION, OVIS_MODEL, OVIS_PROCESSOR, OVIS_CROPS, OVIS_TOWERS = (
    f"models/ovis2/{name}.py" for name in ("fusion", "model", "processor", "crops", "towers")
)
OVIS_GOLDEN, OVIS_TEXTS, OVIS_FOLDERS = (
    f"models/ovis2/test_ovis2_{name}.py" for name in ("golden", "processor", "checkpoint")
)

SIMILARITY, NEAR = "models/similarity.py", "models/test_similarity.py"
BATCHES = "engine/test_batching.py"
EVIDENCE, EVIDENCE_LAWS = "engine/test_evidence.py", "models/test_evidence_laws.py"
PROCESSES, KILLED = "train/distributed/test_processes.py", "train/test_killed.py"

MGM_CONFIG, MGM_FUSION, MGM_MODEL, MGM_PROCESSOR, MGM_TOWERS, MGM_CONVERT, MGM_WORDS, MGM_LABELS = (
    f"models/mgm/{name}.py"
    for name in ("config", "fusion", "model", "processor", "towers", "convert", "conversation", "labels")
)
MGM_GOLDEN, MGM_MINING, MGM_TEXTS, MGM_FOLDERS = (
    f"models/mgm/test_mgm_{name}.py" for name in ("golden", "fusion", "processor", "checkpoint")
)

VANDALISMS = {
    "a picture is visible to its placeholder's first token, in every release": (
        ATTENTION,
        "[start if inclusive else start + 1 for start in placeholder_starts]",
        "[start for start in placeholder_starts]",
        GOLDEN,
    ),
    "pictures are visible to tokens before them": (ATTENTION, "visible = bisect_right(first_visible, left)", "visible = len(placeholder_starts)", LAWS),
    "pictures are visible to the next sample of a packed row": (ATTENTION, "first = bisect_left(placeholder_starts, sample_starts[num_samples - 1]) if num_samples else 0", "first = 0", "models/test_packing.py"),
    "the mask of the eager path forgets that pictures come in order": (
        VISUAL,
        "torch.arange(begin, begin + length, device=device)[:, None]",
        "torch.arange(begin, begin + length, device=device)[:, None] + 1000",
        LAWS,
    ),
    "keys and values of pictures lie one after the other, not head by head": (
        FUSION,
        ".unflatten(-1, (-1, 2, self.head_dim))",
        ".unflatten(-1, (2, -1, self.head_dim)).transpose(-3, -2)",
        GOLDEN,
    ),
    "values are rotated by the keys' positions": (
        FUSION,
        "transpose(0, 1), value.flatten(0, 1)",
        "transpose(0, 1), rotated.flatten(0, 1)",
        GOLDEN,
    ),
    "the gate is upside down": (FUSION, "text * (1 - gate) + visual.to(text.dtype) * gate", "text * gate + visual.to(text.dtype) * (1 - gate)", GOLDEN),
    "a token before the first picture is gated, too": (FUSION, "gate = torch.where(torch.isfinite(lse).unsqueeze(-1), self._gate(text_context), 0.0)", "gate = self._gate(text_context)", GOLDEN),
    "pictures and text swap shares in the joint softmax": (FUSION, "torch.sigmoid(visual_lse - text_lse)", "torch.sigmoid(text_lse - visual_lse)", GOLDEN),
    "the softmax forgets its scale": (FUSION, "(-1, self.num_key_value_groups)) * self.scaling", "(-1, self.num_key_value_groups))", GOLDEN),
    "the gradient of the streaming softmax has a wrong sign": (ATTENTION, "shift = grad_lse - (output", "shift = grad_lse + (output", "models/owl3/test_attention.py"),
    "picture keys are not rotated": (FUSION, "rotate(key.float(), angles.cos(), angles.sin()).to(key.dtype)", "key", GOLDEN),
    "picture positions are off by one": (MODEL, "extra = 0 if self.config.joint_softmax else 1", "extra = 1 if self.config.joint_softmax else 0", GOLDEN),
    "padding on the left moves the pictures": (MODEL, "positions.append([(row[start] if start < length else beyond + start) + extra for start in row_starts])", "positions.append([past + start + extra for start in row_starts])", LAWS),
    "the tower's last block is run": (MODEL, "tower.encoder.layers[:-1]", "tower.encoder.layers", GOLDEN),
    "pictures and placeholders may differ in number": (SEQUENCE, "if num_pictures != num_placeholders:", "if False:", LAWS),
    "generation samples as the folder suggests": (COMPAT, "                **GREEDY,\n", "", "models/owl3/test_official_programs.py"),
    "pictures are resized bilinearly": (PROCESSOR, "Image.Resampling.BICUBIC", "Image.Resampling.BILINEAR", TEXTS),
    "the global view comes first": (PROCESSOR, "crops.append(resize(image, (side, side), Image.Resampling.BICUBIC))", "crops.insert(0, resize(image, (side, side), Image.Resampling.BICUBIC))", TEXTS),
    "crops run column by column": ("models/tiling.py", "for row in range(rows)\n        for column in range(columns)", "for column in range(columns)\n        for row in range(rows)", TEXTS),
    "the grid's two scores weigh the same": (PROCESSOR, "shape * np.float32(100) + size", "shape + size", TEXTS),
    "text can become a special token": ("models/processing.py", "split_special_tokens=not parse_specials", "split_special_tokens=False", TEXTS),
    "the user's text is learned": (PROCESSOR, 'add(self._encode("".join(texts), parse_specials))', 'add(self._encode("".join(texts), parse_specials), learn=True)', TEXTS),
    "half a character is shown": ("engine/text.py", 'or text.endswith("\\N{REPLACEMENT CHARACTER}")', "", "engine/test_text.py"),
    "stop strings are shown when cut across tokens": ("engine/text.py", "cut = len(self._held) - keep", "cut = len(self._held)", "engine/test_text.py"),
    "top-p drops the token that crosses it": ("engine/sampling.py", "probabilities.cumsum(-1) - probabilities >= params.top_p", "probabilities.cumsum(-1) >= params.top_p", "engine/test_sampling.py"),
    "a wrong shape is loaded": ("models/checkpoint.py", "if name in found and found[name] != shape", "if False", "models/test_checkpoint.py"),
    "a shard may lie outside the folder": ("models/checkpoint.py", "Path(file).name != file or not", "not", "models/test_checkpoint.py"),
    "an ovis picture is encoded with the norm that its checkpoint holds and does not apply": (OVIS_TOWERS, "if self._applies_norm else hidden", "if True else hidden", OVIS_GOLDEN),
    "merged patches run column by column": (OVIS_FUSION, "blocks.transpose(2, 3).flatten(3)", "blocks.permute(0, 1, 3, 4, 2, 5).flatten(3)", OVIS_GOLDEN),
    "indicators count from the end": (OVIS_FUSION, "indicators[BEGIN - input_ids[is_indicator]]", "indicators[input_ids[is_indicator] - END]", OVIS_GOLDEN),
    "visual words compete across positions": (OVIS_FUSION, "return logits.softmax(-1)", "return logits.softmax(-2)", OVIS_GOLDEN),
    "labels grow over crops": (SEQUENCE, ".masked_fill(is_picture, IGNORED)", "", "models/ovis2/test_ovis2_fusion.py"),
    "crops are masked where their placeholder is not": (SEQUENCE, "mask[row, sources] | is_picture", "~is_picture", OVIS_GOLDEN),
    "rows and columns of crops are swapped": (OVIS_CROPS, "ids += [ROW] * (row > 0) + [PLACEHOLDER] + [COLUMN, PLACEHOLDER] * (columns - 1)", "ids += [COLUMN] * (row > 0) + [PLACEHOLDER] + [ROW, PLACEHOLDER] * (columns - 1)", OVIS_TEXTS),
    "a folder's number of frames is forgotten": (OVIS_PROCESSOR, 'MediaOptions(select="ovis2", frames=frames)', 'MediaOptions(select="ovis2")', OVIS_TEXTS),
    "what words told is asked a word too early": ("curriculum/probes.py", "ends = {end: begin + at for", "ends = {end: begin + at - 1 for", "curriculum/test_vocabulary.py"),
    "crops are resized bilinearly": (OVIS_CROPS, "resample: int = 3", "resample: int = 2", OVIS_TEXTS),
    "a long sequence keeps its beginning for generation": (OVIS_FUSION, "slice(-limit, None) if left_padding", "slice(limit) if left_padding", OVIS_GOLDEN),
    "the user's text is learned by an ovis": (OVIS_PROCESSOR, 'learned = role == "assistant" and learn', 'learned = role != "system" and learn', OVIS_TEXTS),
    "a crop may keep less": (OVIS_CROPS, "COVERED = 0.9", "COVERED = 0.8", OVIS_TEXTS),
    "a tied head is what the checkpoint holds": (OVIS_MODEL, "        if config.tied:\n", "        if False:\n", OVIS_FOLDERS),
    "text alone trains no picture's parameters": (OVIS_MODEL, "if self.training:  #", "if False:  #", OVIS_GOLDEN),
    "an ovis reads special tokens in a user's text": ("models/processing.py", "split_special_tokens=not parse_specials", "split_special_tokens=False", OVIS_TEXTS),
    "padding on the left moves the tokens": (SEQUENCE, "(attention_mask.long().cumsum(-1) - 1).clamp(min=0)", "(attention_mask.long().cumsum(-1) + torch.arange(attention_mask.shape[1]) % 2)", LAWS),
    "a head and a table may disagree": ("models/ovis2/convert.py", "if outputs + NUM_INDICATORS != rows:", "if False:", OVIS_FOLDERS),
    "a long question's mean is stretched to length one": (SIMILARITY, "return vectors.mean(0, keepdims=True).astype(np.float64)", "mean = vectors.mean(0, keepdims=True)\n        return (mean / np.linalg.norm(mean)).astype(np.float64)", NEAR),
    "the end of a long question is not read": (SIMILARITY, "return heads + tails[::-1]", "return heads", NEAR),
    "every question encodes the frames anew": (SIMILARITY, "        self._store(found)\n", "", NEAR),
    "frames are resized bilinearly for the towers": (SIMILARITY, "self._images.resample)", "2)", NEAR),
    "frames are chosen by their differences alone": ("media/candidates.py", "relevance.values, count)", "[1.0] * len(frames), count)", "engine/test_select.py"),
    "frames are chosen by the first question alone": ("engine/prepare.py", 'if message.role == "user").strip()', 'if message.role == "user").split("\\n")[0]', "engine/test_select.py"),
    "pairs that fit are pushed apart": ("curriculum/contrastive.py", "torch.where(fits, 1.0, -1.0)", "torch.where(fits, -1.0, 1.0)", "curriculum/test_contrastive.py"),
    "every pass of a stream has one order": ("train/data/datasets.py", "pass {self._passed} buffer", "pass 0 buffer", "train/data/test_sources.py"),
    "the same pictures are cut in all samples": ("train/objectives/of_data.py", '{self._seed} crop {position}"', '{self._seed} crop"', "train/data/test_sample_format.py"),
    "what stands around a caption is learned": (OVIS_PROCESSOR, 'labels += tokens if role == "assistant" else [IGNORED] * len(tokens)', "labels += [token if token >= 0 else IGNORED for token in tokens]", OVIS_TEXTS),
    "an epoch that begins in a step mixes modalities": ("train/data/grouping.py", "[rest[:lead], *whole, rest[lead:]]", "[*whole, rest]", "train/data/test_grouping.py"),
    "a caption's pictures lie beside its file": ("train/data/sources.py", "folder or entry.folder or", "folder or", "train/data/test_sources.py"),
    "texts are drawn for other pictures": ("curriculum/contrastive.py", "named <= facts for facts in held", "bool(named & facts) for facts in held", "curriculum/test_contrastive.py"),
    "a patch mines its neighbour's window": (MGM_FUSION, "return rows.permute(0, 2, 4, 1, 3, 5)", "return rows.permute(0, 4, 2, 1, 3, 5)", MGM_MINING),
    "patches compete for what they mine": (MGM_FUSION, "scores.softmax(-1)", "scores.softmax(1)", MGM_MINING),
    "mining forgets its scale": (MGM_FUSION, "key = key / math.sqrt(query.shape[-1])", "key = key / 1.0", MGM_GOLDEN),
    "what is mined replaces the coarse features": (MGM_FUSION, "[view + mining(view, under", "[mining(view, under", MGM_GOLDEN),
    "keys and values change places": (MGM_FUSION, "self.key(window), self.value(window)", "self.value(window), self.key(window)", MGM_GOLDEN),
    "the whole picture comes last": (MGM_FUSION, "    if grid > 1:\n        yield coarse[:, -1], resized(fine, fine.shape[-1] // grid)\n", "", MGM_GOLDEN),
    "the whole picture mines nothing but a corner": (MGM_FUSION, "resized(fine, fine.shape[-1] // grid)", "fine[..., : fine.shape[-1] // grid, : fine.shape[-1] // grid]", MGM_GOLDEN),
    "scores overflow in half precision": (MGM_FUSION, ".nan_to_num()", "", MGM_MINING),
    "the class token takes part": (MGM_TOWERS, "return hidden[:, 1:]", "return hidden[:, :-1]", MGM_GOLDEN),
    "the last block of the small tower is run": (MGM_TOWERS, "return numbers[select_layer]", "return numbers[-1]", MGM_GOLDEN),
    "the fine stages are enlarged in blocks": (MGM_FUSION, 'mode="bilinear", align_corners=False', 'mode="nearest"', MGM_GOLDEN),
    "small pictures are made of large ones corner to corner": (MGM_FUSION, "align_corners=False", "align_corners=True", MGM_TEXTS),
    "gemma's pictures are not scaled as its tokens are": (MGM_MODEL, "own.to(tokens.device, tokens.dtype) * scale", "own.to(tokens.device, tokens.dtype)", MGM_GOLDEN),
    "gemma's gelu is the one that transformers prefers": (MGM_CONFIG, 'language.hidden_act = fields["hidden_act"]', "pass", MGM_GOLDEN),
    "the large tower is always the checkpoint's": (MGM_CONVERT, 'return "vision_tower_aux" not in config.described and', "return False and", MGM_GOLDEN),
    "the large tower is never the checkpoint's": (MGM_CONVERT, " and not config.optimize_vision_tower_aux", "", MGM_GOLDEN),
    "a folder's own words about pickles are trusted": ("models/checkpoint.py", "weights_only=True", "weights_only=False", MGM_FOLDERS),
    "padding between tokens stays in the sequence": (MGM_MODEL, "compact=True", "compact=False", MGM_GOLDEN),
    "an hd model may do without the whole picture": (MGM_CONFIG, "if self.image_global != (self.image_grid > 1):", "if False:", MGM_FOLDERS),
    "a checkpoint may do without mining": (MGM_CONVERT, "if not any(name.startswith(prefix) for name in shapes):", "if False:", MGM_FOLDERS),
    "pictures are padded with black": (MGM_PROCESSOR, "Image.Resampling.BICUBIC, _BORDER)", "Image.Resampling.BICUBIC, (0, 0, 0))", MGM_TEXTS),
    "large pictures are resized bilinearly": (MGM_PROCESSOR, "Image.Resampling.BICUBIC", "Image.Resampling.BILINEAR", MGM_TEXTS),
    "each stretch of text begins a sequence": (MGM_PROCESSOR, "skipped = len(self._begin) if parse else 0", "skipped = 0", MGM_TEXTS),
    "special tokens of a user are meant": (MGM_PROCESSOR, "if len(real) == len(specials):", "if True:", MGM_TEXTS),
    "llama 3 answers as an assistant": (MGM_WORDS, '"<|start_header_id|>system<|end_header_id|>\\n\\n",\n        "<|eot_id|>",', '"<|start_header_id|>assistant<|end_header_id|>\\n\\n",\n        "<|eot_id|>",', MGM_TEXTS),
    "a later round is as long as its tokens in every tokenizer": (MGM_LABELS, "shift = -1 if", "shift = 0 if", MGM_TEXTS),
    "the user's text is learned by an mgm": (MGM_WORDS, "*_message(message or [])", "*_message(message or [], learn)", MGM_TEXTS),
    "the space before an answer is not learned": (MGM_WORDS, "Span(template.gap, learned=learn)", "Span(template.gap)", MGM_TEXTS),
    "red is read as blue": ("plugins/ocr.py", "[:, :, ::-1]", "", "plugins/test_ocr.py"),
    "guesses are written into the question": ("plugins/ocr.py", "if score > MIN_SCORE", "if True", "plugins/test_ocr.py"),
    "the first description is painted": ("plugins/draw.py", 'answer.rpartition("</h>")', 'answer.partition("</h>")', "plugins/test_draw.py"),
    "a painting overwrites another": ("plugins/draw.py", "while place.exists():", "while False:", "plugins/test_draw.py"),
    "a reference sees through eyes that have learned": ("train/objectives/preference.py", "if self._encoder_trains:", "if False:", "train/objectives/test_supervised.py"),
    "the eyes of a pair's model and reference look at each answer": ("train/objectives/preference.py", "set(self.stage.train) != {\"language\"}", "True", "train/objectives/test_supervised.py"),
    "four bits are asked of weights that learn": ("train/recipe.py", "if model.adapter is None and model.quantize is not None:", "if False:", "train/test_qlora.py"),
    "the connector is quantised": ("models/quantization.py", 'if part != "language"', 'if part == "vision"', "models/test_quantization.py"),
    "a bound that is out of range is let in": ("settings.py", "low < value if self.above else low <= value", "low <= value", "test_settings.py"),
    "the engine's own hooks are forgotten": ("engine/prepare.py", "every = [*engine.hooks, ", "every = [", "engine/test_hooks.py"),
    "what a hook made is lost in a batch": ("engine/engine.py", "replace(answer, made=", "replace(answer) if True else dict(made=", "engine/test_hooks.py"),
    "pictures take no room in the sequence": ("engine/prepare.py", "if inputs.length >= engine.context_length", 'if inputs.text_inputs["input_ids"].shape[1] >= engine.context_length', "engine/test_engine.py"),
    "the sampler counts pictures as tokens": ("engine/request.py", ".tolist() if token >= 0]", ".tolist()]", "engine/test_engine.py"),
    "a row reads what stands behind its end": ("engine/kv_cache.py", "device=device) <= write_positions[:, None]", "device=device) <= write_positions.max()", BATCHES),
    "rows of different lengths are at the same position": ("engine/model_runner.py", "torch.tensor(decode_batch.lengths + padding, device=device)[:, None]", "torch.full((len(tokens), 1), decode_batch.longest)", BATCHES),
    "a row that takes another's place leaves its pictures behind": ("engine/decode_batch.py", "side_caches[row] = side_caches[last]", "pass", BATCHES),
    "another picture has the same keys and values": ("engine/prefix_cache.py", "pair[0] != pair[1]", "pair[0][0] != pair[1][0]", BATCHES),
    "NaN stays in a row that another request gets": ("engine/scheduler.py", "zero=request.error is not None", "zero=False", BATCHES),
    "processes keep their gradients to themselves": ("train/distributed/sharding.py", "        dist.all_reduce(summed)\n", "", PROCESSES),
    "each process learns from every sample": ("train/data/batches.py", "batches[processes.rank() :: processes.count()]", "batches", PROCESSES),
    "a process divides by its own words": ("train/objectives/of_data.py", "sum(share[name] for share, _ in shares)", "mine[name]", PROCESSES),
    "a broken frame is met where its sample can no longer be left out": ("train/data/samples.py", "        inputs.load_pixels()  #", "        # ", "train/objectives/test_supervised.py"),
    "a recipe is read as it once was": ("train/recipe.py", "    refuse_moved_keys(tree)\n", "", "train/test_recipe.py"),
    "a bit may turn on the disk": ("train/saved/manifest.py", "        if found != digest:", "        if False:", KILLED),
    "losses that no line tells are forgotten": ("train/loop.py", "self.journal.losses = read_losses(folder)", "read_losses(folder)", KILLED),
    "a checkpoint grows in its place": ("train/saved/checkpoint.py", "folder.parent / UNFINISHED\n", "folder\n", KILLED),
    "what a killed run left behind stays": ("train/saved/checkpoint.py", "steps_of(old) < steps_of(newest)", "False", KILLED),
    "the last weights are taken for the best": ("train/loop.py", "if best != self.evaluations.found[-1]:", "if False:", "train/test_validation.py"),
    "rows that are held out are learned from": ("train/data/datasets.py", "(self, np.sort(order[count:]))", "(self, np.sort(order))", "train/test_validation.py"),
    "dropout draws on where it left off": ("train/loop.py", "    torch.manual_seed(", "    str(", KILLED),
    "the query of the token itself is asked": ("engine/scheduler.py", "request.prefix_key.length - 1", "request.prefix_key.length", EVIDENCE),
    "the pass over an answer stays in its row": ("engine/kv_cache.py", "keys[:, length:end], values[:, length:end] = old_keys, old_values", "pass", "engine/test_kv_cache.py"),
    "evidence of pictures that a token cannot see": (FUSION, "scores.masked_fill(~visible.unsqueeze(2), -torch.inf)", "scores", EVIDENCE_LAWS),
    "text takes no part in the joint softmax of evidence": (FUSION, "torch.logaddexp(lse, text_lse)", "lse", "models/owl3/test_owl3_evidence.py"),
    "evidence forgets the gate": (FUSION, ".exp().nan_to_num() * gate", ".exp().nan_to_num()", "models/owl3/test_owl3_evidence.py"),
    "recorded attention forgets its scale": ("models/evidence.py", ".float() * scale", ".float()", EVIDENCE_LAWS),
    "patches of a crop's border lie on its neighbour": ("engine/evidence.py", ".clip(*shown)", "", EVIDENCE),
    "what pixels a tower drops is forgotten": (PROCESSOR, "reached = side * self.config.vision_config.patch_size", "reached = size", EVIDENCE_LAWS),
    "a fitted crop begins in the corner": (OVIS_PROCESSOR, "PatchGrid.of_crop(reached, side, side, fitted, box)", "PatchGrid.of_crop(reached, side, side, (0, 0, *fitted[2:]), box)", EVIDENCE_LAWS),
    "quarters come before the whole picture": (MGM_PROCESSOR, "views = [(1, 0, 0)] if grid > 1 else []  #", "views = []  #", EVIDENCE_LAWS),
    "what is left is cut as if it were alone": (OVIS_PROCESSOR, "num_media = sample_format.num_media or len(media)", "num_media = len(media)", "evidence/test_deletion.py"),
    "a frame that is left out is shown": ("evidence/deletion.py", "if picture.number not in left_out:", "if True:", "evidence/test_deletion.py"),
    "a cancelled request is decoded to its end": ("engine/scheduler.py", "elif request.cancelled:", "elif False:", BATCHES),
}  # fmt: skip


@pytest.mark.parametrize("name", VANDALISMS)
def test_the_line_to_break_is_there(name):
    file, sane, broken, tests = VANDALISMS[name]
    assert sane in (ROOT / "longview" / file).read_text(), f"{file} no longer holds it; write the vandalism anew"
    assert sane != broken
    assert (ROOT / "tests" / tests).exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", VANDALISMS)
def test_the_suite_notices_that(name, tmp_path):
    file, sane, broken, tests = VANDALISMS[name]
    package = shutil.copytree(ROOT / "longview", tmp_path / "longview", ignore=shutil.ignore_patterns("__pycache__"))
    source = (package / file).read_text()
    (package / file).write_text(source.replace(sane, broken))
    shutil.copytree(
        ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", "media", "test_teeth.py")
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"tests/{tests}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1, result.stdout[-2000:]
