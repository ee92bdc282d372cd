#!/bin/bash
# Does ganlab work on this GPU, and how fast? In under 10 minutes, offline. Every step is bounded, a failure stops nothing.
#
#   scripts/gpu_acceptance.sh       results in $OUT (default: outputs/gpu-acceptance): summary.txt, summary.json, log.txt,
#                                   bench.json, bench.md, bench.png, junit.xml, smi.csv
#
# Exits with 1 if a step failed. Needs torch with CUDA and ganlab's packages (offline-bundle.sh fetches them for a
# machine without a network; pytest and pytest-timeout and -xdist for the tests); no data set: digits are in the package.
# BUDGET: seconds in all (default 560). PY: the Python (default: .venv/bin/python if there, else python3).
# GANLAB: another command than "$PY -m ganlab". DEV: the device (default: cuda).
cd "$(dirname "$(readlink -f "$0")")/.." || exit 2
OUT=${OUT:-$PWD/outputs/gpu-acceptance}; W=$(mktemp -d); mkdir -p "$OUT"
PY=${PY:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
DEV=${DEV:-cuda}; BUDGET=${BUDGET:-560}; BEGAN=$(date +%s)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 GANLAB_OFFLINE=1 GANLAB_CACHE=$W/cache CUBLAS_WORKSPACE_CONFIG=:4096:8
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} HYDRA_FULL_ERROR=0
LOG=$OUT/log.txt; ROWS=$W/rows.jsonl; : >"$LOG"; : >"$ROWS"
G=${GANLAB:-$PY -m ganlab}
D="dataset=digits dataset.resolution=32 metric.extractor=cifar metric.protocol=smoke metric.progress=null device=$DEV"
Q="$D eval_every=0 sample_every=0 save_every=1000"
( nvidia-smi --query-gpu=timestamp,memory.used,utilization.gpu,clocks.sm --format=csv,noheader -l 1 >"$OUT/smi.csv" 2>/dev/null ) & SMI=$!
trap 'kill $SMI 2>/dev/null; rm -rf "$W"' EXIT

# step NAME SECONDS WANTED_RC PATTERN MUST command...: rc and PATTERN (extended regexp in its output; "" for none) decide.
step() {
  local name=$1 most=$2 want=$3 pattern=$4 must=$5; shift 5
  local left=$(( BUDGET - ($(date +%s) - BEGAN) )) o=$W/$name.out rc=skipped t0 t1 ok=false
  [ $left -lt $most ] && most=$left
  t0=$(date +%s.%N)
  if [ $most -ge 5 ]; then
    timeout -k 5 "$most" "$@" >"$o" 2>&1; rc=$?
  else : >"$o"; fi
  t1=$(date +%s.%N)
  if [ "$rc" = "$want" ] && { [ -z "$pattern" ] || grep -Eq "$pattern" "$o"; }; then ok=true; fi
  { echo "=== $name: $*"; cat "$o"; echo "=== $name: rc $rc (wanted $want), ok $ok"; } >>"$LOG"
  NAME=$name RC=$rc OK=$ok T=$(echo "$t1 $t0" | awk '{printf "%.1f",$1-$2}') MUST=$must O=$o $PY - >>"$ROWS" <<'P'
import json, os, re
text = open(os.environ["O"], errors="replace").read().splitlines()
keep = [l for l in text if re.search(r"^engine |finished |error|crash|passed|failed|at once|updates/s|it/s.*ETA 0:00:00|scored in", l)]
print(json.dumps({"step": os.environ["NAME"], "ok": os.environ["OK"] == "true", "rc": os.environ["RC"], "seconds": float(os.environ["T"]),
                  "must": os.environ["MUST"], "said": [l[:240] for l in keep[-6:]]}))
P
  echo "$([ $ok = true ] && echo ok || echo FAIL)  $name  rc $rc  $(awk "BEGIN{printf \"%.0f\", $t1-$t0}") s"
}

step facts 40 0 "cuda:0 +.*|cuda:0" "doctor sees the GPU, nothing required is missing" $G doctor
# -- crashes first
step bn 45 0 "engine graph" "SNGAN's batch norm baseline trains (offset without multiplier, channels last)" \
  $G train +experiment=sngan_cifar normalization=[bn] $Q steps=60 log_every=20 run_dir=$W/bn
step train 60 0 "engine graph" "SN with EMA, evaluation, grids, spectra, checkpoints under a graph" \
  $G train +experiment=sngan_cifar setting=D $D steps=300 log_every=50 eval_every=100 sample_every=100 save_every=100 spectral_every=100 ema=0.99 run_dir=$W/sn
