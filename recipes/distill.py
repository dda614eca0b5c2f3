"""Distil several teachers into one student; a frozen judge chooses, per prompt, whom to learn from.

What it does: lets every teacher respond to the training prompts (or takes responses that are there); scores them with
a latent reward and with a sampled Likert rating; chooses a teacher per prompt; writes the chosen responses with the
columns that trainers route on; trains a student with each way of choosing and each seed; measures, on held-out
prompts, the divergence from every teacher and the judge's score of what the student says.

Source: choosing by latent scores is Girrbach et al. 2025 (arXiv 2509.24678); GKD is Agarwal et al. 2024 (arXiv
2306.13649); entropy weights are Su et al. 2023 (ER-KD, arXiv 2311.13621).

    python -m recipes.distill --config configs/distill/cpu.yaml [--any_key value ...]

Expected in `output_dir`: chosen-<choice>.jsonl (SFT set and routing columns in one), choices.json, report.md,
results.json, distill.png, run.json, and student/ of the first choice's first seed. Responses, scores and finished runs
are kept, so that a stopped run goes on; another configuration needs another `output_dir`. Several processes (DDP,
ZeRO-2) train together; each has all teachers and the judge, and does the rest of the work again.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config
from trl.experimental.gkd import GKDConfig

from latent_rewards import HFJudge, Reward, build_reward
from latent_rewards.best_of_n.config import Manifest
from latent_rewards.compat import keep_gradients_finite
from latent_rewards.distillation.choice_rows import choice_report, choice_rows, write_rows
from latent_rewards.distillation.options import LossOptions
from latent_rewards.distillation.teacher_choice import TeacherChoice, choose_teachers, loss_weights
from latent_rewards.distillation.trainer import MultiTeacherGKDTrainer
from latent_rewards.engine.loading import EMBEDDED, resolve_model
from latent_rewards.files.outputs import write_json
from latent_rewards.files.runs import PACKAGES, as_options, versions
from latent_rewards.files.types import JsonObject, Messages, Row
from latent_rewards.rewards.response_scores import score_responses
from latent_rewards.stats.distributions import row_means
from recipes.distill_data import given_responses, kept, mapping, read_prompts, respond
from recipes.distill_models import HeldOutText, load_student, load_teacher, sample_responses
from recipes.distill_report import Measured, Runs, draw, examples, write_report

MAY_CHANGE = (  # of the trainer's options, by their beginning, where a run goes on
    "output_dir", "log", "report", "run_name", "save", "push", "hub", "local_rank", "ddp", "dataloader", "disable_tqdm",
    "resume", "eval", "project", "trackio",
)  # fmt: skip


@dataclass
class DistillArguments:
    """What this recipe adds to TRL's `GKDConfig` and `ModelConfig`; on the command line mappings are quoted YAML."""

    student: str = HfArg(default=EMBEDDED, help="Model, or a mapping: model, layers (keep so many), dtype.")
    teachers: list[str] = HfArg(
        default_factory=list,
        help="Mappings: name, and model (with adapter, noise, dtype) or nothing where responses are given.",
    )
    judge: str = HfArg(default=EMBEDDED, help="Judge, or a mapping of `HFJudge` options.")
    reward: str = HfArg(default="weighted", help="Latent reward that chooses, or a mapping with options.")
    likert: str = HfArg(
        default="{reward: likert10, feedback: false}", help="Sampled rating that chooses, to compare with."
    )
    also: list[str] = HfArg(default_factory=list, help="Further rewards to score held-out answers with.")
    choices: list[str] = HfArg(
        default_factory=lambda: ["latent"], help="Ways of choosing to train with: latent, likert, random, single."
    )
    single: str | None = HfArg(default=None, help="Teacher of 'single' and of the margin's fallback; default first.")
    method: str = HfArg(default="argmax", help="From scores to teachers: argmax, softmax or margin.")
    choice_temperature: float = HfArg(default=1.0, help="Of softmax, in score units.")
    margin: float = HfArg(default=0.0, help="Of margin, in score units.")
    weigh_by_score: bool = HfArg(default=False, help="Weigh each prompt by its chosen score over 10.")
    responses: str | None = HfArg(
        default=None, help="JSON Lines of prompt, responses and perhaps gold ({teacher: ...}), instead of sampling."
    )
    responses_temperature: float = HfArg(default=0.7, help="At which teachers respond; 0 is greedy.")
    trainer: str = HfArg(default="gkd", help="gkd: whole distributions; sft: chosen responses only.")
    loss: str = HfArg(default="{}", help="Mapping of `LossOptions`; beta is GKD's unless given here.")
    seeds: list[int] = HfArg(default_factory=lambda: [0], help="One training run each.")
    dataset_name: str = HfArg(default="open_ended", help="As in recipes/grpo.py.")
    dataset_config: str | None = HfArg(default=None, help="Configuration of a hub dataset.")
    dataset_split: str = HfArg(default="train", help="Split of a hub dataset.")
    held_out: int = HfArg(default=16, help="Prompts kept out of training.")
    limit: int | None = HfArg(default=None, help="Most training prompts.")
    threads: int | None = HfArg(default=None, help="CPU threads of torch.")


