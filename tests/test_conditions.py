"""Class labels and prompt embeddings."""

import pytest
import torch

from ditf_probe.conditions import PromptEmbeddings, PromptShape, class_labels, prompt_embeddings
from ditf_probe.errors import InputError


def test_labels() -> None:
    assert class_labels(None, 3, 10).tolist() == [10, 10, 10]
    assert class_labels([0, 10], 2, 10).tolist() == [0, 10]
    assert class_labels(torch.tensor([1, 2], dtype=torch.int32), 2, 10).dtype == torch.int64
    for bad in ([1], [-1, 0], [0, 11], [0.0, 1.0], [True, False], "ab", torch.tensor([[1, 2]]), torch.ones(2)):
        with pytest.raises(InputError, match="conditions"):
            class_labels(bad, 2, 10)


def test_prompts_are_picked_by_row() -> None:
    prompts = PromptEmbeddings(
        torch.arange(6.0).reshape(3, 1, 2), torch.arange(3.0).reshape(3, 1), torch.eye(3)[:, :1] > 0
    )
    picked = prompts[torch.tensor([2, 2, 0])]
    assert (len(prompts), len(picked)) == (3, 3)
    assert picked.embeds[:, 0, 0].tolist() == [4, 4, 0]
    assert picked.pooled is not None
    assert picked.pooled.flatten().tolist() == [2, 2, 0]
    assert picked.mask is not None
    assert picked.mask.flatten().tolist() == [False, False, True]
    moved = prompts.to(torch.device("cpu"), torch.bfloat16)
    assert moved.embeds.dtype == torch.bfloat16
    assert moved.mask is not None
    assert moved.mask.dtype == torch.bool


def test_one_prompt_serves_every_image() -> None:
    prompt = PromptEmbeddings(torch.randn(1, 4, 8))
    found = prompt_embeddings(prompt, 3, PromptShape(8))
    assert torch.equal(found.embeds, prompt.embeds.expand(3, 4, 8))
    null = prompt_embeddings(None, 2, PromptShape(8, 5))
    assert null.pooled is not None
    assert (null.embeds.shape, null.pooled.shape, int(null.embeds.count_nonzero())) == ((2, 1, 8), (2, 5), 0)


def test_the_second_encoder_has_a_mask_of_its_own() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    prompts = PromptEmbeddings(torch.zeros(2, 3, 8), second=torch.arange(12.0).reshape(2, 2, 3), second_mask=mask)
    picked = prompts[torch.tensor([1, 0, 0])].to(torch.device("cpu"), torch.float16)
    assert picked.second is not None
    assert picked.second_mask is not None
    assert (picked.mask, picked.second[:, 0, 0].tolist()) == (None, [6, 0, 0])
    assert picked.second_mask.tolist() == [[True, True], [True, False], [True, False]]


def test_second_tokens_of_several_layers() -> None:
    several = PromptShape(8, second=3, second_layers=True)
    for width, fits in ((3, True), (9, True), (8, False)):
        prompt = PromptEmbeddings(torch.zeros(1, 2, 8), second=torch.zeros(1, 2, width))
        if fits:
            several.check(prompt)
        else:
            with pytest.raises(InputError, match=r"conditions\.second.* give vectors of width 3 or of several such"):
                several.check(prompt)
    with pytest.raises(InputError, match=r"conditions\.second.* give vectors of width 3$"):
        PromptShape(8, second=3).check(PromptEmbeddings(torch.zeros(1, 2, 8), second=torch.zeros(1, 2, 9)))


def test_shapes_are_checked_at_once() -> None:
    embeds = torch.zeros(2, 4, 8)
    for arguments in (
        (embeds[0],),
        (embeds, torch.zeros(3, 5)),
        (embeds, torch.zeros(5)),
        (embeds, None, torch.ones(2, 3)),
        (embeds, None, None, embeds, torch.ones(2, 3)),
        (embeds, None, None, None, torch.ones(2, 4)),
    ):
        with pytest.raises(InputError, match="conditions"):
            PromptEmbeddings(*arguments)
