//! The family of a GPU kernel, by its name, and short names for reports.
//!
//! The families are data: `TABLE` has for each one the words of which any one in the lower-cased name
//! decides. The first row with a match wins, so communication comes before everything that its names
//! may also contain. A kernel without a match is [`Family::Other`], and every report says how much
//! time that is: a renamed kernel shows up as unknown instead of vanishing.

use serde::{Deserialize, Serialize};

/// A family of kernels. What one family costs can be compared between ranks even where the
/// kernels inside it differ, as GEMM tiles do with the batch size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Family {
    /// Attention of any kind, its key-value bookkeeping included.
    Attention,
    /// Dense matrix products.
    Gemm,
    /// Expert routing and expert matrix products.
    Moe,
    /// Norms, activations, rotary embedding, quantisation and other elementwise work.
    Elementwise,
    /// Logits to tokens: softmax, top-k, penalties, random numbers.
    Sampling,
    /// Copies and fills.
    Copy,
    /// Kernels that wait for other ranks: NCCL, custom all-reduce, DeepEP, NVSHMEM.
    Communication,
    /// State-space and linear-attention layers.
    StateSpace,
    /// Unknown.
    Other,
}

impl Family {
    /// In the order in which reports show them.
    pub const ALL: [Self; 9] = [
        Self::Attention,
        Self::Gemm,
        Self::Moe,
        Self::StateSpace,
        Self::Elementwise,
        Self::Sampling,
        Self::Copy,
        Self::Communication,
        Self::Other,
    ];

    /// Its name in JSON, CSV and on screen.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Gemm => "gemm",
            Self::Moe => "moe",
            Self::StateSpace => "state_space",
            Self::Elementwise => "elementwise",
            Self::Sampling => "sampling",
            Self::Copy => "copy",
            Self::Communication => "communication",
            Self::Other => "other",
        }
    }

    /// Whether the cost grows with the batch (its requests, its tokens, their context) far more than
    /// that of other families: more time in these families alone means more work, not a slower GPU.
    pub const fn grows_with_work(self) -> bool {
        matches!(self, Self::Attention | Self::Moe | Self::Sampling | Self::Copy | Self::StateSpace)
    }
}

/// Families and their words, in lower case; the first row with a match wins.
const TABLE: &[(Family, &str)] = &[
    (
        Family::Communication,
        "nccl rccl deep_ep deepep nvshmem cross_device_reduce custom_all_reduce customallreduce \
         custom_ar all_reduce allreduce all_gather allgather reduce_scatter reducescatter all_to_all \
         alltoall all2all a2a_ twoshot oneshot multimem symm_mem mscclpp msccl quick_reduce \
         quickreduce userbuffers pplx_ mooncake nixl sendrecv broadcast_kernel_nccl barrier_all",
    ),
    (
        Family::Moe,
        "moe expert topk_gating topkgating grouped_topk biased_grouped grouped_gemm group_gemm \
         groupgemm groupedgemm ptrarray m_grouped mgrouped gemm_grouped permute_kernel ep_scatter \
         ep_gather compute_seg_indptr compute_src2dst pre_reorder post_reorder silu_mul_masked \
         silu_and_mul_masked",
    ),
    (
        Family::StateSpace,
        "mamba selective_scan causal_conv1d chunk_scan chunk_state ssd_ gated_delta delta_rule \
         recurrent_gated fused_recurrent lightning_attn",
    ),
    (
        Family::Attention,
        "attn attention _fwd_kernel _fwd_grouped_kernel fmha mha_ mla flash:: flashfwd flash_fwd \
         pagedkv paged_kv batchprefill batchdecode singleprefill singledecode kv_splits kv_indices \
         kvcache kv_cache kv_buffer reshape_and_cache merge_state mergestates \
         persistentvariablelengthmergestates xqa decode_att lse_combine page_table",
    ),
    (
        Family::Sampling,
        "softmax sampling sample argmax topk top_k topp top_p renorm multinomial distribution_ \
         exponential_ radixsort radix_sort devicesegmentedsort sbtopk mbtopk penalt bitmask logit \
         gathertopk bitonicsort",
    ),
    (
        Family::Gemm,
        "gemm nvjet cutlass cublas splitk wgmma matmul _mm_ gemv xmma marlin machete deep_gemm sm90_ \
         sm80_ sm100_ hgmma cijk_ dot_kernel",
    ),
    (
        Family::Elementwise,
        "norm rope rotary silu gelu act_and_mul elementwise reduce_kernel quant scale triton_poi \
         triton_red triton_per position embedding index vectorized scatter gather scan_kernel \
         devicescan devicereduce multi_tensor_apply assert_async compare swiglu hadamard",
    ),
    (Family::Copy, "memcpy memset copy catarray fill transpose clone write_req_to_token"),
];

