"""Train a policy with TRL's GRPOTrainer against rewards read from a frozen judge.

What it does: samples answers to held-out prompts, trains, samples them again with the same seeds, and says what moved,
how fast the judge was, and how many groups had equal rewards (which give GRPO no gradient) under the latent rewards and
under a sampled rating of the same completions.

Source: GRPO is Shao et al. 2024 (arXiv 2402.03300); latent rewards are Girrbach et al. 2025 (arXiv 2509.24678).

    python -m recipes.grpo --config configs/grpo/quickstart.yaml [--any_key value ...]

Expected: a table on screen and, in `output_dir`, the adapter or model, run.json (resolved config, versions, judge
revision, prompt hashes, seeds), results.json, table.txt, held_out.jsonl (every sampled answer with its scores),
trainer_state.json and two PNG files. Ctrl-C keeps what there is of these and exits with 130.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.hf_argparser import HfArg
from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser, get_peft_config, get_quantization_config
from trl.data_utils import is_conversational
from trl.models import unwrap_model_for_generation

from latent_rewards import HFJudge, Reward, build_reward
from latent_rewards.compat import keep_gradients_finite, keep_states_whole
from latent_rewards.data import open_ended
from latent_rewards.data.prompts import load_prompts
from latent_rewards.engine import arithmetic
from latent_rewards.engine.loading import EMBEDDED, resolve_model
from latent_rewards.files.outputs import write_json
from latent_rewards.files.runs import as_options
from latent_rewards.files.types import JsonObject
from recipes.grpo_report import (
    NEXT,
    HeldOut,
    draw_curves,
    draw_histograms,
    format_table,
    summarise,
    summarise_graded,
    unit_of,
    write_answers,
    write_record,
)


@dataclass
class ScriptArguments:
    """What this recipe adds to TRL's `GRPOConfig` and `ModelConfig`; on the command line mappings are quoted YAML."""

    dataset_name: str = HfArg(
        default="open_ended", help="open_ended (built in), a .jsonl, .json, .parquet or .csv file, or a hub dataset."
    )
    dataset_config: str | None = HfArg(default=None, help="Configuration of a hub dataset.")
    dataset_split: str = HfArg(default="train", help="Split of a hub dataset.")
    judge: str = HfArg(default=EMBEDDED, help="Judge model, or a mapping of `HFJudge` options with the key `model`.")
    rewards: list[str] = HfArg(
        default_factory=lambda: ["weighted"],
        help="Rewards: names, or mappings with the key `reward` and that reward's options.",
    )
    baseline: str | None = HfArg(
        default="{reward: likert10, feedback: false}",
        help="Sampled rating to compare with on the held-out answers, never trained on; 'none' for none.",
    )
    held_out: int = HfArg(default=16, help="Prompts kept out of training, for before and after.")
    held_out_completions: int = HfArg(default=8, help="Answers to each held-out prompt.")
    graded: int = HfArg(default=0, help="Built-in graded prompts on which every score is checked against the grades.")
    threads: int | None = HfArg(default=None, help="CPU threads of torch. The last bits of a CPU run depend on it.")


