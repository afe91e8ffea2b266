"""Profiler traces of ranks of one tensor-parallel group, as PyTorch's profiler writes them for SGLang, with a
known culprit: the attention of one rank takes 1.8 times as long, it arrives last at every all-reduce, and the
others wait for it there, so that the total of kernel time is the same on every rank.

    python3 scripts/bench/traces.py FOLDER [--mb 150] [--ranks 8] [--slow 3] [--factor 1.8]

Writes FOLDER/<id>-TP-<rank>.trace.json.gz, each of so many MB before gzip. Needs only the standard library.
"""
import argparse
import gzip
import json
import pathlib
import random

PROFILE = "1795490401.123456"
LAYERS = 32
T0_US = 5432109876000.0
STEP_US = 14000.0
COMPUTE, ATTENTION, ALL_REDUCE = range(3)
NORM = "void flashinfer::norm::%s<8u, __nv_bfloat16>(__nv_bfloat16*, __nv_bfloat16*, __nv_bfloat16*, unsigned int, unsigned int, float, float)"
NCCL = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
FLASH = (
    "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::CollectiveMainloop"
    "FwdSm90<2, cute::tuple<cute::C<1>, cute::C<1>, cute::C<1> >, cute::tuple<cute::C<64>, cute::C<128>, "
    "cute::C<128> >, 128, cutlass::bfloat16_t, float, cutlass::arch::Sm90, true, false, false, true, true> > > >"
    "(flash::FlashAttnFwdSm90::Params)"
)
# Name, mean microseconds, the operator that launches it, what it is.
KERNELS = [
    (NORM % "RMSNormKernel", 4.1, "sgl_kernel::rmsnorm", COMPUTE),
    ("nvjet_tst_128x64_64x8_1x2_h_bz_coopB_TNT", 21.0, "aten::mm", COMPUTE),
    ("void flashinfer::BatchQKApplyRotaryPosIdsCosSinCacheEnhancedKernel<true, 64u, 8u, 16u>(flashinfer::RopeParams)",
     5.0, "sgl_kernel::apply_rope_pos_ids_cos_sin_cache", COMPUTE),
    (FLASH, 62.0, "sgl_kernel::fwd", ATTENTION),
    ("nvjet_tst_64x32_64x16_4x1_v_bz_splitK_TNT", 13.0, "aten::mm", COMPUTE),
    (NCCL, 17.0, "c10d::allreduce_", ALL_REDUCE),
    (NORM % "FusedAddRMSNormKernel", 4.6, "sgl_kernel::fused_add_rmsnorm", COMPUTE),
    ("nvjet_tst_128x128_64x6_2x1_v_bz_coopA_TNT", 44.0, "aten::mm", COMPUTE),
    ("void act_and_mul_kernel<__nv_bfloat16, &silu<float> >(__nv_bfloat16*, __nv_bfloat16 const*, int)",
     6.0, "sgl_kernel::silu_and_mul", COMPUTE),
    ("nvjet_tst_64x64_64x13_2x1_v_bz_splitK_TNT", 24.0, "aten::mm", COMPUTE),
    (NCCL, 17.0, "c10d::allreduce_", ALL_REDUCE),
]
FRAMES = [
    "python/sglang/srt/models/llama.py(%d): forward",
    "python/sglang/srt/layers/linear.py(%d): forward",
    "python/sglang/srt/layers/radix_attention.py(%d): forward",
    "torch/nn/modules/module.py(%d): _call_impl",
]


def step(number, told):
    """Start and duration of every kernel of a step, by rank: one collective ends together on all."""
    dice = random.Random(1000 + number)
    now = [number * STEP_US + dice.uniform(0, 40) for _ in range(told.ranks)]
    rows = [[] for _ in range(told.ranks)]
    for _ in range(LAYERS):
        for _, mean, _, kind in KERNELS:
            if kind == ALL_REDUCE:
                end = max(now) + mean * dice.lognormvariate(0, 0.05)
                for rank in range(told.ranks):
                    rows[rank].append((now[rank], end - now[rank]))
                    now[rank] = end + 1.1 + dice.uniform(0, 0.4)
                continue
            for rank in range(told.ranks):
                slow = told.factor if kind == ATTENTION and rank == told.slow else 1.0
                dur = mean * slow * dice.lognormvariate(0, 0.05)
                rows[rank].append((now[rank], dur))
                now[rank] += dur + 1.1
    return rows


def head(rank, told):
    devices = ",\n".join(
        f'    {{\n      "id": {i}, "name": "NVIDIA H200", "totalGlobalMem": 150111322112,\n'
        f'      "computeMajor": 9, "computeMinor": 0,\n      "warpSize": 32, "numSms": 132\n    }}'
        for i in range(told.ranks)
    )
    group = json.dumps(list(range(told.ranks)))
    return (
        f'{{\n  "schemaVersion": 1,\n  "deviceProperties": [\n{devices}\n  ],\n'
        f'  "distributedInfo": {{"backend": "nccl", "rank": {rank}, "world_size": {told.ranks}, "pg_count": 1, '
        f'"pg_config": [{{"pg_name": "0", "pg_desc": "default_pg", "pg_size": {told.ranks}, "ranks": {group}}}]}},\n'
        f'  "displayTimeUnit": "ms",\n  "baseTimeNanoseconds": 1790000000000000000,\n  "traceEvents": [\n'
    )


