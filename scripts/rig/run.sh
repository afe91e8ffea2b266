#!/bin/bash
# Starts a server in the background: run.sh NAME PRESET PORT [more arguments]; log in $W/NAME.log, pid in $W/NAME.pid.
# run.sh wait NAME SECONDS: until it answers one request (1 if it did not in time or died). run.sh stop NAME.
[ -n "$W" ] || { echo "source prep.sh first"; exit 2; }
case $1 in
wait)
  name=$2; until=$(( $(date +%s) + $3 )); port=$(cat "$W/$name.port"); pid=$(cat "$W/$name.pid")
  while [ "$(date +%s)" -lt "$until" ]; do
    kill -0 "$pid" 2>/dev/null || { echo "$name died"; exit 1; }
    if curl -s -m 20 -X POST "http://127.0.0.1:$port/generate" -H 'Content-Type: application/json' \
      -d '{"input_ids": [5,6,7,8], "sampling_params": {"max_new_tokens": 4, "ignore_eos": true, "temperature": 0}}' 2>/dev/null | grep -q output_ids; then
      echo "$name answers"; exit 0; fi
    sleep 0.5
  done
  echo "$name did not answer within $3 s"; exit 1;;
stop)
  pid=$(cat "$W/$2.pid" 2>/dev/null) || exit 0
  kill -CONT -- "-$pid" 2>/dev/null; kill -TERM "$pid" 2>/dev/null
  for _ in 1 2 3 4 5 6 7 8; do kill -0 -- "-$pid" 2>/dev/null || exit 0; sleep 0.5; done
  kill -KILL -- "-$pid" 2>/dev/null; exit 0;;
esac
name=$1; preset=$2; port=$3; shift 3
kind=llama; case $preset in ep2-hot-big) kind=moe-big; export RIG_HOT_RANK=1;; ep?-big|dpa?-big) kind=moe-big;; tp?-big) kind=llama-big;;
  ep?|moe1|dpa?) kind=moe;; ep2-hot) kind=moe-hot;; cpu-*) kind=${RIG_CPU_MODEL:-tiny}
  export RIG_PATIENT=1 SGLANG_USE_CPU_ENGINE=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
  # what is carried has the kernels for GPUs
  if [ -d "$RIG_SITE/sgl_kernel" ]; then "$RIG/cpu_kernel.sh" "$W/cpu-site" "$RIG_SITE/sgl_kernel/scalar_type.py"; export PYTHONPATH=$W/cpu-site:$PYTHONPATH; fi;; esac
[ -f "$W/model-$kind/config.json" ] || $PY "$RIG/server.py" model "$W/model-$kind" --kind $kind || exit 1
echo "$port" > "$W/$name.port"
# a session of its own, so that the whole tree can be stopped by its group
# RIG_WRAP: a program around it, such as: nsys profile --start-later=true --trace=cuda,nvtx --cuda-graph-trace=node -o DIR/rep
setsid ${RIG_WRAP:-} $PY "$RIG/server.py" serve --model-path "$W/model-$kind" --port "$port" $($PY "$RIG/server.py" preset "$preset") "$@" > "$W/$name.log" 2>&1 < /dev/null &
echo $! > "$W/$name.pid"
