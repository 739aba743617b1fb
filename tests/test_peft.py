"""Adapters over one base: members against separate runs of PEFT, and their files against PEFT's own loader."""

import copy
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import vecsweep as vs
from vecsweep.integrations.peft import make_task, save_adapter

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the peers' own imports warn of
    import peft
    import transformers

transformers.logging.set_verbosity_error()

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),  # PEFT asks for it by its old name
    pytest.mark.filterwarnings("ignore:Could not find a config file"),  # of a base that no hub has
]
LRS = [1e-3, 1e-2, 5e-2]
VOCABULARY, WIDTH = 40, 16

CONFIGS = {
    "lora": {"kind": peft.LoraConfig, "r": 4, "lora_alpha": 8, "lora_dropout": 0.2},
    "rslora": {"kind": peft.LoraConfig, "r": 4, "use_rslora": True},
    "dora": {"kind": peft.LoraConfig, "r": 4, "use_dora": True, "lora_dropout": 0.2},
    "ia3": {"kind": peft.IA3Config},
    "prompt": {"kind": peft.PromptTuningConfig, "num_virtual_tokens": 3},
    "prefix": {"kind": peft.PrefixTuningConfig, "num_virtual_tokens": 3},
}


def float64_loss(logits, labels, vocab_size, num_items_in_batch=None, **_):
    """The loss of a causal language model, without the cast to float32 of Transformers' own."""
    logits, targets = logits[:, :-1].reshape(-1, vocab_size), labels[:, 1:].reshape(-1)
    if num_items_in_batch is None:
        return F.cross_entropy(logits, targets, ignore_index=-100)
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") / num_items_in_batch


def make_gpt2(dropout=0.1, tied=True):
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=24,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    return transformers.GPT2LMHeadModel(config)


def make_llama(dropout=0.1, tied=True):
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=24,
        attention_dropout=dropout,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def make_model(method="lora", make_base=make_gpt2, **how):
    torch.manual_seed(0)
    base = make_base(**how)
    base.loss_function = float64_loss
    is_gpt2 = make_base is make_gpt2
    own = dict(CONFIGS[method])
    kind = own.pop("kind")
    if kind is not peft.PromptTuningConfig and kind is not peft.PrefixTuningConfig:
        own |= {"target_modules": ["c_attn"] if is_gpt2 else ["q_proj", "v_proj"], "fan_in_fan_out": is_gpt2}
    if kind is peft.IA3Config:
        own["feedforward_modules"] = []
    model = peft.get_peft_model(base, kind(task_type="CAUSAL_LM", **own))
    for name, p in model.named_parameters():
        if "lora_B" in name:  # zeros, with which a LoRA begins: half of its gradients are, too
            nn.init.normal_(p, std=0.1)
    return model.train()