@dataclass
class Material:
    """All that the runs share."""

    names: list[str]
    teachers: dict[str, PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    prompts: list[Messages]
    held: list[Messages]
    responses: list[list[str | None]]
    held_text: dict[str, HeldOutText]
    reward: Reward
    also: list[Reward]
    choices: dict[str, TeacherChoice]
    scores: np.ndarray


def make_parser() -> TrlParser:
    """`--config file.yaml` and flags; unknown keys fail."""
    return TrlParser((DistillArguments, GKDConfig, ModelConfig))


def prepare(args: DistillArguments, training: GKDConfig) -> Material:
    """Teachers, their responses, the judge's scores, the choices."""
    out = Path(training.output_dir)
    specs = [mapping(entry) for entry in args.teachers]
    names = [spec.pop("name") for spec in specs]
    prompts, held = read_prompts(args, training.seed)
    models = {
        n: load_teacher(spec).to(training.device) for n, spec in zip(names, specs, strict=True) if "model" in spec
    }
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(as_options(args.student, "model")["model"]))
    tokens, gold = training.max_new_tokens, None
    if args.responses is not None:
        texts, gold = given_responses(args.responses, names, prompts)
    else:
        texts = kept(
            out / "responses.json", lambda: respond(args, models, tokenizer, prompts, tokens, training.seed, "train")
        )
    held_texts = kept(
        out / "held_out.json", lambda: respond(args, models, tokenizer, held, tokens, training.seed + 1, "held-out")
    )
    responses = [list(row) for row in zip(*(texts[n] for n in names), strict=True)]
    judge = HFJudge(**as_options(args.judge, "model"))

    def build(entry: object) -> Reward:
        options = as_options(entry, "reward")
        return build_reward(options.pop("reward"), judge, **options)

    reward, likert, also = build(args.reward), build(args.likert), [build(e) for e in args.also]
    rewards = [reward, likert, *also] if "likert" in args.choices else [reward, *also]
    scored = score_responses(rewards, prompts, responses, cache=out / "scores")
    present = np.array([[text is not None for text in row] for row in responses])
    choices = choose_all(args, names, scored.scores[reward.__name__], scored.scores.get(likert.__name__), present)
    extra = {r.__name__: choose_teachers(scored.scores[r.__name__], present=present) for r in also}
    report = choice_report(names, choices | extra, scores=scored.scores[reward.__name__], gold=gold)
    report["mean_score"] = {
        r.__name__: dict(zip(names, row_means(scored.scores[r.__name__].T).tolist(), strict=True)) for r in rewards
    }
    report["judge"] = {"name": judge.name, "revision": judge.revision}
    report["unscored"] = {n: len(why) for n, why in scored.reasons.items()}
    report["examples"] = examples(names, prompts, responses, scored.scores, choices)
    if PartialState().is_main_process:
        write_json(out / "choices.json", report)
    from trl.experimental.utils import DataCollatorForChatML

    collator = DataCollatorForChatML(tokenizer=tokenizer, max_length=training.max_length)
    held_text = {
        n: HeldOutText(
            model, collator,
            [[*p, {"role": "assistant", "content": t}] for p, t in zip(held, held_texts[n], strict=True) if t],
        )
        for n, model in models.items()
    }  # fmt: skip
    return Material(
        names, models, tokenizer, prompts, held, responses, held_text, reward, also, choices,
        scored.scores[reward.__name__],
    )  # fmt: skip