class PrintSteps(TrainerCallback):
    """One line per logged step."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.started = names, time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.started = time.perf_counter()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, float] | None = None, **kwargs: object,
    ) -> None:  # fmt: skip
        if not state.is_world_process_zero or not logs or "reward" not in logs:
            return
        each = "  ".join(f"{n} {logs[f'rewards/{n}/mean']:.3f}" for n in self.names if f"rewards/{n}/mean" in logs)
        flat, seconds = logs.get("frac_reward_zero_std", float("nan")), time.perf_counter() - self.started
        print(
            f"step {state.global_step:>3}/{state.max_steps}  {each}  zero-spread groups {flat:.0%}  "
            f"tokens {logs.get('completions/mean_length', float('nan')):.0f}  {seconds:.0f} s",
            flush=True,
        )


def make_parser() -> TrlParser:
    """`--config file.yaml` and flags; unknown keys fail."""
    return TrlParser((ScriptArguments, GRPOConfig, ModelConfig))


def build_rewards(options: ScriptArguments) -> tuple[HFJudge, list[Reward], Reward | None]:
    """The judge, the rewards to train on, and the baseline; all share the judge."""
    judge = HFJudge(**as_options(options.judge, "model"))

    def build(entry: object) -> Reward:
        settings = as_options(entry, "reward")
        return build_reward(settings.pop("reward"), judge, **settings)

    given = [options.rewards] if isinstance(options.rewards, str) else options.rewards
    off = options.baseline in (None, "none", "null")
    return judge, [build(entry) for entry in given], None if off else build(options.baseline)


def sample_answers(trainer: GRPOTrainer, rows: Dataset, n: int) -> list[str]:
    """N answers to each of P prompts, P * n texts, prompts in order; the same seed every time."""
    args, tokenizer = trainer.args, trainer.processing_class
    prompts = [prompt for prompt in rows["prompt"] for _ in range(n)]
    sampling = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k, "do_sample": True}
    texts: list[str] = []
    devices = [trainer.accelerator.device] if trainer.accelerator.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.no_grad(),
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as policy,
    ):
        torch.manual_seed(args.seed)
        policy.eval()
        for start in range(0, len(prompts), args.per_device_eval_batch_size):
            batch = prompts[start : start + args.per_device_eval_batch_size]
            layout = {"padding": True, "return_tensors": "pt"}
            if is_conversational({"prompt": batch[0]}):
                more = dict(args.chat_template_kwargs or {}, add_generation_prompt=True, return_dict=True)
                inputs = tokenizer.apply_chat_template(batch, tokenize=True, **layout, **more)
            else:
                inputs = tokenizer(batch, **layout)
            inputs = inputs.to(policy.device)
            out = policy.generate(
                **inputs, **sampling, max_new_tokens=args.max_completion_length,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=trainer.eos_token_ids,
            )  # fmt: skip
            texts += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def score_answers(rewards: list[Reward], rows: Dataset, texts: list[str], n: int) -> HeldOut:
    """Every reward on the same answers."""
    repeated = {name: [value for value in rows[name] for _ in range(n)] for name in rows.column_names}
    prompts = repeated.pop("prompt")
    chat = is_conversational({"prompt": prompts[0]})
    completions = [[{"role": "assistant", "content": text}] if chat else text for text in texts]
    scores = {r.__name__: r.score(prompts, completions, **repeated).reshape(-1, n) for r in rewards}
    return HeldOut(texts, scores)


def check_grades(rewards: list[Reward], n: int) -> list[JsonObject]:
    """How each reward orders the answers of n built-in prompts, whose grades are known."""
    rows = open_ended()[:n]
    prompts = [row["prompt"] for row in rows for _ in row["responses"]]
    answers = [text for row in rows for text in row["responses"]]
    gold = np.array([row["gold"] for row in rows])
    return [summarise_graded(r.__name__, r.score(prompts, answers).reshape(gold.shape), gold) for r in rewards]


def report(
    trainer: GRPOTrainer, rewards: list[Reward], baseline: Reward | None, rows: Dataset, held: list[HeldOut | None],
    graded: list[JsonObject], *, completions: int, interrupted: bool, timing: dict[str, float], embedded: bool,
) -> None:  # fmt: skip
    """Write results, table and pictures, and print the table."""
    folder, state = Path(trainer.args.output_dir), trainer.state
    scored = [*rewards, *([baseline] if baseline else [])]
    flat = [entry["frac_reward_zero_std"] for entry in state.log_history if "frac_reward_zero_std" in entry]
    results = {
        "scores": [summarise(reward.__name__, *held) for reward in scored],
        "baseline": baseline.__name__ if baseline else None, "graded": graded, "held_out": len(rows),
        "completions": completions, "steps": state.global_step, "max_steps": state.max_steps,
        "interrupted": interrupted, "training_zero_spread": float(np.mean(flat)) if flat else None,
    }  # fmt: skip
    table = format_table(results, embedded)
    write_json(folder / "results.json", results | {"timing": timing})
    (folder / "table.txt").write_text(table + "\n", encoding="utf-8")
    write_answers(folder / "held_out.jsonl", rows["prompt"], *held)
    units = {reward.__name__: unit_of(reward) for reward in scored}
    trained = {reward.__name__: unit_of(reward) for reward in rewards}
    draw_curves(folder / "reward_curves.png", state.log_history, results["scores"], trained)
    draw_histograms(folder / "score_histograms.png", *held, results["scores"], units)
    rate = f"{timing['judge_pairs_per_s']:.1f}" if timing["judge_pairs_per_s"] else "-"
    print(
        f"\n{table}\n\njudge: {rate} pairs/s; whole run {timing['seconds']:.0f} s"
        f"\nfiles: {folder}/  (table.txt, results.json, held_out.jsonl, run.json and two PNG files)"
        + (f"\n{NEXT}" if embedded else ""),
        flush=True,
    )


def settle_arithmetic(training: GRPOConfig, model: ModelConfig) -> None:
    """On a CPU `dtype: auto` is what it is faster at, for the policy's weights and for what it is trained in."""
    if model.dtype != "auto" or training.device.type != "cpu":
        return
    name = resolve_model(model.model_name_or_path or EMBEDDED)
    trusted = bool((training.model_init_kwargs or {}).get("trust_remote_code"))
    config = AutoConfig.from_pretrained(name, revision=model.model_revision, trust_remote_code=trusted)
    choice = arithmetic.choose(config, quantised=model.load_in_4bit)
    model.dtype, training.bf16 = choice.name, choice.name == "bfloat16"
    training.mixed_precision = "bf16" if training.bf16 else "no"
    print(f"policy in {choice.name}: {choice.why}", flush=True)


