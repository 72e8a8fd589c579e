"""A start for reading: weights under which the decoder answers with the line of the record that a question asks for.

Seven layers, each a step that is written down: who stands before me (0), at which position (1), in which line and
passage (2), what the line and the passage say so far (3), which line a question's words ask for, or none (4), carry
that choice to the answer (5), copy the line to its end and cite its passage (6). What words mean to each other is not
written: `matching.py` learns it, apart and quickly, because the fourth step is a cosine of two weighted means.
"None" is a line too: the sentence of the instructions that an abstention repeats.

Every position keeps a constant so large that normalising hardly changes it, so a layer's input is the sum of what the
layers before it wrote; each head has one dim of its own that keeps the length of its queries and keys. So a logit is
the plain product of what `ask` and `offer` put down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.modeling import BailingMoeV2ForCausalLM, DecoderLayer, Router
from model.train.lines import MARKS, bare
from model.train.matching import Matcher
from model.train.reader_answer import SHAPE, say, say_next_but_one, write_norm
from model.train.reader_choice import carry_choice, choose_line, know_meaning
from model.train.reader_heads import LENGTH
from model.train.reader_places import apply_rules, know_line, know_neighbours, know_offset, know_place
from model.train.reader_rounding import round_model
from model.train.reader_stream import CODE, CONSTANT, HEAD, HIDDEN, NUM_LAYERS, SHORT, STREAM

ROUTED = 0.3  # how far a router's scores lie apart
_OPENING = ("<role>", "S", "Y", "ST", "EM", "</role>", "Answer")  # what every prompt begins with


@torch.no_grad()
def init_reader(model: BailingMoeV2ForCausalLM, tokens: Sequence[str], matcher: Matcher) -> None:
    """Overwrites the weights, by torch's global seed. tokens: the text of each id, special ones too; matcher: what
    words mean to each other, learned for the same tokens. The model has the shape above and a tied head."""
    layers = [layer for layer in model.model.layers if isinstance(layer, DecoderLayer)][:NUM_LAYERS]
    for layer in layers:
        nn.init.zeros_(layer.attention.dense.weight)
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            nn.init.constant_(norm.weight, CONSTANT / math.sqrt(HIDDEN))
        for name, parameter in layer.mlp.named_parameters():
            if name.endswith(("down_proj.weight", "down_proj")):
                nn.init.zeros_(parameter)
        sharp = math.sqrt(LENGTH**2 / math.sqrt(HEAD))
        for norm in (layer.attention.query_layernorm, layer.attention.key_layernorm):
            nn.init.constant_(norm.weight, sharp)
    for module in model.modules():
        if isinstance(module, Router):  # by the token itself: the constant would send every one the same way
            module.weight.zero_()
            module.weight[:, STREAM.own] = ROUTED * torch.randn(len(module.weight), SHORT)
    codes = _codes(tokens)
    model.model.word_embeddings.weight.copy_(_embeddings(tokens, codes, matcher))
    write_norm(model.model.norm.weight, bool(model.config.num_nextn_predict_layers))
    know_neighbours(model, matcher)
    apply_rules(layers[0].mlp, matcher)
    place = know_place(model, [tokens.index(text) for text in _OPENING])
    know_line(model)
    know_offset(layers[2].mlp)
    know_meaning(model, matcher)
    choose_line(model, layers[4].attention, matcher)
    carry_choice(model)
    code_of = {text: codes[id_] for id_, text in enumerate(tokens)}
    say(model, code_of, place)
    if model.config.num_nextn_predict_layers:
        say_next_but_one(model, code_of, place)
    round_model(model)


def _codes(tokens: Sequence[str]) -> Tensor:
    """[V, CODE] of 1 and -1, alike where the text is but for what `bare` takes off; nothing for a turn's opening."""
    texts = [" " if _is_gap(text) else text if text.startswith("<") else bare(text) or text for text in tokens]
    keys = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    keyed = torch.randn(len(keys), CODE).sign()[[keys[text] for text in texts]]
    # Tokens that are pieces of a character have one text, the replacement mark: they are told apart by id.
    own = torch.randn(len(tokens), CODE).sign()
    is_piece = torch.tensor(["\ufffd" in text for text in tokens])
    keyed[is_piece] = own[is_piece]
    keyed[[text in ("</role>", "") for text in tokens]] = 0
    # Digits differ in half of what is kept of them: a number's last must not be taken for the one before.
    walsh = torch.ones(1, 1)
    while len(walsh) < SHORT:
        walsh = torch.cat((torch.cat((walsh, walsh), 1), torch.cat((walsh, -walsh), 1)))
    for id_, text in enumerate(tokens):
        if text.strip().isdigit() and len(text.strip()) == 1 and text.isascii():
            keyed[id_, :SHORT] = walsh[int(text) + 1]
    return keyed


def _is_gap(text: str) -> bool:
    """What is copied as a space: where a line is only wrapped, its break."""
    return text == " " or (text != "" and not text.strip("\n"))


def _ends(text: str) -> bool:
    """Is not copied so, but as the same without its end."""
    return text.endswith("\n") or (MARKS["wide_stop"](text) and bare(text) != text)


def _embeddings(tokens: Sequence[str], codes: Tensor, matcher: Matcher) -> Tensor:
    table = torch.zeros(len(tokens), HIDDEN)
    table[:, STREAM.constant], table[:, STREAM.one] = CONSTANT, 1.0
    for name, is_marked in MARKS.items():
        table[torch.tensor([is_marked(text) for text in tokens]), STREAM.mark[name]] = 1.0
    table[:, STREAM.code] = codes
    table[:, STREAM.space] = torch.tensor(
        [SHAPE if text.startswith(" ") or _is_gap(text) or MARKS["wide_start"](text) else -SHAPE for text in tokens]
    )
    table[:, STREAM.line_break] = torch.tensor([SHAPE if _ends(text) else -SHAPE for text in tokens])
    for id_, text in enumerate(tokens):
        if MARKS["digit"](text):
            table[id_, STREAM.number.start + int(text) - 1] = 1.0
    table[:, STREAM.meaning] = matcher.embedding
    return table