def make_batches(num=4, length=7):
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(num):
        ids = torch.randint(0, VOCABULARY, (2, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return batches


def train_alone(model, batches, lr, num_steps):
    """A run of PEFT as people write it, on a copy."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    torch.manual_seed(0)
    losses = []
    for t in range(num_steps):
        optimizer.zero_grad()
        loss = model(**batches[t % len(batches)]).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses), model


def assert_train_as_separate_runs(model, rtol=1e-9, engine="vectorized", num_steps=9):
    before = copy.deepcopy(model.state_dict())
    batches = make_batches()
    runs = vs.sweep(make_task(model, batches), lrs=LRS, num_steps=num_steps, engine=engine, divergence_factor=None)
    assert runs.engine.startswith(engine)
    for i, lr in enumerate(LRS):
        losses, trained = train_alone(model, batches, lr, num_steps)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=rtol)
        own = runs.model(i).state_dict()
        for name, value in trained.state_dict().items():
            torch.testing.assert_close(own[name], value, rtol=rtol, atol=rtol)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("make_base", [make_gpt2, make_llama])
@pytest.mark.parametrize("method", CONFIGS)
def test_adapters_train_as_separate_runs_do(method, make_base):
    assert_train_as_separate_runs(make_model(method, make_base))


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_adapters_of_an_untied_base_train_as_separate_runs_do(engine):
    assert_train_as_separate_runs(make_model(tied=False), engine=engine)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_adapters_are_batched_and_train_as_separate_runs_do(use_reentrant):
    model = make_model()
    model.base_model.model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_train_as_separate_runs(model)


@pytest.mark.parametrize("make_base", [make_gpt2, make_llama])
def test_adapters_of_a_bf16_base_are_batched_and_train_as_separate_runs_do(make_base):
    torch.set_default_dtype(torch.float32)
    model, batches = make_model(make_base=make_base), make_batches()
    for name, p in model.named_parameters():
        p.data = p.data.to(torch.float32 if "lora" in name else torch.bfloat16)
    runs = vs.sweep(make_task(model, batches), lrs=LRS, num_steps=6, engine="vectorized", divergence_factor=None)
    assert runs.engine.startswith("vectorized, traced")
    for i, lr in enumerate(LRS):
        losses, _ = train_alone(model, batches, lr, 6)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-2)
    assert {p.dtype for p in runs.model(0).parameters()} == {torch.bfloat16, torch.float32}


def outputs_of(model):
    with torch.no_grad():
        return [model.eval()(**batch).logits for batch in make_batches()]


@pytest.mark.parametrize("method", CONFIGS)
def test_saved_adapter_is_read_by_peft_with_the_same_outputs(method, tmp_path):
    model = make_model(method)
    base = make_model(method).get_base_model() if method in ("prompt", "prefix") else make_model(method).unload()
    runs = vs.sweep(make_task(model, make_batches()), lrs=LRS, num_steps=5, divergence_factor=None)
    folder = save_adapter(runs, 1, tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base, folder)
    for own, expected in zip(outputs_of(loaded), outputs_of(runs.model(1)), strict=True):
        assert torch.equal(own, expected)
    assert not torch.equal(outputs_of(loaded)[0], outputs_of(model)[0])


def test_adapters_of_unlike_shape_train_over_one_base_each_in_its_turn(tmp_path):
    model = make_model()
    model.add_adapter("wide", peft.LoraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True))
    for name, rank in (("default", 4), ("wide", 8)):
        model.set_adapter(name)
        runs = vs.sweep(make_task(model, make_batches()), lrs=LRS, num_steps=4, divergence_factor=None)
        losses, _ = train_alone(model, make_batches(), LRS[1], 4)
        np.testing.assert_allclose(runs.train_loss[:, 1], losses, rtol=1e-9)
        loaded = peft.PeftModel.from_pretrained(make_model().unload(), save_adapter(runs, 1, tmp_path / name))
        assert loaded.peft_config["default"].r == rank
        assert torch.equal(outputs_of(loaded)[0], outputs_of(runs.model(1))[0])
        model.train()


def test_page_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    page = (Path(__file__).parents[1] / "docs" / "lora.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "lora.md", "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} == {"best", "found"}


def test_saved_adapter_holds_nothing_of_the_base(tmp_path):
    model = make_model()
    runs = vs.sweep(make_task(model, make_batches()), lrs=LRS, num_steps=2)
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    folder = save_adapter(runs, 0, tmp_path)
    saved = load_file(folder / "adapter_model.safetensors")
    assert sum(value.nbytes for value in saved.values()) == sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".md"}
    for name, p in model.named_parameters():
        assert p.data_ptr() == before[name][0]
        assert torch.equal(p, before[name][1])


def test_learning_rate_of_an_adapter_is_found_and_the_winner_saved(tmp_path):
    model = make_model()
    answer = vs.find_lr(make_task(model, make_batches()), num_steps=32)
    assert answer.interval[0] <= answer.lr <= answer.interval[1]
    answer.model().save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model).unload(), tmp_path)
    assert torch.equal(outputs_of(loaded)[0], outputs_of(answer.model())[0])


def test_groups_at_other_learning_rates_keep_their_ratios():
    """LoRA+ (https://arxiv.org/abs/2402.12354): B at a multiple of the learning rate of A."""
    model, batches = make_model(dropout=0.0), make_batches()

    def optimizer_of(model, lr):
        named = dict(model.named_parameters())
        parts = [[p for name, p in named.items() if part in name] for part in ("lora_A", "lora_B")]
        return torch.optim.AdamW([{"params": parts[0]}, {"params": parts[1], "lr": 16 * lr}], lr=lr)

    runs = vs.sweep(make_task(model, batches, optimizer_of(model, 1.0)), lrs=LRS, num_steps=6, divergence_factor=None)
    for i, lr in enumerate(LRS):
        alone = copy.deepcopy(model)
        optimizer = optimizer_of(alone, lr)
        torch.manual_seed(0)
        for t in range(6):
            optimizer.zero_grad()
            loss = alone(**batches[t % len(batches)]).loss
            np.testing.assert_allclose(runs.train_loss[t, i], loss.item(), rtol=1e-9)
            loss.backward()
            optimizer.step()


def make_collator(multiple):
    """A collator of Transformers', which pads texts and their labels on the right."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{k}": k for k in range(VOCABULARY)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")), pad_token="w0"
    )
    return transformers.DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=multiple, label_pad_token_id=-100)


def test_texts_of_many_lengths_that_are_padded_to_a_few_train_as_unpadded_ones_do():
    model, generator = make_model("rslora", dropout=0.0), torch.Generator().manual_seed(1)
    texts = [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in range(3, 24)]
    pairs = [texts[k : k + 2] for k in range(20)]  # the two of a pair have unlike lengths, and so have all pairs
    collate = make_collator(8)
    batches = [dict(collate([{"input_ids": own, "labels": own} for own in pair])) for pair in pairs]
    assert len({batch["input_ids"].shape for batch in batches}) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of more than 16 shapes, say
        runs = vs.sweep(make_task(model, batches), lrs=LRS, num_steps=20, engine="vectorized", divergence_factor=None)
    assert runs.engine.startswith("vectorized, traced")
    for i, lr in enumerate(LRS):
        alone = copy.deepcopy(model)
        optimizer = torch.optim.AdamW([p for p in alone.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
        for t, pair in enumerate(pairs):
            optimizer.zero_grad()
            num_targets = sum(len(text) - 1 for text in pair)
            loss = 0.0
            for text in pair:  # each alone, without a padded token or a mask
                ids = torch.tensor([text])
                own = F.cross_entropy(alone(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
                loss = loss + own / num_targets
            loss.backward()
            optimizer.step()
            np.testing.assert_allclose(runs.train_loss[t, i], loss.item(), rtol=1e-9)


def test_model_without_an_adapter_is_refused():
    with pytest.raises(TypeError, match=r"must be what `peft.get_peft_model` returns; got GPT2LMHeadModel"):
        make_task(make_gpt2(), make_batches())
    batches = [(torch.ones(2, 2), torch.ones(2, 1))]
    task = vs.Task(nn.Linear(2, 1), batches, F.mse_loss, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    with pytest.raises(TypeError, match=r"must be of models of PEFT; got Linear. `runs.save_model"):
        save_adapter(vs.sweep(task, lrs=[0.1], num_steps=2), 0, "nowhere")


def test_adapter_that_was_loaded_to_be_used_is_refused(tmp_path):
    make_model().save_pretrained(tmp_path)
    frozen = peft.PeftModel.from_pretrained(make_gpt2(), tmp_path)
    with pytest.raises(ValueError, match=r"whose parameters are all frozen. Load it with .*is_trainable=True"):
        make_task(frozen, make_batches())


# Prints what a sweep of 16 adapters holds at most beyond the model, the adapters with gradients and moments, and the
# activations, which are what a step of all texts in a single batch holds; and how large the base is.
IN_MEMORY = """
import warnings
warnings.simplefilter("ignore")
import peft, torch, transformers
import vecsweep as vs
from vecsweep.integrations.peft import make_task

def held():
    status = open("/proc/self/status").read()
    return [int(status.split(name + ":")[1].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")]

def highest(function):
    open("/proc/self/clear_refs", "w").write("5")
    before = held()[0]
    function()
    return held()[1] - before

def made(width, num_layers):
    config = transformers.GPT2Config(vocab_size=64, n_positions=8, n_embd=width, n_layer=num_layers, n_head=4)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    config.use_cache = False
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    return peft.get_peft_model(transformers.GPT2LMHeadModel(config), lora)

def sweep(model):
    ids = torch.arange(4).view(1, 4)
    task = make_task(model, [{"input_ids": ids, "labels": ids}])
    lrs = [1e-4 * (i + 1) for i in range(16)]
    vs.sweep(task, lrs=lrs, num_steps=4, engine="vectorized", progress=False)

sweep(made(16, 1))
model = made(1024, 2)
ids = torch.arange(4).view(1, 4)
model(input_ids=ids, labels=ids).loss.backward()
model.zero_grad()
adapters = 16 * 4 * sum(p.nbytes for p in model.parameters() if p.requires_grad)
texts = ids.repeat(16, 1)
activations = highest(lambda: model(input_ids=texts, labels=texts).loss.backward())
base = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
print(highest(lambda: sweep(model)) - activations - adapters, base)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_sixteen_adapters_of_a_base_take_little_more_memory_than_they_are():
    command = [sys.executable, "-W", "ignore", "-c", IN_MEMORY]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    beyond, base = map(int, done.stdout.split())
    assert base > 100e6
    assert beyond < 60e6, "a copy of the base would be 100"
