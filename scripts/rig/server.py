"""A real SGLang with a tiny model of random weights.

  server.py model DIR [--kind llama|tiny|wide|moe|moe-hot] [--hot-rank R]   writes the model (no network; moe-hot writes weights whose router
                                                 prefers the experts of EP rank R of 2)
  server.py serve ARGUMENTS...                   sglang.launch_server, but several DP ranks may share a GPU (--gpu-id-step 0)
  server.py preset NAME                          prints the arguments of a preset: dp4 moe1 tp2 tp2-nccl dpa2 ep2 ep2-hot cpu-dp2, tp4 tp4-nccl
                                                 dpa4 ep4 (four GPUs), and tp2-big dpa2-big ep2-big ep2-hot-big tp4-big dpa4-big ep4-big,
                                                 whose steps the GPU bounds and not the host
  server.py versions                             what is installed
"""
import json, os, sys

BASE = ("--load-format dummy --skip-tokenizer-init --host 127.0.0.1 --attention-backend triton --sampling-backend pytorch "
        "--grammar-backend none --max-total-tokens 200000 --max-running-requests 256 --cuda-graph-max-bs 32 --mem-fraction-static 0.6 "
        "--enable-metrics --enable-metrics-for-all-schedulers --skip-server-warmup --enforce-disable-flashinfer-allreduce-fusion --log-level info --disable-prefill-cuda-graph")
# Without a GPU; these exist in 0.5.16 and in 0.5.23. A scheduler without work sleeps: on a few cores a spinning one takes its peers' time.
CPU = ("--load-format dummy --skip-tokenizer-init --host 127.0.0.1 --device cpu --attention-backend torch_native --sampling-backend pytorch "
       "--grammar-backend none --cuda-graph-backend-decode disabled --cuda-graph-backend-prefill disabled --disable-overlap-schedule --dtype bfloat16 "
       "--max-total-tokens 16384 --max-running-requests 32 --context-length 2048 --mem-fraction-static 0.1 --enable-metrics --skip-server-warmup "
       "--sleep-on-idle --log-level info")
PRESETS = {
    "dp4": "--dp-size 4 --gpu-id-step 0 --load-balance-method round_robin",
    "tp2": "--tp-size 2 --cuda-graph-max-bs 128",
    "tp2-nccl": "--tp-size 2 --disable-custom-all-reduce",
    "dpa2": "--tp-size 2 --dp-size 2 --enable-dp-attention --disable-custom-all-reduce --load-balance-method round_robin",
    "moe1": "--moe-runner-backend triton",
    "ep2": "--tp-size 2 --ep-size 2 --disable-custom-all-reduce --moe-runner-backend triton --cuda-graph-max-bs 128",
    "cpu-dp2": "--dp-size 2",
    "ep2-hot": "--tp-size 2 --ep-size 2 --disable-custom-all-reduce --moe-runner-backend triton --load-format auto",
}
BIG = " --max-total-tokens 60000 --mem-fraction-static 0.95 --cuda-graph-max-bs 128"
PRESETS.update({name.replace("2", "4"): PRESETS[name].replace("-size 2", "-size 4") for name in ("tp2", "tp2-nccl", "dpa2", "ep2")})
PRESETS.update({name + "-big": PRESETS[name.replace("-hot", "")] + BIG for name in ("tp2", "dpa2", "ep2", "ep2-hot", "tp4", "dpa4", "ep4")})


def model(folder, kind="llama", hot=1):
    os.makedirs(folder, exist_ok=True)
    c = dict(vocab_size=32000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=8,
             head_dim=64, hidden_act="silu", max_position_embeddings=8192, initializer_range=0.02, rms_norm_eps=1e-5, tie_word_embeddings=False,
             rope_theta=10000.0, attention_bias=False, bos_token_id=1, eos_token_id=2, pad_token_id=0, torch_dtype="bfloat16")
    if kind == "llama":
        c.update(architectures=["LlamaForCausalLM"], model_type="llama")
    elif kind == "llama-big":                       # about 8 ms of GPU work a step on half an H200's share of it
        c.update(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=16384, intermediate_size=65536, num_hidden_layers=10,
                 num_attention_heads=128, head_dim=128)
    elif kind == "tiny":                             # for servers without a GPU
        c.update(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=1024, hidden_size=64, intermediate_size=128,
                 num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=16)
    elif kind == "wide":                             # the same in one wide layer: steps are as quick, prompts take their time
        c.update(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=1024, hidden_size=768, intermediate_size=4096,
                 num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=4, head_dim=96)
    else:                                           # a model with DP attention and EP
        c.update(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", num_experts=8, num_experts_per_tok=2, moe_intermediate_size=1024,
                 decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True, output_router_logits=False, router_aux_loss_coef=0.0,
                 use_sliding_window=False, sliding_window=None, max_window_layers=8, attention_dropout=0.0)
        if kind == "moe-big":
            c.update(hidden_size=4096, moe_intermediate_size=14336, num_hidden_layers=16, num_attention_heads=32, head_dim=128)
    json.dump(c, open(os.path.join(folder, "config.json"), "w"))
    json.dump(dict(bos_token_id=1, eos_token_id=2, pad_token_id=0), open(os.path.join(folder, "generation_config.json"), "w"))
    if kind == "moe-hot":
        hot_weights(folder, c, hot)


