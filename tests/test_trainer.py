"""Tasks from a Trainer of Transformers: its own `train()` is the oracle."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs
from vecsweep.integrations import peft as for_peft
from vecsweep.integrations.transformers import make_task, options_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the peers' own imports warn of
    import peft
    import transformers

transformers.logging.set_verbosity_error()

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]
LRS = [1e-3, 1e-2]
VOCABULARY, LENGTH = 40, 7


class Texts(torch.utils.data.Dataset):
    """Rows of tokens, of which more or fewer count."""

    def __init__(self, num=24):
        self.ids = torch.randint(0, VOCABULARY, (num, LENGTH), generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        labels = self.ids[i].clone()
        labels[: i % 4] = -100
        return {"input_ids": self.ids[i], "attention_mask": torch.ones(LENGTH, dtype=torch.long), "labels": labels}


def make_model(has_adapter=False):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    model = transformers.GPT2LMHeadModel(config)
    if has_adapter:
        model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    return model


def make_trainer(folder, lr=LRS[1], model=None, kind=transformers.Trainer, parts=None, data=None, **how):
    how = {"num_train_epochs": 2} | how
    arguments = transformers.TrainingArguments(
        str(folder),
        learning_rate=lr,
        per_device_train_batch_size=4,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        **how,
    )
    model = make_model() if model is None else model
    train, validate = (Texts(), Texts(8)) if data is None else (data, None)
    return kind(model, arguments, train_dataset=train, eval_dataset=validate, **parts or {})


def losses_of(trainer):
    """Those that `train()` logs, one a step."""
    trainer.train()
    return np.array([logged["loss"] for logged in trainer.state.log_history if "loss" in logged])


@pytest.mark.parametrize(
    ("has_adapter", "how"),
    [
        (False, {}),  # linear decay, shuffled batches, norms clipped at 1
        (True, {"gradient_accumulation_steps": 2, "warmup_steps": 2, "weight_decay": 0.1}),
        (True, {"lr_scheduler_type": "cosine", "max_grad_norm": 0.1, "max_steps": 9}),
        (False, {"optim": "sgd", "lr_scheduler_type": "constant", "data_seed": 5, "num_train_epochs": 1.5}),
        (False, {"train_sampling_strategy": "sequential", "dataloader_drop_last": True, "max_grad_norm": 0.0}),
    ],
)
def test_member_at_a_trainers_learning_rate_has_the_losses_of_its_train(has_adapter, how, tmp_path, capsys):
    trainer = make_trainer(tmp_path, model=make_model(has_adapter), **how)
    before = copy.deepcopy(trainer.model.state_dict())
    runs = vs.sweep(make_task(trainer), lrs=LRS, **options_of(trainer), engine="vectorized", divergence_factor=None)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert trainer.optimizer is None
    assert trainer.lr_scheduler is None
    for i, lr in enumerate(LRS):
        expected = losses_of(make_trainer(tmp_path, lr, make_model(has_adapter), **how))
        np.testing.assert_allclose(runs.train_loss[:, i], expected, rtol=2e-5)
    np.testing.assert_allclose(runs.train_loss[:, 1], losses_of(trainer), rtol=2e-5)  # which can still be run


class Classes(Texts):
    """The same rows, each of one class."""

    def __getitem__(self, i):
        return super().__getitem__(i) | {"labels": self.ids[i, 0] % 3}


class Stream(torch.utils.data.IterableDataset):
    """The same rows, whose number is not told."""

    def __iter__(self):
        return map(Texts().__getitem__, range(len(Texts())))


class Halving(transformers.Trainer):
    """With a scheduler of its own."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer or self.optimizer, 2, 0.5)
        self._created_lr_scheduler = True
        return self.lr_scheduler


class Unscaled(transformers.Trainer):
    """Whose losses are to be averaged over the batches of a step, though the model divides by their tokens."""

    loss_is_scaled_for_ga = False


class Listed(transformers.Trainer):
    """With batches in a list."""

    def get_train_dataloader(self):
        rows = [self.train_dataset[i] for i in range(len(self.train_dataset))]
        return [torch.utils.data.default_collate(rows[i : i + 4]) for i in range(0, len(rows), 4)]


class Shuffled(transformers.Trainer):
    """With a loader of its own, whose sampler draws more where it is asked for more than it has."""

    def get_train_dataloader(self):
        generator = torch.Generator().manual_seed(3)
        return torch.utils.data.DataLoader(self.train_dataset, 4, shuffle=True, generator=generator)


def make_classifier():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


def mean_loss(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels)


