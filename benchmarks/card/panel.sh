#!/bin/bash
# Panel, contrasts, steps, comparisons and references on one card: readings in parts, several processes at once.
# JUDGE=... OUT=... LATENT_REWARDS_DATA=... LIMIT_S=... bash benchmarks/card/panel.sh   (from the repository root)
set -u
JUDGE=${JUDGE:?}; OUT=${OUT:?}; LIMIT_S=${LIMIT_S:-240}; AT_ONCE=${AT_ONCE:-5}; PYTHON=${PYTHON:-python3}
EACH=${EACH:-170}; MOST=${MOST:-100000}; QUESTIONS=${QUESTIONS:-729}; SHARE=${SHARE:-1.0}; REFS=${REFS:-110}
BATCH=${BATCH:-32768}; SHARD=${SHARD:-128}; PARTS=${PARTS:-3}
export JUDGE OUT PYTHON EACH MOST QUESTIONS SHARE REFS BATCH SHARD PARTS
export END=$(( $(date +%s) + LIMIT_S )) WORK=$OUT/panel-work
export PYTHONPATH=$PWD OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$WORK"

pack() {  # everything that is there by now; whole or not at all
  (
    flock 9
    cd "$WORK" || exit
    tar czf pack.tmp --ignore-failed-read $(find . -name '*.npz' -o -name '*.log' -o -path '*refs/results.json' -o -path '*refs/report.md' -o -name 'times.txt' | grep -v pack.tmp)
    if [ "$(stat -c %s pack.tmp)" -gt $((14 * 1024 * 1024)) ]; then  # without the states of the last part
      tar czf pack.tmp --ignore-failed-read $(find . -name '*.npz' -o -name '*.log' -o -path '*refs/results.json' -o -name 'times.txt' | grep -v pack.tmp | grep -v "panel-.*-$((PARTS - 1))of")
    fi
    mv pack.tmp "$OUT/panel.tgz"
  ) 9>"$WORK/lock"
}
export -f pack

job() {  # name and what it runs; goes on whatever happens
  local name=$1 left=$(( END - $(date +%s) )) began=$(date +%s); shift
  [ "$left" -gt 5 ] || { echo "$name not begun" >> "$WORK/times.txt"; return 0; }
  timeout -k 3 "$left" "$@" > "$WORK/$name.log" 2>&1
  echo "$name rc $? $(( $(date +%s) - began )) s" >> "$WORK/times.txt"
  cp "$WORK/$name.log" "$OUT/panel-$name.log"; pack
}
export -f job

run() {
  local m="$PYTHON -m"
  case $1 in
    panel*) p=${1#panel}; job "$1" $m benchmarks.panel_sample --judge "$JUDGE" --root "$WORK/panel" --each "$EACH" --most "$MOST" \
      --part "$p/$PARTS" --shard "$SHARD" --keep-every 2 --batch-tokens "$BATCH" ;;
    small) job small $m benchmarks.panel_sample --judge embedded --layers --lenses --root "$WORK/small" --each "$EACH" \
      --most "$MOST" --shard "$SHARD" --keep-every 2 --batch-tokens "$BATCH" ;;
    steps*) p=${1#steps}; job "$1" $m benchmarks.step_choice --judge "$JUDGE" --root "$WORK/steps" --questions "$QUESTIONS" \
      --part "$p/2" --batch-tokens "$BATCH" ;;
    anchors*) p=${1#anchors}; job "$1" $m benchmarks.anchors --judge "$JUDGE" --root "$WORK/anchors" --share "$SHARE" \
      --part "$p/3" --shard 10 --batch-tokens "$BATCH" ;;
    refs) job refs $m latent_rewards evaluate --config configs/evaluate/references.yaml --judge "$JUDGE" --limit "$REFS" \
      --output "$WORK/refs" --judge-option batch_tokens="$((2 * BATCH))" ;;
  esac
}
export -f run

panels=$(for ((p = 0; p < PARTS; p++)); do echo panel$p; done)
printf '%s\n' refs $panels steps0 small steps1 anchors0 anchors1 anchors2 | xargs -P "$AT_ONCE" -I{} bash -c 'run {}'
pack
cat "$WORK/times.txt"; ls -l "$OUT/panel.tgz"
