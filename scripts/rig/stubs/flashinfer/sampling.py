def _missing(*a, **k):
    raise NotImplementedError("flashinfer is not carried; use --sampling-backend pytorch")


min_p_sampling_from_probs = top_k_top_p_sampling_from_probs = top_k_renorm_prob = top_p_renorm_prob = _missing