@pytest.mark.parametrize(
    ("make", "data", "how"),
    [
        # Trainer adds up what it takes for parts of a sum, though these are means.
        (make_classifier, Classes, {"gradient_accumulation_steps": 2}),
        (make_classifier, Classes, {"gradient_accumulation_steps": 2, "parts": {"compute_loss_func": mean_loss}}),
        (make_classifier, Classes, {"gradient_accumulation_steps": 3, "label_smoothing_factor": 0.2}),
        (make_model, Texts, {"gradient_accumulation_steps": 2, "label_smoothing_factor": 0.2}),
        (make_model, Texts, {"gradient_accumulation_steps": 4}),  # of 6 batches: 4 and 2
        (make_classifier, Classes, {"gradient_accumulation_steps": 4, "parts": {"compute_loss_func": mean_loss}}),
        (make_model, Stream, {"max_steps": 8}),
        (make_model, Stream, {"max_steps": 4, "gradient_accumulation_steps": 3}),
        (make_model, Texts, {"kind": Halving}),
        (make_model, Texts, {"kind": Unscaled, "gradient_accumulation_steps": 2}),
        (make_model, Texts, {"kind": Listed, "gradient_accumulation_steps": 4}),
        (make_model, Texts, {"kind": Shuffled}),
        (make_model, Texts, {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 5e-4}}),
        (make_model, Texts, {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 5e-4}}),
    ],
)
def test_steps_of_a_trainer_are_added_up_and_scheduled_as_it_does(make, data, how, tmp_path, capsys):
    trainer = make_trainer(tmp_path, model=make(), data=data(), **how)
    runs = vs.sweep(make_task(trainer), lrs=LRS, **options_of(trainer), engine="vectorized", divergence_factor=None)
    for i, lr in enumerate(LRS):
        expected = losses_of(make_trainer(tmp_path, lr, make(), data=data(), **how))
        np.testing.assert_allclose(runs.train_loss[:, i], expected, rtol=2e-5)


def test_order_of_batches_is_that_of_the_seed_in_place_as_in_train(tmp_path, capsys):
    def make(lr):
        trainer = make_trainer(tmp_path, lr)
        torch.manual_seed(5)  # from which accelerate takes the order
        return trainer

    trainer = make(LRS[1])
    runs = vs.sweep(make_task(trainer), lrs=LRS, **options_of(trainer), divergence_factor=None)
    for i, lr in enumerate(LRS):
        np.testing.assert_allclose(runs.train_loss[:, i], losses_of(make(lr)), rtol=2e-5)


def test_trainer_that_has_been_run_trains_on_as_a_new_one_would(tmp_path, capsys):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trained = copy.deepcopy(trainer.model)
    torch.manual_seed(5)
    runs = vs.sweep(make_task(trainer), lrs=LRS, **options_of(trainer), divergence_factor=None)
    assert trainer.optimizer.param_groups[0]["lr"] == 0.0  # where the schedule has left it
    for i, lr in enumerate(LRS):
        new = make_trainer(tmp_path, lr, copy.deepcopy(trained))
        torch.manual_seed(5)
        np.testing.assert_allclose(runs.train_loss[:, i], losses_of(new), rtol=2e-5)


class Padded(Classes):
    """Texts that end early."""

    def __getitem__(self, i):
        row = super().__getitem__(i)
        is_padding = torch.arange(LENGTH) > 2 + i % 4
        return row | {"input_ids": row["input_ids"].masked_fill(is_padding, VOCABULARY - 2)}


@pytest.mark.parametrize("pad_token_id", [None, 0])
def test_end_of_a_text_is_found_by_the_tokens_of_the_tokenizer(pad_token_id, tmp_path, capsys):
    def make(lr):
        torch.manual_seed(0)
        model = transformers.GPT2ForSequenceClassification(
            transformers.GPT2Config(
                vocab_size=VOCABULARY,
                n_positions=16,
                n_embd=16,
                n_layer=1,
                n_head=2,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                num_labels=3,
                pad_token_id=pad_token_id,
            )
        )
        parts = {"processing_class": make_tokenizer(), "data_collator": transformers.default_data_collator}
        return make_trainer(tmp_path, lr, model, data=Padded(), parts=parts)

    trainer = make(LRS[1])
    runs = vs.sweep(make_task(trainer), lrs=LRS, **options_of(trainer), divergence_factor=None)
    assert trainer.model.config.pad_token_id == pad_token_id
    for i, lr in enumerate(LRS):
        np.testing.assert_allclose(runs.train_loss[:, i], losses_of(make(lr)), rtol=2e-5)