def events(rank, row, layer, at, cpu_us, number, told):
    """The events of a kernel as the profiler writes them: frame, operator, launch, flow arrow, kernel."""
    (start, dur), (name, _, operator, kind) = row, KERNELS[at]
    cpu, stream, start = 4000 + rank, 20 if kind == ALL_REDUCE else 7, T0_US + start
    extra = ""
    if kind == ALL_REDUCE:
        extra = (
            f',\n      "Collective name": "allreduce", "In msg nelems": 131072, "Group size": {told.ranks}, '
            f'"dtype": "BFloat16", "Process Group Name": "0", "Process Group Description": "default_pg"'
        )
    frame = FRAMES[1 + at % 3] % (100 + at)
    return (
        f'  {{\n    "ph": "X", "cat": "python_function", "name": "{frame}", "pid": {cpu}, "tid": {cpu},\n    "ts": {cpu_us - 9:.3f}, "dur": 22.100,\n    "args": {{\n      "Python parent id": {layer}, "Python id": {number}, "Ev Idx": {number}\n    }}\n  }},\n'
        f'  {{\n    "ph": "X", "cat": "cpu_op", "name": "{operator}", "pid": {cpu}, "tid": {cpu},\n    "ts": {cpu_us - 7:.3f}, "dur": 15.{layer:03d},\n    "args": {{\n      "External id": {number},"Record function id": 0, "Concrete Inputs": ["", ""], "Input type": ["c10::BFloat16", "c10::BFloat16"], "Input Strides": [[4096, 1], [1, 4096]], "Input Dims": [[64, 4096], [4096, 1536]], "Ev Idx": {number}\n    }}\n  }},\n'
        f'  {{\n    "ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernelExC", "pid": {cpu}, "tid": {cpu},\n    "ts": {cpu_us:.3f}, "dur": 4.{at:03d},\n    "args": {{\n      "External id": {number},"cbid": 430, "correlation": {number}\n    }}\n  }},\n'
        f'  {{\n    "ph": "s", "id": {number}, "pid": {cpu}, "tid": {cpu}, "ts": {cpu_us:.3f},\n    "cat": "ac2g", "name": "ac2g"\n  }},\n'
        f'  {{\n    "ph": "X", "cat": "kernel", "name": "{name}", "pid": {rank}, "tid": {stream},\n    "ts": {start:.3f}, "dur": {dur:.3f},\n    "args": {{\n      "External id": {number},"queued": 0, "device": {rank}, "context": 1,\n      "stream": {stream}, "correlation": {number},\n      "registers per thread": 96, "shared memory": 32768,\n      "blocks per SM": 3.878788, "warps per SM": 31.030304,\n      "grid": [512, 1, 1],\n      "block": [256, 1, 1],\n      "est. achieved occupancy %": 47{extra}\n    }}\n  }},\n'
        f'  {{\n    "ph": "f", "id": {number}, "pid": {rank}, "tid": {stream}, "ts": {start:.3f},\n    "cat": "ac2g", "name": "ac2g", "bp": "e"\n  }},\n'
    )


def write(folder, told):
    """Writes all ranks at once, a step at a time. Returns the bytes before gzip."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [folder / f"{PROFILE}-TP-{rank}.trace.json.gz" for rank in range(told.ranks)]
    files = [gzip.open(name, "wt", compresslevel=6) for name in names]
    written = [file.write(head(rank, told)) for rank, file in enumerate(files)]
    number, at_step = 1, 0
    while min(written) < told.mb * 1e6:
        rows = step(at_step, told)
        for rank, file in enumerate(files):
            cpu_us, text = T0_US + at_step * STEP_US - 900, []
            for i, row in enumerate(rows[rank]):
                cpu_us += 24.7
                text.append(events(rank, row, i // len(KERNELS), i % len(KERNELS), cpu_us, number + i, told))
            written[rank] += file.write("".join(text))
        number += LAYERS * len(KERNELS)
        at_step += 1
    for rank, file in enumerate(files):
        written[rank] += file.write(
            f'  {{\n    "name": "process_name", "ph": "M", "ts": {T0_US:.3f}, "pid": {4000 + rank}, "tid": 0,\n    "args": {{\n      "name": "python3"\n    }}\n  }}\n  ],\n  "traceName": "{names[rank].name}"\n}}\n'
        )
        file.close()
    return sum(written)


def arguments(parser):
    parser.add_argument("--mb", type=float, default=150, help="MB of each rank before gzip")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--slow", type=int, default=3, help="the culprit")
    parser.add_argument("--factor", type=float, default=1.8, help="how much longer its attention takes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    arguments(parser)
    told = parser.parse_args()
    print(write(told.folder, told))
