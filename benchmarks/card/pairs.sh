#!/bin/bash
# Pairs, ratings and attacks on one card: parts of one run into one cache, beside smaller runs; whole items first to last.
# JUDGE=... OUT=... LATENT_REWARDS_DATA=... LIMIT_S=... bash benchmarks/card/pairs.sh   (from the repository root)
set -u
JUDGE=${JUDGE:?}; OUT=${OUT:?}; LIMIT_S=${LIMIT_S:-300}; PYTHON=${PYTHON:-python3}
PARTS=${PARTS:-4}; LIMIT=${LIMIT:-300}; ATTACKED=${ATTACKED:-12}; RESERVE=${RESERVE:-100}; RESAMPLES=${RESAMPLES:-1000}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=passive
export PYTORCH_ALLOC_CONF=expandable_segments:True HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
END=$(( $(date +%s) + LIMIT_S )); W=$OUT/work; mkdir -p "$W"
left() { local s=$(( END - $(date +%s) - ${1:-0} )); echo $(( s > 5 ? s : 5 )); }

pack() {  # everything that is there by now, but the caches; whole or not at all
  (
    flock 9; cd "$W" || exit
    find . \( -name 'results.json' -o -name 'report.md' -o -name '*.png' -o -name '*.gz' -o -name '*.npz' -o -name '*.log' \
      -o -name 'gate.json' -o -name 'adaptive*.json' -o -name 'probe*.json' -o -name 'times.txt' \) ! -path '*/cache/*' > .list
    tar czf .pack.tmp --ignore-failed-read -T .list
    if [ "$(stat -c %s .pack.tmp)" -gt $((14 * 1024 * 1024)) ]; then
      grep -v 'layers-pairs.npz' .list > .list2; tar czf .pack.tmp --ignore-failed-read -T .list2
    fi
    mv .pack.tmp "$OUT/pairs.tgz"
  ) 9>"$W/.lock"
}

job() {  # name, seconds, and what it runs; goes on whatever happens
  local name=$1 most=$2 began=$(date +%s); shift 2
  timeout -k 3 "$most" "$@" > "$W/$name.log" 2>&1
  echo "$name rc $? $(( $(date +%s) - began )) s" >> "$W/times.txt"
  pack
}

evaluate() {  # name of the config, then more options
  local name=$1; shift
  $PYTHON -m latent_rewards evaluate --config "configs/evaluate/${name}_1.5b.yaml" --judge "$JUDGE" --no-stability \
    --output "$W/$name" --resamples "$RESAMPLES" "$@"
}
export -f evaluate; export PYTHON W JUDGE RESAMPLES

ev() { bash -c 'evaluate "$@"' _ "$@"; }
export -f ev
small() { [ "$LIMIT" -lt 300 ] && echo "--limit $LIMIT"; }

for ((p = 1; p <= PARTS; p++)); do
  job pairs-part$p "$(left "$RESERVE")" bash -c 'evaluate "$@"' _ pairs --part $p/$PARTS --limit "$LIMIT" --consistency-items "$LIMIT" &
  parts="${parts:-} $!"
done
( job summeval "$(left)" bash -c 'evaluate "$@"' _ summeval $(small)
  [ -f benchmarks/kept_readings.py ] && job layers-summeval "$(left)" $PYTHON -m benchmarks.kept_readings "$W/summeval" --config configs/evaluate/summeval_1.5b.yaml $(small) --judge "$JUDGE" --out "$W/layers-summeval.npz"
) & others=$!
( job ratings "$(left)" bash -c 'evaluate "$@"' _ ratings $(small)
  [ -f benchmarks/kept_readings.py ] && job layers-ratings "$(left)" $PYTHON -m benchmarks.kept_readings "$W/ratings" --config configs/evaluate/ratings_1.5b.yaml $(small) --judge "$JUDGE" --out "$W/layers-ratings.npz"
  job attacks "$(left)" bash -c 'evaluate "$@"' _ attacks $(small) --robustness-items "$ATTACKED"
  job adaptive "$(left)" $PYTHON -m benchmarks.attack_adaptive --config configs/evaluate/attacks_1.5b.yaml --judge "$JUDGE" \
    --items "$ATTACKED" --out "$W/adaptive.json"
) & others="$others $!"
wait $parts
job pairs "$(left)" bash -c 'evaluate "$@"' _ pairs --no-read --resamples 200 --limit "$LIMIT" --consistency-items "$LIMIT" & last=$!
[ -f benchmarks/kept_readings.py ] && job layers-pairs "$(left)" $PYTHON -m benchmarks.kept_readings "$W/pairs" \
  --config configs/evaluate/pairs_1.5b.yaml --limit "$LIMIT" --judge "$JUDGE" --out "$W/layers-pairs.npz" & last="$last $!"
[ -f benchmarks/pairs_probe.py ] && job probe "$(left)" $PYTHON -m benchmarks.pairs_probe "$W/pairs" \
  --config configs/evaluate/pairs_1.5b.yaml --limit "$LIMIT" --judge "$JUDGE" --out "$W/probe" & last="$last $!"
wait $last $others
pack
cat "$W/times.txt"; ls -l "$OUT/pairs.tgz"