def mean_square(outputs, labels, num_items_in_batch=None):
    return outputs.logits.square().sum() / num_items_in_batch + F.relu(labels).double().mean() * 0


def test_trainers_own_loss_function_is_taken(tmp_path, capsys):
    parts = {"compute_loss_func": mean_square}
    trainer = make_trainer(tmp_path, parts=parts)
    runs = vs.sweep(make_task(trainer), lrs=LRS, **options_of(trainer), divergence_factor=None)
    np.testing.assert_allclose(runs.train_loss[:, 1], losses_of(make_trainer(tmp_path, parts=parts)), rtol=2e-5)


def test_trainer_of_an_adapter_is_validated_on_its_own_data_set_and_seeds_have_other_orders(tmp_path):
    trainer = make_trainer(tmp_path, model=make_model(has_adapter=True))
    runs = vs.sweep(for_peft.make_task(trainer), lrs=LRS, seeds=2, **options_of(trainer))
    assert runs.metrics["val_loss"].shape[1] == 4
    first = {member.seed: loss for member, loss in zip(runs.members, runs.train_loss[0], strict=True)}
    assert len(set(first.values())) == 2
    expected = trainer.evaluate()["eval_loss"]
    untrained = vs.sweep(for_peft.make_task(trainer), lrs=[1e-12], num_steps=1, val_every=1)
    np.testing.assert_allclose(untrained.metrics["val_loss"][-1, 0], expected, rtol=1e-5)


def test_learning_rate_of_a_trainers_run_is_found(tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=6)
    answer = vs.find_lr(make_task(trainer), **options_of(trainer))
    assert answer.interval[0] <= answer.lr <= answer.interval[1]
    assert answer.num_steps == 36


def make_tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {f"w{k}": k for k in range(VOCABULARY - 2)} | {"[PAD]": VOCABULARY - 2, "[EOS]": VOCABULARY - 1}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]")


@pytest.mark.filterwarnings("ignore")  # what TRL and the libraries under it warn of
def test_member_at_the_learning_rate_of_an_sft_trainer_has_the_losses_of_its_train(tmp_path, capsys):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    generator = np.random.default_rng(0)
    rows = [" ".join(f"w{k}" for k in generator.integers(30, size=generator.integers(3, 7))) for _ in range(16)]

    def make(lr=LRS[1]):
        arguments = trl.SFTConfig(
            str(tmp_path),
            learning_rate=lr,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            num_train_epochs=3,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            dataset_num_proc=1,
        )
        data = datasets.Dataset.from_dict({"text": rows})
        lora = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
        torch.manual_seed(0)
        return trl.SFTTrainer(
            make_model(), arguments, train_dataset=data, processing_class=make_tokenizer(), peft_config=lora
        )

    trainer = make()
    runs = vs.sweep(for_peft.make_task(trainer), lrs=LRS, **options_of(trainer), divergence_factor=None)
    for i, lr in enumerate(LRS):
        np.testing.assert_allclose(runs.train_loss[:, i], losses_of(make(lr)), rtol=1e-4)


def test_what_cannot_be_read_of_a_trainer_is_refused(tmp_path):
    class Own(transformers.Trainer):
        def compute_loss(self, model, inputs, **_):
            return model(**inputs).loss

    with pytest.raises(ValueError, match=r"must compute its loss as Trainer does; Own has a `compute_loss`"):
        make_task(make_trainer(tmp_path, kind=Own))
    with pytest.raises(ValueError, match=r"must train without `neftune_noise_alpha`.*; got 5"):
        make_task(make_trainer(tmp_path, neftune_noise_alpha=5.0))
    model = make_model()
    model.add_module("norm", nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"must divide the 6 batches of an epoch where .* statistics.*; got 4"):
        make_task(make_trainer(tmp_path, model=model, gradient_accumulation_steps=4))
    with pytest.raises(ValueError, match=r"must be one that needs no metric; got 'greedy'"):
        options_of(make_trainer(tmp_path, lr_scheduler_type="greedy", eval_strategy="epoch"))
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    trainer = make_trainer(tmp_path, model=model, parts={"optimizers": (optimizer, scheduler)})
    assert make_task(trainer).optimizer is optimizer
    with pytest.raises(ValueError, match=r"must make its scheduler by itself; got a StepLR"):
        options_of(trainer)
    trainer.eval_dataset = {"one": Texts(), "two": Texts()}
    with pytest.raises(ValueError, match=r"must be one data set; got several, \['one', 'two'\]"):
        make_task(trainer)
    with pytest.raises(TypeError, match=r"`batches` must be given with a model"):
        make_task(nn.Linear(2, 2))