/// The family of a kernel, by its name as profilers write it (demangled or short).
pub fn family_of(name: &str) -> Family {
    let lower = name.to_ascii_lowercase();
    // Template arguments contain words of other families (an elementwise kernel has a
    // `direct_copy_kernel` inside): the outer name decides, the whole name only where that has no match.
    let outer = outer_of(&lower);
    let hit =
        |text: &str| TABLE.iter().find(|(_, words)| words.split(' ').any(|w| text.contains(w))).map(|r| r.0);
    match hit(outer) {
        Some(Family::Gemm | Family::Elementwise) | None => {}
        Some(family) => return family,
    }
    // For wrappers the template arguments decide: `cutlass::device_kernel<flash::...>` is attention,
    // `reduce_kernel<..ArgMaxOps..>` is sampling.
    let wrapper = ["device_kernel", "reduce_kernel", "kernel_cutlass", "cutlass::kernel"];
    if hit(outer).is_none() || wrapper.iter().any(|w| outer.ends_with(w)) {
        return hit(&lower).unwrap_or(Family::Other);
    }
    hit(outer).unwrap_or(Family::Other)
}

/// The kind of step that an attention kernel runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Prefill only.
    Extend,
    /// Decode only.
    Decode,
}

/// The kind of step that a kernel implies, if any: used for steps without annotations.
pub(crate) fn phase_of(name: &str) -> Option<Phase> {
    let lower = name.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| lower.contains(w));
    if has(&[
        "_fwd_grouped_kernel_stage1",
        "_fwd_kernel_stage1",
        "batchdecode",
        "decode_att",
        "paged_attention",
        "xqa",
    ]) {
        Some(Phase::Decode)
    } else if outer_of(&lower) == "_fwd_kernel"
        || has(&["batchprefill", "extend_att", "prefill_att", "context_att"])
    {
        Some(Phase::Extend)
    } else {
        None
    }
}

/// The name without return type, template arguments and parameters: `ns::norm::RMSNormKernel`.
fn outer_of(name: &str) -> &str {
    let name = name.strip_prefix("void ").unwrap_or(name);
    let name = name.trim_start();
    let mut from = 0;
    // The bracket of an anonymous namespace begins no argument list.
    for anonymous in ["(anonymous namespace)", "<unnamed>"] {
        while let Some(at) = name[from..].find(anonymous) {
            let before = &name[from..from + at];
            if before.contains(['<', '(']) {
                break;
            }
            from += at + anonymous.len();
        }
    }
    let end = name[from..].find(['<', '(', ' ']).map_or(name.len(), |e| from + e);
    if end == 0 { name } else { &name[..end] }
}

/// Template arguments that do not tell kernels apart.
const PLUMBING: &str = "enable_sm90_or_later enable_sm90 enable_sm100_or_later enable_2x_kernel_for_sm89 \
    enable_sm80_to_sm89 unsigned float double long short char bool true false cute std at \
    native nv_bfloat16 half const int func_wrapper_t gpu_kernel_impl_nocast gpu_kernel_impl \
    array tuple lambda anonymous namespace operator c10 BFloat16 Half";

/// Outer names that very different kernels share.
const GENERIC: &str = "device_kernel Kernel Kernel2 kernel elementwise_kernel vectorized_elementwise_kernel \
    unrolled_elementwise_kernel index_elementwise_kernel reduce_kernel \
    multi_tensor_apply_kernel distribution_elementwise_grid_stride_kernel";

/// A name short enough for a table and long enough to find again in a trace viewer:
/// `_fwd_grouped_kernel_stage1`, `RMSNormKernel`, `device_kernel<FlashAttnFwdSm90>`.
pub fn short_name(name: &str) -> String {
    let outer = outer_of(name);
    let last = outer.rsplit("::").next().unwrap_or(outer);
    if last.is_empty() || name.starts_with("Memcpy") || name.starts_with("Memset") {
        return name.to_owned();
    }
    if !is_one_of(GENERIC, last) {
        return last.to_owned();
    }
    let at = name.find(outer).map_or(0, |a| a + outer.len());
    let distinctive = name[at..]
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .find(|w| w.len() > 4 && !w.starts_with(|c: char| c.is_ascii_digit()) && !is_plumbing(w));
    match distinctive {
        Some(word) => format!("{last}<{word}>"),
        None => last.to_owned(),
    }
}

