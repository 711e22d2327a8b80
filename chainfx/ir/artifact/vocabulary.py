"""What a saved graph may name: every function, tensor method, attribute and module by its exact name.

Nothing outside these lists is ever looked up, whatever a file says. What stands here computes with tensors and numbers
and does nothing else: it reads and writes no files, asks neither network nor process, calls no function that it is
given, and hands out no memory that is not a tensor's own. A name that this torch does not have is simply not there.
"""

__all__ = ["ATEN", "ATTRIBUTES", "BUILTINS", "FUNCTIONS", "METHODS", "MODULES"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# functions by the module that they are looked up in
FUNCTIONS = {
    "torch": _words("""
        abs abs_ absolute acos acos_ acosh adaptive_avg_pool1d adaptive_max_pool1d add addbmm addcdiv addcmul
        addmm addmv addr adjoint affine_grid_generator all allclose alpha_dropout alpha_dropout_ amax amin
        aminmax angle any arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort
        argwhere as_strided as_strided_scatter asin asin_ asinh atan atan2 atan_ atanh atleast_1d atleast_2d
        atleast_3d avg_pool1d baddbmm bartlett_window batch_norm bernoulli bilinear bincount binomial
        bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor blackman_window
        block_diag bmm broadcast_tensors broadcast_to bucketize cartesian_prod cat cdist ceil ceil_ celu celu_
        channel_shuffle cholesky_inverse cholesky_solve chunk clamp clamp_ clamp_max clamp_max_ clamp_min
        clamp_min_ clip clone column_stack combinations complex concat concatenate conj conj_physical
        constant_pad_nd conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
        copysign corrcoef cos cos_ cosh cosh_ cosine_similarity count_nonzero cov cross cummax cummin cumprod
        cumsum cumulative_trapezoid deg2rad det detach diag diag_embed diagflat diagonal diagonal_scatter diff
        digamma dist div divide dot dropout dropout_ dsplit dstack einsum embedding embedding_bag empty
        empty_like empty_strided eq equal erf erf_ erfc erfinv exp exp2 exp_ expm1 expm1_ eye
        feature_alpha_dropout feature_alpha_dropout_ feature_dropout fill fill_ fix flatten flip fliplr flipud
        float_power floor floor_ floor_divide fmax fmin fmod frac frexp full full_like gather gcd ge ger
        gradient greater greater_equal grid_sampler grid_sampler_2d grid_sampler_3d group_norm gt hamming_window
        hann_window hardshrink heaviside histc histogram hsplit hstack hypot i0 igamma igammac imag index_add
        index_fill index_put index_put_ index_reduce index_select inner instance_norm inverse is_complex is_conj
        is_floating_point is_neg is_nonzero is_same_size is_signed isclose isfinite isin isinf isnan isneginf
        isposinf isreal istft kaiser_window kron kthvalue layer_norm lcm ldexp le lerp less less_equal lgamma
        linspace log log10 log10_ log1p log1p_ log2 log2_ log_ log_softmax logaddexp logaddexp2 logcumsumexp
        logdet logical_and logical_not logical_or logical_xor logit logspace logsumexp lt lu_solve lu_unpack
        masked_fill masked_scatter masked_select matmul matrix_exp matrix_power max max_pool1d
        max_pool1d_with_indices max_pool2d max_pool3d maximum mean median meshgrid min minimum mm moveaxis
        movedim msort mul multinomial multiply mv mvlgamma nan_to_num nan_to_num_ nanmean nanmedian nanquantile
        nansum narrow native_batch_norm native_channel_shuffle native_dropout native_group_norm
        native_layer_norm native_norm ne neg neg_ negative nextafter nonzero norm normal not_equal numel ones
        ones_like outer pairwise_distance pdist permute pinverse pixel_shuffle pixel_unshuffle poisson polar
        polygamma positive pow prelu prod promote_types put quantile rad2deg rand rand_like randint randint_like
        randn randn_like randperm ravel real reciprocal reciprocal_ relu relu_ remainder renorm
        repeat_interleave reshape resolve_conj resolve_neg result_type rms_norm roll rot90 round round_
        row_stack rrelu rrelu_ rsqrt rsqrt_ rsub scalar_tensor scatter scatter_add scatter_reduce searchsorted
        select select_scatter selu selu_ sgn sigmoid sigmoid_ sign signbit sin sin_ sinc sinh sinh_
        slice_scatter slogdet softmax sort split split_with_sizes sqrt sqrt_ square square_ squeeze stack std
        std_mean stft sub subtract sum svd swapaxes swapdims sym_float sym_int sym_max sym_min sym_not sym_sqrt
        t take take_along_dim tan tan_ tanh tanh_ tensor tensor_split tensordot threshold threshold_ tile topk
        trace transpose trapezoid trapz triangular_solve tril tril_indices triu triu_indices true_divide trunc
        trunc_ unbind unflatten unique_consecutive unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze
        vander var var_mean vdot view_as_complex view_as_real vsplit vstack where xlogy zero_ zeros zeros_like
        _weight_norm
    """),
    "torch.functional": _words("""
        atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors cartesian_prod cdist einsum istft lu
        meshgrid norm split stft tensordot unique unique_consecutive
    """),
    "torch.nn.functional": _words("""
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
        adaptive_max_pool1d_with_indices adaptive_max_pool2d adaptive_max_pool2d_with_indices
        adaptive_max_pool3d adaptive_max_pool3d_with_indices affine_grid alpha_dropout avg_pool1d avg_pool2d
        avg_pool3d batch_norm bilinear binary_cross_entropy binary_cross_entropy_with_logits celu celu_
        channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
        cosine_embedding_loss cosine_similarity cross_entropy dropout dropout1d dropout2d dropout3d elu elu_
        embedding embedding_bag feature_alpha_dropout fold fractional_max_pool2d
        fractional_max_pool2d_with_indices fractional_max_pool3d fractional_max_pool3d_with_indices
        gaussian_nll_loss gelu glu grid_sample group_norm gumbel_softmax hardshrink hardsigmoid hardswish
        hardtanh hardtanh_ hinge_embedding_loss huber_loss instance_norm interpolate kl_div l1_loss layer_norm
        leaky_relu leaky_relu_ linear local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d lp_pool3d
        margin_ranking_loss max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d
        max_pool3d_with_indices max_unpool1d max_unpool2d max_unpool3d mish mse_loss multi_margin_loss
        multilabel_margin_loss multilabel_soft_margin_loss native_channel_shuffle nll_loss normalize one_hot pad
        pairwise_distance pdist pixel_shuffle pixel_unshuffle poisson_nll_loss prelu relu relu6 relu_ rms_norm
        rrelu rrelu_ scaled_dot_product_attention selu selu_ sigmoid silu smooth_l1_loss soft_margin_loss
        softmax softmin softplus softshrink softsign tanh tanhshrink threshold threshold_ triplet_margin_loss
        unfold upsample upsample_bilinear upsample_nearest
    """),
    "torch._C._nn": _words("""
        adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d avg_pool2d avg_pool3d
        col2im elu elu_ gelu gelu_ glu hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_ im2col
        leaky_relu leaky_relu_ linear log_sigmoid max_pool2d_with_indices max_pool3d_with_indices max_unpool2d
        max_unpool3d mish mish_ one_hot pad pad_sequence reflection_pad1d reflection_pad2d reflection_pad3d
        relu6 relu6_ replication_pad1d replication_pad2d replication_pad3d scaled_dot_product_attention silu
        silu_ softplus softshrink upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
        upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    """),
    "torch._C._fft": _words("""
        fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2
        fft_ifftn fft_ifftshift fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft
        fft_rfft2 fft_rfftfreq fft_rfftn
    """),
    "torch._C._linalg": _words("""
        linalg_cholesky linalg_cholesky_ex linalg_cond linalg_cross linalg_det linalg_diagonal linalg_eig
        linalg_eigh linalg_eigvals linalg_eigvalsh linalg_householder_product linalg_inv linalg_inv_ex
        linalg_ldl_factor linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq linalg_lu linalg_lu_factor
        linalg_lu_factor_ex linalg_lu_solve linalg_matmul linalg_matrix_exp linalg_matrix_norm
        linalg_matrix_power linalg_matrix_rank linalg_matrix_sqrth linalg_multi_dot linalg_norm linalg_pinv
        linalg_polar linalg_qr linalg_slogdet linalg_solve linalg_solve_ex linalg_solve_triangular linalg_svd
        linalg_svdvals linalg_tensorinv linalg_tensorsolve linalg_vander linalg_vecdot linalg_vector_norm
    """),
    "torch._C._special": _words("""
        special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1
        special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_chebyshev_polynomial_v
        special_chebyshev_polynomial_w special_digamma special_entr special_erf special_erfc special_erfcx
        special_erfinv special_exp2 special_expit special_expm1 special_gammainc special_gammaincc
        special_gammaln special_hermite_polynomial_h special_hermite_polynomial_he special_i0 special_i0e
        special_i1 special_i1e special_laguerre_polynomial_l special_legendre_polynomial_p special_log1p
        special_log_ndtr special_log_softmax special_logit special_logsumexp special_modified_bessel_i0
        special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1 special_multigammaln
        special_ndtr special_ndtri special_polygamma special_psi special_round special_scaled_modified_bessel_k0
        special_scaled_modified_bessel_k1 special_shifted_chebyshev_polynomial_t
        special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v
        special_shifted_chebyshev_polynomial_w special_sinc special_softmax special_spherical_bessel_j0
        special_xlog1py special_xlogy special_zeta
    """),
    "_operator": _words("""
        abs add and_ concat contains eq floordiv ge getitem gt iadd iand ifloordiv ilshift imatmul imod imul inv
        invert ior ipow irshift is_ is_not isub itruediv ixor le lshift lt matmul mod mul ne neg not_ or_ pos
        pow rshift sub truediv truth xor
    """),
    "math": _words("""
        acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh degrees erf erfc exp exp2 expm1 fabs
        floor fmod gcd hypot isclose isfinite isinf isnan isqrt lcm ldexp log log10 log1p log2 pow prod radians
        remainder sin sinh sqrt tan tanh trunc
    """),
    "torchvision.ops.stochastic_depth": _words("stochastic_depth"),
    "torchvision.ops.drop_block": _words("drop_block2d drop_block3d"),
    "torchvision.models.swin_transformer": _words("""
        _get_relative_position_bias _patch_merging_pad shifted_window_attention
    """),
    "torchvision.models.video.mvit": _words("_add_rel_pos _add_shortcut _squeeze _unsqueeze"),
    "torchvision.models.video.swin_transformer": _words("""
        _compute_attention_mask_3d _compute_pad_size_3d _get_relative_position_bias _get_window_and_shift_size
        shifted_window_attention_3d
    """),
}

# operators of ATen, as torch.export writes them; in place too, with a trailing underscore
ATEN = (
    FUNCTIONS["torch"]
    | FUNCTIONS["torch._C._nn"]
    | FUNCTIONS["torch._C._fft"]
    | FUNCTIONS["torch._C._linalg"]
    | FUNCTIONS["torch._C._special"]
    | _words("""
        adaptive_avg_pool1d alias contiguous copy copy_ expand expand_as lift_fresh lift_fresh_copy new_empty new_full
        new_ones new_zeros repeat reshape_as scalar_tensor slice sym_numel sym_size sym_storage_offset sym_stride
        to type_as unfold view view_as _adaptive_avg_pool2d _adaptive_avg_pool3d _local_scalar_dense _log_softmax
        _scaled_dot_product_flash_attention_for_cpu _softmax _to_copy _unsafe_index _unsafe_view
    """)
)

# Python's own, looked up in builtins
BUILTINS = _words("getattr int float bool len max min abs round")

# methods of torch.Tensor
METHODS = _words("""
    abs abs_ absolute absolute_ acos acos_ acosh acosh_ add add_ addbmm addbmm_ addcdiv addcdiv_ addcmul
    addcmul_ addmm addmm_ addmv addmv_ addr addr_ adjoint all allclose amax amin aminmax angle any arccos
    arccos_ arccosh arccosh_ arcsin arcsin_ arcsinh arcsinh_ arctan arctan2 arctan2_ arctan_ arctanh
    arctanh_ argmax argmin argsort argwhere as_strided as_strided_ as_strided_scatter asin asin_ asinh
    asinh_ atan atan2 atan2_ atan_ atanh atanh_ baddbmm baddbmm_ bernoulli bernoulli_ bfloat16 bincount
    bitwise_and bitwise_and_ bitwise_left_shift bitwise_left_shift_ bitwise_not bitwise_not_ bitwise_or
    bitwise_or_ bitwise_right_shift bitwise_right_shift_ bitwise_xor bitwise_xor_ bmm bool broadcast_to byte
    cauchy_ cdouble ceil ceil_ cfloat chalf char cholesky_inverse cholesky_solve chunk clamp clamp_
    clamp_max clamp_max_ clamp_min clamp_min_ clip clip_ clone conj conj_physical conj_physical_ contiguous
    copy_ copysign copysign_ corrcoef cos cos_ cosh cosh_ count_nonzero cov cpu cross cuda cummax cummin
    cumprod cumprod_ cumsum cumsum_ deg2rad deg2rad_ det detach detach_ diag diag_embed diagflat diagonal
    diagonal_scatter diff digamma digamma_ dim dist div div_ divide divide_ dot double dsplit element_size
    eq eq_ equal erf erf_ erfc erfc_ erfinv erfinv_ exp exp2 exp2_ exp_ expand expand_as expm1 expm1_
    exponential_ fill_ fill_diagonal_ fix fix_ flatten flip fliplr flipud float float_power float_power_
    floor floor_ floor_divide floor_divide_ fmax fmin fmod fmod_ frac frac_ frexp gather gcd gcd_ ge ge_
    geometric_ ger greater greater_ greater_equal greater_equal_ gt gt_ half hardshrink heaviside heaviside_
    histc histogram hsplit hypot hypot_ i0 i0_ igamma igamma_ igammac igammac_ index index_add index_add_
    index_copy index_copy_ index_fill index_fill_ index_put index_put_ index_reduce index_reduce_
    index_select inner int inverse is_complex is_conj is_contiguous is_floating_point is_neg is_nonzero
    is_same_size is_signed isclose isfinite isinf isnan isneginf isposinf isreal istft item kron kthvalue
    lcm lcm_ ldexp ldexp_ le le_ lerp lerp_ less less_ less_equal less_equal_ lgamma lgamma_ log log10
    log10_ log1p log1p_ log2 log2_ log_ log_normal_ log_softmax logaddexp logaddexp2 logcumsumexp logdet
    logical_and logical_and_ logical_not logical_not_ logical_or logical_or_ logical_xor logical_xor_ logit
    logit_ logsumexp long lt lt_ lu_solve masked_fill masked_fill_ masked_scatter masked_scatter_
    masked_select matmul matrix_exp matrix_power max maximum mean median min minimum mm mode moveaxis
    movedim msort mul mul_ multinomial multiply multiply_ mv mvlgamma mvlgamma_ nan_to_num nan_to_num_
    nanmean nanmedian nanquantile nansum narrow narrow_copy ndimension ne ne_ neg neg_ negative negative_
    nelement new_empty new_full new_ones new_tensor new_zeros nextafter nextafter_ nonzero norm normal_
    not_equal not_equal_ numel outer permute pinverse polygamma polygamma_ positive pow pow_ prelu prod put
    put_ quantile rad2deg rad2deg_ random_ ravel reciprocal reciprocal_ relu relu_ remainder remainder_
    renorm renorm_ repeat repeat_interleave requires_grad_ reshape reshape_as resize resize_ resize_as
    resize_as_ resolve_conj resolve_neg roll rot90 round round_ rsqrt rsqrt_ scatter scatter_ scatter_add
    scatter_add_ scatter_reduce scatter_reduce_ select select_scatter sgn sgn_ short sigmoid sigmoid_ sign
    sign_ signbit sin sin_ sinc sinc_ sinh sinh_ size slice_scatter slogdet softmax sort split
    split_with_sizes sqrt sqrt_ square square_ squeeze squeeze_ std stft sub sub_ subtract subtract_ sum
    sum_to_size svd swapaxes swapaxes_ swapdims swapdims_ t t_ take take_along_dim tan tan_ tanh tanh_
    tensor_split tile to topk trace transpose transpose_ triangular_solve tril tril_ triu triu_ true_divide
    true_divide_ trunc trunc_ type type_as unbind unflatten unfold uniform_ unique unique_consecutive unsafe_chunk
    unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_ var vdot view view_as vsplit where xlogy
    xlogy_ zero_
""")

# what getattr may read, of a tensor or of what a function returned
ATTRIBUTES = _words("""
    D H L LU Q R S T U V Vh bin_edges data device dtype eigenvalues eigenvectors exponent hist imag indices
    is_cpu is_cuda is_meta itemsize layout logabsdet mH mT mantissa nbytes ndim pivots real requires_grad shape
    sign solution values
""")

# leaf modules by the module that defines them
MODULES = {
    "torch.nn.modules.activation": _words("""
        CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish
        MultiheadAttention PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus
        Softshrink Softsign Tanh Tanhshrink Threshold
    """),
    "torch.nn.modules.batchnorm": _words("BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm"),
    "torch.nn.modules.channelshuffle": _words("ChannelShuffle"),
    "torch.nn.modules.conv": _words("Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d"),
    "torch.nn.modules.distance": _words("CosineSimilarity PairwiseDistance"),
    "torch.nn.modules.dropout": _words("AlphaDropout Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout"),
    "torch.nn.modules.flatten": _words("Flatten Unflatten"),
    "torch.nn.modules.fold": _words("Fold Unfold"),
    "torch.nn.modules.instancenorm": _words("InstanceNorm1d InstanceNorm2d InstanceNorm3d"),
    "torch.nn.modules.linear": _words("Bilinear Identity Linear"),
    "torch.nn.modules.normalization": _words("CrossMapLRN2d GroupNorm LayerNorm LocalResponseNorm RMSNorm"),
    "torch.nn.modules.padding": _words("""
        CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d
        ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d ZeroPad1d ZeroPad2d
        ZeroPad3d
    """),
    "torch.nn.modules.pixelshuffle": _words("PixelShuffle PixelUnshuffle"),
    "torch.nn.modules.pooling": _words("""
        AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d
        AdaptiveMaxPool3d AvgPool1d AvgPool2d AvgPool3d FractionalMaxPool2d FractionalMaxPool3d LPPool1d
        LPPool2d LPPool3d MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d MaxUnpool2d MaxUnpool3d
    """),
    "torch.nn.modules.rnn": _words("GRU GRUCell LSTM LSTMCell RNN RNNCell"),
    "torch.nn.modules.sparse": _words("Embedding EmbeddingBag"),
    "torch.nn.modules.upsampling": _words("Upsample UpsamplingBilinear2d UpsamplingNearest2d"),
    "torchvision.ops.misc": _words("FrozenBatchNorm2d Permute"),
    "torchvision.ops.stochastic_depth": _words("StochasticDepth"),
    "torchvision.ops.drop_block": _words("DropBlock2d DropBlock3d"),
}