def choose_all(
    args: DistillArguments, names: list[str], latent: np.ndarray, likert: np.ndarray | None, present: np.ndarray
) -> dict[str, TeacherChoice]:
    """Each way of choosing. Prompts without any response have no teacher."""
    fallback = names.index(args.single) if args.single is not None else 0
    scored: JsonObject = {
        "method": args.method, "temperature": args.choice_temperature, "margin": args.margin, "fallback": fallback,
    }  # fmt: skip
    out = {}
    for name in args.choices:
        if name == "latent":
            out[name] = choose_teachers(latent, **scored, present=present)
        elif name == "likert":
            assert likert is not None
            out[name] = choose_teachers(likert, **scored, present=present)
        elif name in ("random", "single"):
            out[name] = choose_teachers(latent, name, fallback=fallback, present=present)  # type: ignore[arg-type]
        else:
            raise ValueError(f"unknown choice {name!r}; use latent, likert, random or single")
        if (out[name].index < 0).all():
            raise ValueError(
                f"choice {name!r} finds no teacher for any prompt: no response has a score, or none is there"
            )
    return out


def training_rows(args: DistillArguments, m: Material, choice: TeacherChoice) -> list[Row]:
    """Rows of one way of choosing."""
    weights = loss_weights(m.scores, choice.index) if args.weigh_by_score else None
    return choice_rows(m.prompts, m.responses, m.names, choice, scores=m.scores, weights=weights)


def build_trainer(
    args: DistillArguments, config: GKDConfig, model: ModelConfig, m: Material, rows: list[Row]
) -> SFTTrainer:
    """A fresh student and its trainer."""
    torch.manual_seed(config.seed)
    student = load_student(as_options(args.student, "model"))
    peft = get_peft_config(model)
    if args.trainer == "sft":
        known = {f.name for f in dataclasses.fields(SFTConfig) if f.init}
        shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name in known}
        data = Dataset.from_list([{k: row[k] for k in ("prompt", "completion")} for row in rows])
        shared["dataset_kwargs"] = None
        return SFTTrainer(
            student, SFTConfig(**shared), train_dataset=data, processing_class=m.tokenizer, peft_config=peft
        )
    if args.trainer != "gkd":
        raise ValueError(f"trainer must be 'gkd' or 'sft', got {args.trainer!r}")
    missing = sorted({row["teacher_id"] for row in rows} - set(m.teachers))
    if missing:
        raise ValueError(f"teachers {missing} have responses but no model: use trainer: sft")
    keep = ("messages", "teacher_id", "teacher_weights", "loss_weight")
    data = Dataset.from_list([{k: row[k] for k in keep} for row in rows])
    loss = LossOptions(**{"beta": config.beta, **mapping(args.loss)})
    return MultiTeacherGKDTrainer(
        student, m.teachers, config, loss=loss, train_dataset=data, processing_class=m.tokenizer, peft_config=peft
    )


