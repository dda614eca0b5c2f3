#!/bin/bash
# The head-to-head, the table of facts, Best-of-N, and the study of flattery, on one card.
# JUDGE=... OUT=... LATENT_REWARDS_DATA=... LIMIT_S=... bash benchmarks/card/head_to_head.sh   (from the repository root)
# JOBS: GRPO runs at once. FLAGS: more flags of the recipe, FACTS and PICK of the two tables (for rehearsals).
set -u
JUDGE=${JUDGE:?}; OUT=${OUT:?}; LIMIT_S=${LIMIT_S:-420}; JOBS=${JOBS:-8}; PYTHON=${PYTHON:-python3}; WORK=${WORK:-/tmp/h2h}
FLAGS=${FLAGS:-}; FACTS=${FACTS:-}; PICK=${PICK:-}; GSM=${GSM:-300}; SEEDS=${SEEDS:-0,1,2}
END=$(( $(date +%s) + LIMIT_S ))
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
mkdir -p "$WORK" "$OUT"
MAIN=weighted,contrast,verifier,likert,likert_mean_of_ten,likert_greedy,gold

pack() {  # everything that is there by now but weights and readings; whole or not at all
  (
    flock 9
    cd "$WORK" || exit
    find . \( -path '*/start/*' -o -path '*/kept/*' -o -path '*/trainer/*' \) -prune -o -type f \
      \( -name '*.json' -o -name '*.md' -o -name '*.png' -o -name '*.log' -o -name times.txt \) -print > list
    tar czf pack.tmp --ignore-failed-read -T list && mv pack.tmp "$OUT/h2h.tgz"
  ) 9>"$WORK/lock"
}

job() {  # name and what it runs; goes on whatever happens
  local name=$1 left=$(( END - $(date +%s) )) began=$(date +%s) rc; shift
  [ "$left" -gt 10 ] || { echo "$name not begun" >> "$WORK/times.txt"; return 1; }
  timeout -k 3 "$left" "$@" >> "$WORK/$name.log" 2>&1
  rc=$?
  echo "$name rc $rc $(( $(date +%s) - began )) s, at $(( LIMIT_S - END + $(date +%s) )) s" >> "$WORK/times.txt"
  pack
  return $rc
}

h2h() {  # name, config, runs at once, rewards, seeds; once more where a run failed, for it alone
  local name=$1 config=$2 jobs=$3 only=$4 seeds=$5 try
  for try in 1 2; do
    job "$name" $PYTHON -m recipes.head_to_head --config "configs/head_to_head/$config.yaml" --judge "{model: $JUDGE, dtype: bfloat16, batch_tokens: 8192}" \
      --output_dir "$WORK/$config" --only "$only" --seeds "$seeds" --jobs "$jobs" --threads 1 --timed 0 $FLAGS && return 0
  done
}

made() { ls "$WORK/$1/runs" 2>/dev/null | grep -c json; }
until_made() {  # config, number of runs: or its command has ended, or the time is over
  while [ "$(made "$1")" -lt "$2" ] && kill -0 "$main" 2>/dev/null && [ "$(date +%s)" -lt "$END" ]; do sleep 2; done
}

h2h main qwen2.5_coder_1.5b "$JOBS" $MAIN "$SEEDS" & main=$!
(
  job facts $PYTHON -m benchmarks.facts_table --judge "$JUDGE" --dtype bfloat16 --batch 64 --work "$WORK/facts" --out "$WORK/facts-1.5b.json" $FACTS
) & facts=$!
(
  while [ ! -f "$WORK/qwen2.5_coder_1.5b/start/tokenizer_config.json" ] && kill -0 "$main" 2>/dev/null; do sleep 1; done
  sleep 1
  for set in "--policy $WORK/qwen2.5_coder_1.5b/start" "--lists gsm8k_solutions#$GSM"; do
    case $set in --policy*) name=facts ;; *) name=gsm8k ;; esac
    job "pick-$name" $PYTHON -m benchmarks.pick_table --judge "$JUDGE" --dtype bfloat16 --batch 32 $set --work "$WORK/pick-$name" \
      --out "$WORK/pick-$name-1.5b.json" --scores weighted verifier "weighted less no task" "Likert-10, one rating" \
      "Likert-10, mean of ten" "Likert-10, greedy" letters "pairwise, two pivots" "Likert-5, one rating" \
      "Likert-5, mean of ten" "Likert-5, greedy" "weighted, hardened prompt" "verifier less no task" $PICK
  done
) & pick=$!
( while [ "$(date +%s)" -lt $(( END - 4 )) ]; do sleep 15; pack; done ) & packer=$!

n=$(( 7 * $(echo "$SEEDS" | tr , '\n' | wc -l) ))
until_made qwen2.5_coder_1.5b $(( n - JOBS / 2 ))
STUDY=weighted,contrast,likert,verifier,likert_mean_of_ten,guarded,contrast_verifier,hardened,gated
h2h flattery flattery $(( JOBS / 2 )) $STUDY 0 & flattery=$!
wait $main
h2h more qwen2.5_coder_1.5b 2 rubric,pairwise 0 & more=$!
h2h few_right few_right $(( JOBS / 2 )) $STUDY 0 & few=$!
wait $more; h2h more qwen2.5_coder_1.5b 3 rubric,pairwise,likert_feedback "0" & more=$!
wait $flattery; h2h flattery flattery $(( JOBS / 2 )) $STUDY 0,1 & flattery=$!
wait $few; h2h few_right few_right $(( JOBS / 2 )) $STUDY 0,1 & few=$!
wait $more; h2h more qwen2.5_coder_1.5b 2 rubric,pairwise "$SEEDS" & more=$!
wait $flattery; h2h flattery flattery $(( JOBS / 2 )) contrast_shuffled,contrast_half,letters,gold 0 & flattery=$!
wait $few; h2h few_right few_right $(( JOBS / 2 )) contrast_shuffled,contrast_half,letters,gold 0 & few=$!
wait $flattery $few $more $facts $pick $main
kill $packer 2>/dev/null
pack
cat "$WORK/times.txt"; ls -l "$OUT/h2h.tgz"