step sample 30 0 "" "samples of a stored run, in a process that has not touched the GPU before" $G sample $W/sn n=64 out=$W/samples device=$DEV
step evaluate 30 0 "protocol smoke" "a stored run scored again" $G evaluate $W/sn metric.protocol=smoke device=$DEV
step analyze 40 0 "singular_values ->" "an analysis on the device" $G analyze $W/sn analysis=singular_values device=$DEV out=$W/ana
# -- right results
step demo 75 0 "fid_cifar [0-2]\.[0-9]" "the demo's quality is a CPU's: fid_cifar under 3 (committed: 1.24)" $G train device=$DEV run_dir=$W/demo
step stop 14 143 "saved at step" "SIGTERM saves under a graph, exit 143 (0: it was done before: raise steps)" \
  bash -c "timeout -s TERM 11 $G train +experiment=sngan_cifar setting=C $Q steps=30000 log_every=500 run_dir=$W/stop; rc=\$?; [ \$rc = 124 ] && exit 143; exit \$rc"
step resume 14 143 "resum|continu|saved at step" "the same command continues it" \
  bash -c "timeout -s TERM 11 $G train +experiment=sngan_cifar setting=C $Q steps=30000 log_every=500 run_dir=$W/stop; rc=\$?; [ \$rc = 124 ] && exit 143; exit \$rc"
step tests 130 0 " passed" "graph == eager and resume bit for bit, scores the same ahead or not" \
  $PY -m pytest -q -p no:cacheprovider -n ${XDIST:-8} --timeout 120 -m gpu --junitxml="$OUT/junit.xml" \
  tests/test_engine.py tests/test_resume_gpu.py tests/test_feature_pass.py tests/test_data_base.py
# -- speed
step bench 170 0 "graph" "graph >= 1.3x eager; CNN SN n5 bf16 graph <= 8 ms, n1 <= 2.2 ms, ResNet SN <= 20 ms, WGAN-GP <= 20 ms" \
  $PY scripts/benchmark.py --cases cnn-sn,resnet-sn,resnet-gp,cnn-sn_per_update --d-steps 5 --rounds 2 --block 0.7 --engine eager,graph --precision bf16 --device $DEV --out $W/bench
step bench1 45 0 "graph" "the same, one D update" \
  $PY scripts/benchmark.py --cases cnn-sn --d-steps 1 --rounds 2 --block 0.7 --engine eager,graph --precision tf32,bf16 --no-plain --device $DEV --out $W/bench1
step per_gpu 100 0 " 4 cells" "several processes on one GPU: compare it/s of cells.csv with bench" \
  $G sweep grid=sngan_fig1_cifar setting=C method=sn seed=0,1,2,3 per_gpu=4 $Q steps=2000 log_every=200 precision=bf16 out=$W/per_gpu
step compile 120 0 "compile\+graph|engine compile" "torch.compile inside the graph works at all (not: falls back)" \
  $G train +experiment=sngan_cifar setting=C $Q engine=compile precision=bf16 steps=300 log_every=100 run_dir=$W/compile

cp "$W/bench/"bench.{json,md,png} "$OUT/" 2>/dev/null; cat "$W/bench1/bench.md" >>"$LOG" 2>/dev/null; cat "$OUT/bench.md" >>"$LOG" 2>/dev/null
$PY - "$ROWS" "$OUT" <<'P'
import json, pathlib, sys
rows = [json.loads(l) for l in open(sys.argv[1])]
out = pathlib.Path(sys.argv[2])
facts = {}
try:
    import torch
    p = torch.cuda.get_device_properties(0)
    facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": p.name,
             "memory_gb": round(p.total_memory / 1e9, 1)}
    facts["cudnn"] = torch.backends.cudnn.version()
except Exception as error:
    facts = facts or {"torch": f"{type(error).__name__}: {error}"}
try:
    used = [float(l.split(",")[1].split()[0]) for l in (out / "smi.csv").read_text().splitlines()]
    facts["most_memory_used_mb"] = max(used)
except Exception:
    pass
summary = {"facts": facts, "seconds": sum(r["seconds"] for r in rows), "failed": [r["step"] for r in rows if not r["ok"]], "steps": rows}
(out / "summary.json").write_text(json.dumps(summary, indent=1))
lines = [f"{'ok  ' if r['ok'] else 'FAIL'} {r['step']:9} {r['seconds']:6.1f} s  rc {r['rc']}: {r['must']}\n" + "".join(f"       {s}\n" for s in r["said"]) for r in rows]
(out / "summary.txt").write_text(json.dumps(facts) + "\n" + "".join(lines))
print((out / "summary.txt").read_text())
raise SystemExit(1 if summary["failed"] else 0)
P