def build_trainer(training: GRPOConfig, model: ModelConfig, rewards: list[Reward], rows: Dataset) -> GRPOTrainer:
    """TRL's trainer around the policy, printing one line per step in place of its own progress bar."""
    training.model_init_kwargs = {
        "revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }  # fmt: skip
    trainer = GRPOTrainer(
        model=resolve_model(model.model_name_or_path or EMBEDDED), reward_funcs=rewards, args=training,
        train_dataset=rows, quantization_config=get_quantization_config(model), peft_config=get_peft_config(model),
        callbacks=[PrintSteps([reward.__name__ for reward in rewards])],
    )  # fmt: skip
    keep_states_whole(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def main(argv: list[str] | None = None) -> int:
    """Run the recipe; the exit code is 130 after Ctrl-C."""
    started = time.perf_counter()
    # TRL 1.16 still sets the old name by default.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
    options, training, model = make_parser().parse_args_and_config(argv)
    keep_gradients_finite()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    where = options.dataset_name, options.dataset_config, options.dataset_split
    train_rows, held_rows = load_prompts(*where, held_out=options.held_out, seed=training.seed)
    judge, rewards, baseline = build_rewards(options)
    settle_arithmetic(training, model)
    trainer = build_trainer(training, model, rewards, train_rows)
    main_process, n = trainer.accelerator.is_main_process, options.held_out_completions
    if main_process:
        Path(training.output_dir).mkdir(parents=True, exist_ok=True)
        write_record(Path(training.output_dir), (options, training, model), judge, rewards, baseline)

    def measure(stage: str) -> HeldOut | None:
        texts = sample_answers(trainer, held_rows, n)
        if not main_process:
            return None
        print(f"{stage} training: {len(texts)} answers to {len(held_rows)} held-out prompts; scoring them", flush=True)
        return score_answers(scored, held_rows, texts, n)

    before = after = None
    graded: list[JsonObject] = []
    interrupted = False
    scored = [*rewards, *([baseline] if baseline else [])]
    try:
        if options.graded and main_process:
            print(f"checking every score on the graded answers of {options.graded} built-in prompts", flush=True)
            graded = check_grades(scored, options.graded)
        before = measure("before")
        trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        after = measure("after")
    except KeyboardInterrupt:
        interrupted = True
        print(f"\ninterrupted at step {trainer.state.global_step}; writing what there is", flush=True)
    trainer.save_model()
    trainer.save_state()
    if main_process:
        rate = judge.rows_read / judge.spent.total if judge.rows_read else 0.0
        timing = {"judge_pairs_per_s": rate, "seconds": time.perf_counter() - started}
        report(
            trainer, rewards, baseline, held_rows, [before, after], graded, completions=n, interrupted=interrupted,
            timing=timing, embedded=judge.model_name == EMBEDDED,
        )  # fmt: skip
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