def measure(args: DistillArguments, config: GKDConfig, m: Material, student: PreTrainedModel, seed: int) -> Measured:
    """A student on the held-out prompts: divergence from each teacher, and scores of its own responses."""
    texts = sample_responses(
        student, m.tokenizer, m.held, max_new_tokens=config.max_new_tokens, temperature=args.responses_temperature,
        seed=seed, label="student, held-out",
    )  # fmt: skip
    found = score_responses([m.reward, *m.also], m.held, [[text] for text in texts])
    return {
        "divergence": {name: text.divergence(student) for name, text in m.held_text.items()},
        "scores": {n: [None if np.isnan(x) else float(x) for x in s[:, 0]] for n, s in found.scores.items()},
        "texts": texts,
    }


def untrained(args: DistillArguments, training: GKDConfig, m: Material, seed: int) -> Measured:
    """The student before any training, measured."""
    return measure(args, training, m, load_student(as_options(args.student, "model")).to(training.device), seed)


def run(
    args: DistillArguments, training: GKDConfig, model: ModelConfig, m: Material, choice: str, seed: int
) -> Measured:
    """One student: trained with one way of choosing and one seed, then measured."""
    out = Path(training.output_dir)
    config = dataclasses.replace(training, seed=seed, output_dir=str(out / "runs" / f"{choice}-{seed}"))
    trainer = build_trainer(args, config, model, m, training_rows(args, m, m.choices[choice]))
    trainer.train()
    student = trainer.accelerator.unwrap_model(trainer.model)
    found = measure(args, config, m, student, seed)
    found["loss"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if (choice, seed) == (args.choices[0], args.seeds[0]):
        trainer.save_model(str(out / "student"))
    if PartialState().is_main_process:
        print(f"{choice}, seed {seed}: loss {found['loss'][0]:.3f} -> {found['loss'][-1]:.3f}", flush=True)
    del trainer, student
    gc.collect()
    return found


def finish(args: DistillArguments, out: Path, m: Material, before: dict[int, Measured], after: Runs) -> None:
    """Report and picture."""
    held = json.loads((out / "held_out.json").read_text(encoding="utf-8"))
    responses = [[held[name][i] for name in m.teachers] for i in range(len(m.held))]
    found = score_responses([m.reward, *m.also], m.held, responses, cache=out / "scores").scores
    of_teachers = {reward: dict(zip(m.teachers, row_means(s.T).tolist(), strict=True)) for reward, s in found.items()}
    text = write_report(out, args, m.names, before, after, of_teachers)
    draw(out / "distill.png", args, m.names, before, after)
    print(f"\n{text}\n\nfiles: {out}/", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the recipe."""
    args, training, model = make_parser().parse_args_and_config(argv)
    keep_gradients_finite()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "this recipe samples and measures with whole models, which ZeRO-3 splits: use ZeRO-2 "
            "(configs/accelerate/zero2.yaml), or MultiTeacherGKDTrainer with your own script and chosen-*.jsonl"
        )
    out = Path(training.output_dir)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    record = {
        "config": {"script": asdict(args), "training": training.to_dict(), "model": asdict(model)},
        "versions": versions(*PACKAGES), "command": " ".join(sys.argv),
    }  # fmt: skip
    script = {k: v for k, v in asdict(args).items() if k not in ("choices", "seeds", "threads")}
    how = {k: v for k, v in training.to_dict().items() if not k.startswith(MAY_CHANGE)}
    Manifest(out).agree({"script": script, "training": how, "model": asdict(model)})
    first = PartialState().is_main_process
    if first:
        write_json(out / "run.json", record)
    m = prepare(args, training)
    if first:
        for name, choice in m.choices.items():
            write_rows(out / f"chosen-{name}.jsonl", training_rows(args, m, choice))
    before = {}
    for seed in args.seeds:
        torch.manual_seed(seed)
        before[seed] = kept(out / "runs" / f"before-{seed}.json", lambda seed=seed: untrained(args, training, m, seed))
    after = {
        (name, seed): kept(
            out / "runs" / f"{name}-{seed}.json",
            lambda name=name, seed=seed: run(args, training, model, m, name, seed),
        )
        for seed in args.seeds
        for name in args.choices
    }
    if first:
        finish(args, out, m, before, after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