def hot_weights(folder, c, rank):
    import torch
    from safetensors.torch import save_file
    torch.manual_seed(1)
    h, i, v, e, d = c["hidden_size"], c["moe_intermediate_size"], c["vocab_size"], c["num_experts"], c["head_dim"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    rnd = lambda *s: (torch.randn(*s) * 0.02).bfloat16()
    one = lambda n: torch.ones(n).bfloat16()
    t = {"model.embed_tokens.weight": rnd(v, h), "lm_head.weight": rnd(v, h), "model.norm.weight": one(h)}
    t["model.embed_tokens.weight"][:, 0] = 1.0      # one constant feature, positive in every layer's input: the router can lean on it
    for n in range(c["num_hidden_layers"]):
        p = f"model.layers.{n}."
        t[p + "input_layernorm.weight"], t[p + "post_attention_layernorm.weight"] = one(h), one(h)
        t[p + "self_attn.q_norm.weight"], t[p + "self_attn.k_norm.weight"] = one(d), one(d)
        t[p + "self_attn.q_proj.weight"], t[p + "self_attn.o_proj.weight"] = rnd(q, h), rnd(h, q)
        t[p + "self_attn.k_proj.weight"], t[p + "self_attn.v_proj.weight"] = rnd(kv, h), rnd(kv, h)
        gate = rnd(e, h)
        gate[:, 0] = -0.02
        gate[rank * e // 2:(rank + 1) * e // 2, 0] = 0.02
        t[p + "mlp.gate.weight"] = gate
        for x in range(e):
            t[f"{p}mlp.experts.{x}.gate_proj.weight"], t[f"{p}mlp.experts.{x}.up_proj.weight"], t[f"{p}mlp.experts.{x}.down_proj.weight"] = rnd(i, h), rnd(i, h), rnd(h, i)
    save_file(t, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


def hot_router():
    """Makes the dummy weights of a MoE prefer the experts of EP rank RIG_HOT_RANK of 2: the embedding has one constant feature that outweighs
    all others, and the routers lean on it. In every process: spawned ones read this file anew."""
    from sglang.srt.model_loader import loader
    real, hot = loader.initialize_dummy_weights, int(os.environ["RIG_HOT_RANK"])

    def dummy(net, *args, **kwargs):
        real(net, *args, **kwargs)
        for name, p in net.state_dict().items():
            if name.endswith("embed_tokens.weight"): p[:, 0] = 1.0
            elif name.endswith("post_attention_layernorm.weight"): p[:] = 1.0
            elif name.endswith("mlp.gate.weight"):
                e = p.shape[0]
                p[:, 0] = -0.001
                p[hot * e // 2:(hot + 1) * e // 2, 0] = 0.001      # the other features choose among the experts of that rank
    loader.initialize_dummy_weights = dummy


def cpu_engine(argv):
    """What the CPU engine wants to know of the machine, for the CPUs that this process may use."""
    import importlib.util, inspect
    # Every scheduler imports all models that it knows, for seconds; one is served.
    models = os.path.join(importlib.util.find_spec("sglang").submodule_search_locations[0], "srt", "models")
    os.environ.setdefault("SGLANG_DISABLED_MODEL_ARCHS", ",".join(f[:-3] for f in sorted(os.listdir(models)) if f.endswith(".py") and f not in ("llama.py", "__init__.py")))
    from sglang.srt.utils import numa_utils
    cpus = sorted(os.sched_getaffinity(0)); ranks = int(argv[argv.index("--dp-size") + 1]) if "--dp-size" in argv else 1
    # 0.5.23 wants an entry for each rank, 0.5.16 one for each of the ranks of a TP group. Without AMX neither pins anything.
    by_rank = "world_size" in inspect.signature(numa_utils.init_threads_binding).parameters
    os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", "|".join(str(cpus[r % len(cpus)]) for r in range(ranks)) if by_rank else ",".join(map(str, cpus)))


def forked():
    """The engine's processes are copies of the first one, in place of new ones that import everything again: two imports of three less."""
    import multiprocessing, torch.multiprocessing
    import sglang.srt.managers.scheduler, sglang.srt.models.registry
    real = multiprocessing.set_start_method
    multiprocessing.set_start_method = torch.multiprocessing.set_start_method = lambda *of, **k: real("fork", force=True)
    if os.environ.get("RIG_PATIENT"): patient_controller()


def serve(argv):
    if os.environ.get("SGLANG_USE_CPU_ENGINE"): cpu_engine(argv)
    if os.environ.get("RIG_FORK"): forked()
    from sglang.srt import server_args as sa
    real = getattr(sa.ServerArgs, "check_server_args", None)
    if real is not None and "--gpu-id-step" in argv:
        def check(self):                            # refuses a step of 0; nothing else does
            step = self.gpu_id_step
            try:
                if step < 1: object.__setattr__(self, "gpu_id_step", 1)
                return real(self)
            finally:
                object.__setattr__(self, "gpu_id_step", step)
        sa.ServerArgs.check_server_args = check
    from sglang.launch_server import run_server
    try:
        from sglang.srt.plugins import load_plugins
        load_plugins()
    except Exception as e:
        print("no plugins:", repr(e))
    args = sa.prepare_server_args(argv)
    try:
        run_server(args)
    finally:
        from sglang.srt.utils import kill_process_tree
        kill_process_tree(os.getpid(), include_parent=False)


def versions():
    import importlib.metadata as m, shutil, subprocess
    for p in ("sglang", "sglang-kernel", "torch", "triton", "transformers", "tokenizers", "apache-tvm-ffi", "numpy", "pydantic", "fastapi", "aiohttp", "httpx"):
        try: print(p, m.version(p), end="; ")
        except Exception: print(p, "missing", end="; ")
    print("| nvcc", shutil.which("nvcc"), "ninja", shutil.which("ninja"), "xz", shutil.which("xz"), "taskset", shutil.which("taskset"), "nsys", shutil.which("nsys"))
    print(subprocess.run("nvidia-smi --query-gpu=index,name,driver_version,memory.total,memory.used,clocks.sm --format=csv,noheader; nvidia-smi topo -m | head -6; nproc; ls -d /opt/nvidia/*/* 2>/dev/null | head; find /opt/nvidia /usr/local -maxdepth 6 -name nsys 2>/dev/null | head -5; ls /usr/local | tr '\\n' ' '", shell=True, capture_output=True, text=True).stdout)
    import torch
    print("cuda", torch.cuda.is_available(), torch.cuda.device_count())
    for mod in ("sgl_kernel", "tvm_ffi", "sglang.srt.managers.scheduler", "sglang.srt.entrypoints.http_server", "sglang.srt.models.llama", "sglang.srt.models.qwen3_moe"):
        try:
            __import__(mod); print("import ok", mod)
        except BaseException as e:
            import traceback; print("import FAILED", mod, repr(e)[:500]); traceback.print_exc(limit=-4)


def patient_controller():
    """The controller of the DP ranks asks its socket in a loop without a pause; on a few cores that takes the schedulers' time. In every process:
    spawned ones read this file anew."""
    import zmq
    from sglang.srt.managers import data_parallel_controller as controller
    real = getattr(controller, "sock_recv", None)

    def wait(socket, flags=0, **kwargs):
        if flags & zmq.NOBLOCK and not socket.poll(2): raise zmq.Again()
        return real(socket, flags=flags, **kwargs)
    if real is not None: controller.sock_recv = wait


if os.environ.get("RIG_PATIENT") and __name__ == "__mp_main__":
    patient_controller()
if os.environ.get("RIG_HOT_RANK") and (__name__ == "__mp_main__" or "serve" in sys.argv[1:2]):
    hot_router()

if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    if what == "model":
        import argparse
        ap = argparse.ArgumentParser(); ap.add_argument("folder"); ap.add_argument("--kind", default="llama"); ap.add_argument("--hot-rank", type=int, default=1)
        a = ap.parse_args(sys.argv[2:]); model(a.folder, a.kind, a.hot_rank)
    elif what == "preset":
        print(CPU if sys.argv[2].startswith("cpu-") else BASE, PRESETS[sys.argv[2]])
    elif what == "serve":
        serve(sys.argv[2:])
    elif what == "versions":
        versions()
    else:
        sys.exit(__doc__)