fn is_one_of(words: &str, word: &str) -> bool {
    words.split(' ').any(|w| w == word)
}

fn is_plumbing(word: &str) -> bool {
    let bare = word.trim_start_matches('_');
    is_one_of(PLUMBING, bare)
        || is_one_of(GENERIC, bare)
        || matches!(
            bare,
            "cutlass" | "flash" | "kernel" | "gemm" | "memory" | "function" | "TensorIteratorBase"
        )
        || bare.starts_with("TensorListMetadata")
        || bare.ends_with("_operator")
        || bare.starts_with("ReduceOp")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_knows_the_kernels_of_real_servers_old_and_new() {
        let cases = [
            ("_fwd_grouped_kernel_stage1", Family::Attention),
            ("_fwd_kernel", Family::Attention),
            ("get_num_kv_splits_triton", Family::Attention),
            ("create_flashinfer_kv_indices_triton", Family::Attention),
            (
                "void (anonymous namespace)::store_kvcache<1024l, 2, true, long>((anonymous namespace)::StoreKVCacheParams)",
                Family::Attention,
            ),
            (
                "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::C<2> > > >(flash::P)",
                Family::Attention,
            ),
            (
                "void flashinfer::BatchDecodeWithPagedKVCacheKernel<(flashinfer::PosEncodingMode)0>(x)",
                Family::Attention,
            ),
            ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_splitK_TNT", Family::Gemm),
            ("void cublasLt::splitKreduce_kernel<32, 16, int, float>(x)", Family::Gemm),
            ("sm80_xmma_gemm_f32f32_f32f32_f32_nn_n_tilesize128x64x8", Family::Gemm),
            (
                "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cute::tuple<int> > >(P)",
                Family::Gemm,
            ),
            ("fused_moe_kernel", Family::Moe),
            (
                "void flashinfer::norm::FusedAddRMSNormKernel<8u, __nv_bfloat16>(__nv_bfloat16*)",
                Family::Elementwise,
            ),
            (
                "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda(x)::{lambda()#1}>(int)",
                Family::Elementwise,
            ),
            (
                "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::ArgMaxOps<float> > >(x)",
                Family::Sampling,
            ),
            ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float>(x)", Family::Sampling),
            ("softmax_warp_forward", Family::Sampling),
            ("Memcpy HtoD (Pinned -> Device)", Family::Copy),
            ("Memset (Device)", Family::Copy),
            ("ncclKernel_AllReduce_RING_LL_Sum_bfloat(ncclWorkElem)", Family::Communication),
            (
                "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
                Family::Communication,
            ),
            (
                "void sglang::cross_device_reduce_1stage<__nv_bfloat16, 8>(sglang::RankData*)",
                Family::Communication,
            ),
            ("void deep_ep::internode_ll::dispatch<true, 3, 7168>(void*)", Family::Communication),
            ("void deep_ep::intranode::combine<__nv_bfloat16, 8, 768>(x)", Family::Communication),
            ("nvshmemi_transfer_rma_kernel", Family::Communication),
            (
                "void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<x>(y)",
                Family::Communication,
            ),
            ("my_shiny_new_thing", Family::Other),
        ];
        for (name, family) in cases {
            assert_eq!(family_of(name), family, "{name}");
        }
    }

    #[test]
    fn short_names_keep_what_tells_a_kernel_apart() {
        let cases = [
            ("_fwd_grouped_kernel_stage1", "_fwd_grouped_kernel_stage1"),
            (
                "void flashinfer::norm::FusedAddRMSNormKernel<8u, __nv_bfloat16>(__nv_bfloat16*)",
                "FusedAddRMSNormKernel",
            ),
            (
                "void (anonymous namespace)::store_kvcache<1024l, 2>((anonymous namespace)::P)",
                "store_kvcache",
            ),
            (
                "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<flash::C<2> > > >(P)",
                "device_kernel<FlashAttnFwdSm90>",
            ),
            (
                "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::ArgMaxOps<float> > >(x)",
                "reduce_kernel<ArgMaxOps>",
            ),
            ("void at::native::<unnamed>::cunn_SoftMaxForward<(int)4, float>(T1)", "cunn_SoftMaxForward"),
            ("softmax_warp_forward<float, float, float, (int)10>(T2 *, const T1 *)", "softmax_warp_forward"),
            ("Memcpy DtoD (Device -> Device)", "Memcpy DtoD (Device -> Device)"),
            (
                "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
                "ncclDevKernel_AllReduce_Sum_bf16_RING_LL",
            ),
            ("", ""),
        ];
        for (name, short) in cases {
            assert_eq!(short_name(name), short, "{name}");
        }
    }
}
