"""The memory connector: tokens for every k, absent memories, the soft prompt, the closed form."""

import pytest
import torch

from tinyalign.errors import ConfigError, ModelError
from tinyalign.model.configuration import TinyAlignConfig
from tinyalign.model.connectors.image import rms
from tinyalign.model.connectors.memory import MemoryConnector
from tinyalign.model.forms import FUSIONS

VISION = {"model_type": "siglip_vision_model", "hidden_size": 48, "num_hidden_layers": 1}
TEXT = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


def config(**settings):
    return TinyAlignConfig(vision_config=VISION, text_config=TEXT, token_rms=0.1, **settings)


def connector(**settings):
    torch.manual_seed(0)
    made = MemoryConnector(config(**settings))
    made.reset_parameters()
    return made


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize(("fusion", "used"), [("width", 32), ("sequence", 16)])
@pytest.mark.parametrize("skip", [False, True])
def test_tokens_for_every_k(k, fusion, used, skip):
    settings = {"memory_k": k, "memory_fusion": fusion, "memory_latents_used": used}
    made = connector(memory_linear_skip=skip, **settings)
    tokens = made(torch.randn(2, k, 32, 96))
    expected = 32 if fusion == "width" else 16 * k
    assert tokens.shape == (2, expected, 32)
    assert config(**settings).n_memory_tokens == expected
    assert 0.02 < rms(tokens) < 0.3


@pytest.mark.parametrize("fusion", FUSIONS)
def test_without_k_there_are_no_tokens(fusion):
    assert config(memory_k=0, memory_fusion=fusion).n_memory_tokens == 0


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("skip", [False, True])
def test_absent_memories_are_not_read(fusion, skip):
    made = connector(memory_k=5, memory_fusion=fusion, memory_linear_skip=skip)
    values = torch.randn(2, 5, 32, 96)
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    garbage = values.clone()
    garbage[:, 3:] = float("nan")
    assert torch.equal(made(garbage, mask), made(values, mask))
    # A bank with three entries gives three memories: the same as five of which two are masked.
    assert torch.equal(made(values[:, :3]), made(values, mask))
    assert not torch.equal(made(values), made(values, mask))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_bank_of_another_shape_is_refused(fusion):
    made = connector(memory_k=2, memory_fusion=fusion)
    with pytest.raises(ModelError, match=r"at most 2.*\(1, 3, 32, 96\)"):
        made(torch.randn(1, 3, 32, 96))
    with pytest.raises(ModelError, match="96"):
        made(torch.randn(1, 2, 32, 64))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_soft_prompt_ignores_memories_and_has_no_fewer_parameters(fusion):
    memory = connector(memory_k=5, memory_fusion=fusion)
    prompt = connector(memory_k=5, memory_fusion=fusion, memory_source="soft_prompt")
    assert size(prompt) >= size(memory)
    one, two = prompt(torch.randn(2, 5, 32, 96)), prompt(torch.randn(2, 5, 32, 96))
    assert torch.equal(one, two)
    assert one.shape == memory(torch.randn(2, 5, 32, 96)).shape
    assert torch.equal(prompt(None, batch_size=3)[0], one[0])
    one.sum().backward()
    assert prompt.table.grad.abs().sum() > 0


def test_a_soft_prompt_needs_k():
    with pytest.raises(ConfigError, match="memory_k >= 1"):
        config(memory_k=0, memory_source="soft_prompt")


def test_the_closed_form_is_what_comes_out_first():
    k, n = 3, 16
    made = connector(
        memory_k=k, memory_fusion="sequence", memory_latents_used=n, memory_linear_skip=True
    )
    weight, bias = torch.randn(24, 96, 32), torch.randn(24, 32)
    made.start_linear_skip(weight, bias)
    values = torch.randn(2, k, 32, 96)
    tokens = made(values).view(2, k, n, 32)
    for position in (0, 7, 15):
        expected = values[:, :, position] @ weight[position] + bias[position]
        torch.testing.assert_close(tokens[:, :, position], expected, atol=1e-4, rtol=1e-4)
    made(values).sum().backward()
    assert made.fusion.mlp.output.weight.grad.abs().sum() > 0  # the MLP can still learn


def test_width_fusion_starts_at_the_mean_of_the_present_memories():
    made = connector(memory_k=2, memory_linear_skip=True)
    weight, bias = torch.randn(32, 96, 32), torch.zeros(32, 32)
    made.start_linear_skip(weight, bias)
    values = torch.randn(1, 2, 32, 96)
    expected = torch.einsum("bnw,nwd->bnd", values[:, 0], weight)
    one = made(values, torch.tensor([[True, False]]))
    torch.testing.assert_close(one, expected, atol=1e-4, rtol=1e-4)


def reader(**settings):
    """A connector whose word skip reads a word for each of the first 5 numbers of a latent."""
    made = connector(memory_k=2, memory_word_skip=True, **settings)
    readout, table = torch.zeros(5, 96), torch.randn(5, 32)
    readout[:, :5] = 100.0 * torch.eye(5)
    made.start_word_skip(readout, torch.zeros(5), table)
    return made, table


def spoken(*words):
    """(1, k, 32, 96): memories whose first latents say these words."""
    values = torch.zeros(1, len(words), 32, 96)
    for i, said in enumerate(words):
        values[0, i, range(len(said)), list(said)] = 1.0
    return values


