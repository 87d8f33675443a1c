// RUN: analogc opt --passes 'split-to-tiles,canonicalize,cse' %s | filecheck %s

func.func @main(%x: tensor<?x4x6x?xf32>, %w: tensor<6x4x3x3xf32>, %in: tensor<2xf32>, %adc: tensor<2xf32>)
    -> tensor<?x6x6x?xf32> {
  %y = "analog.conv"(%x, %w, %in, %adc) {
    stride = array<i64: 1, 2>, padding = array<i64: 1, 0>, dilation = array<i64: 1, 1>, groups = 1,
    dac = #analog.converter<8, "calibrated", {per_column = false}>,
    adc = #analog.converter<8, "calibrated", {per_column = false}>,
    rows = array<i64: 0, 20, 36>, weight_scale = "column", device = #analog.device<"ideal", {}>,
    settings = {output_noise = 0.0},
    mapping = #analog.mapping<"conv1", "conv1", {col_bounds = array<i64: 0, 6>, first_tile = 0,
                                                 tile_rows = 32, tile_cols = 8}>,
    operandSegmentSizes = array<i32: 1, 1, 0, 0, 1, 1>
  } : (tensor<?x4x6x?xf32>, tensor<6x4x3x3xf32>, tensor<2xf32>, tensor<2xf32>) -> tensor<?x6x6x?xf32>
  return %y : tensor<?x6x6x?xf32>
}

// A row block ends inside a channel: patches.
// CHECK: affine_map<(d0, d1, d2, d3, d4, d5) -> (d0, d3, d1 + d4, d2 * 2 + d5)>
// CHECK-LABEL: func.func @main(
// CHECK: tensor.pad %{{.+}} low[0, 0, 1, 0] high[0, 0, 1, 0]
// CHECK: %[[PATCHES:.+]] = tensor.collapse_shape {{.*}} into tensor<?x6x?x36xf32>
// CHECK: tensor.extract_slice %[[PATCHES]][0, 0, 0, 0] [%{{.+}}, 6, %{{.+}}, 20]
// CHECK: "analog.dac"({{.*}} -> tensor<?x6x?x20xf32>
// CHECK: tile_id = 0 : i64{{.*}} -> !analog.tile<20 : i64, 6 : i64>
// CHECK: "analog.mvm"({{.*}} -> tensor<?x6x?x6xf32>
// CHECK: "analog.adc"({{.*}}axis = 3 : i64
// CHECK: tile_id = 1 : i64{{.*}} -> !analog.tile<16 : i64, 6 : i64>
// CHECK: "analog.accumulate"({{.*}}axis = 3 : i64
// CHECK: return %{{.+}} : tensor<?x6x6x?xf32>
// CHECK-NOT: conv_mvm
