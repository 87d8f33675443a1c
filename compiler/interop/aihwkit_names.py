"""Names in the settings of aihwkit 1.2.0: members of enumerations (in the form of
``settings.word``) and settings that a target has no use for."""

MANAGEMENT = ("none", "absmax", "absmaxnpsum", "max", "constant", "averageabsmax")
BOUNDS = ("none", "iterative", "iterativeworstcase", "shift")
PASSES = (
    "ideal", "onepass", "posnegseparate", "posnegseparatedigitalsum", "splitmode", "bitwise",
)  # fmt: skip
CLIPS = ("none", "fixedvalue", "layergaussian", "averagechannelmax")
READS = ("none", "additiveconstant", "pcmread")

IO = (
    "inp_bound", "inp_noise", "inp_res", "inp_sto_round", "inp_asymmetry", "out_bound", "out_noise",
    "out_noise_std", "out_res", "out_sto_round", "out_scale", "out_asymmetry", "bound_management",
    "noise_management", "w_noise", "w_noise_type", "ir_drop", "ir_drop_g_ratio", "ir_drop_rs",
    "ir_drop_segments", "ir_drop_time_step_resolution_scale", "ir_drop_v_read", "adc_quantization",
    "ir_drop_integration_sum", "split_mode_bit_shift", "apply_xdep_pcm_read_noise", "adc_frequency",
    "xdep_pcm_read_noise_scale", "out_nonlinearity", "out_nonlinearity_std", "slope_calibration",
    "v_offset_std", "v_offset_w_min", "r_series", "w_read_asymmetry_dtod", "max_bm_factor",
    "max_bm_res", "bm_test_negative_bound", "nm_thres",
)  # fmt: skip
RANGES = (
    "init_std_alpha", "decay", "input_min_percentage", "manage_output_clipping",
    "output_min_percentage", "gradient_scale", "gradient_relative", "calibration_info",
)  # fmt: skip
TRAINING = (
    "std_dev", "per_batch_sample", "res", "sto_round", "dorefa_clip", "pdrop", "enable_during_test",
    "rel_to_actual_wmax", "assumed_wmax", "copy_last_column", "coeffs", "g_max", "pcm_zero_thres",
    "pcm_t_inference", "pcm_prob_at_reset", "pcm_prob_at_gmax", "pcm_prob_at_random", "pcm_t0",
    "remapped_wmax", "max_scale_range", "max_scale_ref",
)  # fmt: skip