def test_the_word_skip_gives_the_llms_embedding_of_what_a_latent_says():
    made, table = reader(memory_fusion="sequence", memory_latents_used=28)
    tokens = made(spoken([3, 1], [0]), torch.tensor([[True, False]])).view(2, 28, 32)
    torch.testing.assert_close(tokens[0, :2], table[[3, 1]])
    assert not tokens[0, 24:].any()  # latents of the image
    assert not tokens[1].any()  # an absent memory
    assert not any(name.startswith("fusion.words") for name, _ in made.named_parameters())
    assert {f"fusion.words.{name}" for name in ("readout", "bias", "table")} <= set(
        made.state_dict()
    )


def test_width_fusion_gives_the_mean_of_what_the_present_memories_say():
    made, table = reader(memory_fusion="width")
    both = made(spoken([3], [1]))
    torch.testing.assert_close(both[0, 0], (table[3] + table[1]) / 2)
    one = made(spoken([3], [1]), torch.tensor([[True, False]]))
    torch.testing.assert_close(one[0, 0], table[3])


def test_a_word_skip_that_does_not_fit_is_refused():
    parts = torch.zeros(5, 96), torch.zeros(5), torch.zeros(5, 32)
    with pytest.raises(ModelError, match="memory_word_skip"):
        connector(memory_k=1).start_word_skip(*parts)
    with pytest.raises(ModelError, match=r"found \(5, 96\) and \(5, 16\), and V = 5"):
        connector(memory_k=1, memory_word_skip=True).start_word_skip(*parts[:2], torch.zeros(5, 16))


def test_a_closed_form_that_does_not_fit_is_refused():
    with pytest.raises(ModelError, match="memory_linear_skip"):
        connector(memory_k=1).start_linear_skip(torch.zeros(32, 96, 32), torch.zeros(32, 32))
    made = connector(memory_k=1, memory_linear_skip=True)
    with pytest.raises(ModelError, match=r"found \(32, 96, 16\)"):
        made.start_linear_skip(torch.zeros(32, 96, 16), torch.zeros(32, 16))


def test_settings_out_of_range_are_explained():
    with pytest.raises(ConfigError, match="memory_k"):
        config(memory_k=-1)
    with pytest.raises(ConfigError, match="width, sequence"):
        config(memory_fusion="depth")
    with pytest.raises(ConfigError, match="memory_latents_used"):
        config(memory_latents_used=33)
    knows_none = r"memory_fusion_args.* 'gates', which fusion 'width' .* knows none.*args \{\}`"
    with pytest.raises(ConfigError, match=knows_none):
        connector(memory_k=1, memory_fusion_args={"gates": 2})
    with pytest.raises(ConfigError, match="it knows 'prompt_tokens', 'prompt_hidden_size'"):
        connector(memory_k=1, memory_fusion="sequence", memory_fusion_args={"gates": 2})
    with pytest.raises(ConfigError, match="do not fit"):
        connector(memory_k=1, memory_fusion="sequence", memory_fusion_args={"prompt_tokens": "a"})


def test_the_prompt_s_mlp_may_have_a_width_of_its_own():
    settings = {"memory_k": 2, "memory_fusion": "sequence", "memory_hidden_size": 8}
    args = {"prompt_tokens": 4, "prompt_hidden_size": 24}
    fusion = connector(**settings, memory_fusion_args=args).fusion
    assert fusion.mlp.output.in_features == 8
    assert fusion.prompt_mlp.output.in_features == 24
    fusion = connector(**settings, memory_fusion_args={"prompt_tokens": 4}).fusion
    assert fusion.prompt_mlp.output.in_features == 8


def test_prompt_tokens_stand_before_the_memories_and_do_not_depend_on_them():
    settings = {
        "memory_k": 2,
        "memory_fusion": "sequence",
        "memory_latents_used": 4,
        "memory_fusion_args": {"prompt_tokens": 3},
    }
    made = connector(**settings)
    values = torch.randn(2, 2, 32, 96)
    tokens = made(values)
    assert tokens.shape[1] == config(**settings).n_memory_tokens == 3 + 2 * 4
    torch.testing.assert_close(tokens[0, :3], tokens[1, :3])
    assert not torch.allclose(tokens[0, 3:], tokens[1, 3:])
    torch.testing.assert_close(made(values * 2)[:, :3], tokens[:, :3])
    assert 0.02 < rms(tokens[:, :3]) < 0.3


def test_prompt_and_nearest_memory_may_stand_last():
    """The same tokens in another order: memories from the least similar on, then the prompt."""
    k, n, p = 3, 4, 2
    settings = {"memory_k": k, "memory_fusion": "sequence", "memory_latents_used": n}
    first = connector(**settings, memory_fusion_args={"prompt_tokens": p})
    args = {"prompt_tokens": p, "prompt_last": True, "nearest_last": True}
    last = connector(**settings, memory_fusion_args=args)
    last.load_state_dict(first.state_dict())
    values, mask = torch.randn(2, k, 32, 96), torch.tensor([[True, True, False]] * 2)
    prompt, *memories = first(values, mask).split([p, n, n, n], dim=1)
    assert torch.equal(last(values, mask), torch.cat([*reversed(memories), prompt], dim=1))


def test_a_negative_prompt_is_refused():
    args = {"prompt_tokens": -1}
    with pytest.raises(ConfigError, match="prompt_tokens"):
        MemoryConnector(config(memory_k=1, memory_fusion="sequence", memory_fusion_args=args))