def test_trainers_of_trl_that_compute_a_loss_of_their_own_are_refused(tmp_path):
    class SFTTrainer(transformers.Trainer):
        def compute_loss(self, model, inputs, **_):
            return model(**inputs).loss

    class Distilling(SFTTrainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) / 2

    class Online(transformers.Trainer):
        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs)

    SFTTrainer.__module__ = Distilling.__module__ = Online.__module__ = "trl.trainer"
    make_task(make_trainer(tmp_path, kind=SFTTrainer))
    with pytest.raises(ValueError, match=r"must compute its loss as Trainer does; Distilling has a `compute_loss`"):
        make_task(make_trainer(tmp_path, kind=Distilling))
    with pytest.raises(ValueError, match=r"must compute its loss as Trainer does; Online has a `training_step`"):
        make_task(make_trainer(tmp_path, kind=Online))


def test_optimizer_that_steps_within_the_backward_pass_is_refused_before_it_hooks_into_the_model(tmp_path):
    trainer = make_trainer(tmp_path, optim="galore_adamw_layerwise", optim_target_modules=["attn"])
    with pytest.raises(ValueError, match=r"`optim` must be one that steps after the backward pass; got 'galore_adamw"):
        make_task(trainer)
    assert not any(p._post_accumulate_grad_hooks for p in trainer.model.parameters())


@pytest.mark.filterwarnings("ignore:The learning rates of a sweep:UserWarning")
def test_groups_at_other_learning_rates_and_parameters_in_none_are_told_of(tmp_path, capsys):
    class Layered(transformers.Trainer):
        def create_optimizer(self):
            model, lr = self.model.transformer, self.args.learning_rate
            groups = [{"params": model.h.parameters(), "lr": lr / 2}, {"params": model.wte.parameters()}]
            self.optimizer = torch.optim.AdamW(groups, lr)
            return self.optimizer

    with pytest.warns(vs.FallbackWarning, match=r"Trainer counts in 3 parameters .* `transformer.wpe.weight`"):
        make_task(make_trainer(tmp_path, kind=Layered))
    trainer = make_trainer(tmp_path, kind=Layered, max_grad_norm=0.0)
    with pytest.warns(UserWarning, match=r"first of 2 parameter groups, which Layered gives 0.005 at .* 0.01"):
        task = make_task(trainer)
    runs = vs.sweep(task, lrs=[lr / 2 for lr in LRS], **options_of(trainer), divergence_factor=None)
    for i, lr in enumerate(LRS):
        expected = losses_of(make_trainer(tmp_path, lr, kind=Layered, max_grad_norm=0.0))
        np.testing.assert_allclose(runs.train_loss[:, i], expected, rtol=2e-5)


def test_callbacks_that_act_within_the_training_are_named(tmp_path, recwarn):
    class Logging(transformers.TrainerCallback):
        def on_log(self, *args, **kwargs):
            pass

    class Freezing(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            model.requires_grad_(False)

    early = transformers.EarlyStoppingCallback()
    make_task(make_trainer(tmp_path, parts={"callbacks": [Logging(), early]}))
    assert not [told for told in recwarn if issubclass(told.category, vs.FallbackWarning)]
    with pytest.warns(vs.FallbackWarning, match=r"train without `on_step_end` of Freezing"):
        make_task(make_trainer(tmp_path, parts={"callbacks": [Freezing()]}))


def test_what_a_trainers_class_does_otherwise_is_named(tmp_path):
    class Own(transformers.Trainer):
        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs)

    with pytest.warns(vs.FallbackWarning, match=r"train without `training_step` of Own"):
        make_task(make_trainer(tmp_path, kind=Own))


def test_batches_left_over_by_a_stream_are_told_of(tmp_path):
    trainer = make_trainer(tmp_path, data=Stream(), max_steps=3, gradient_accumulation_steps=4)
    with pytest.warns(vs.FallbackWarning, match=r"last 2 batches of a pass.* are left out"):
        vs.sweep(make_task(trainer), lrs=LRS, **options_of(trainer))


def test_lists_in_place_of_tensors_are_told_of():
    batches = [{"input_ids": [[1, 2], [3, 4]], "labels": [[1, 2], [3, 4]]}]
    with pytest.raises(TypeError, match=r"got lists as \['input_ids', 'labels'\], .*with_format"):
        vs.sweep(make_task(make_model(), batches), lrs=LRS, num_steps=1)
