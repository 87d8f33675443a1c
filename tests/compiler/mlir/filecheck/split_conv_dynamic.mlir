// RUN: analogc opt --passes 'split-to-tiles,canonicalize,cse' %s | filecheck %s

func.func @main(%x: tensor<?x4x6x?xf32>, %w: tensor<6x4x3x3xf32>, %adc: tensor<2xf32>)
    -> tensor<?x6x6x?xf32> {
  %y = "analog.conv"(%x, %w, %adc) {
    stride = array<i64: 1, 2>, padding = array<i64: 1, 0>, dilation = array<i64: 1, 1>, groups = 1,
    dac = #analog.converter<8, "dynamic", {per_column = false}>,
    adc = #analog.converter<8, "calibrated", {per_column = false}>,
    rows = array<i64: 0, 18, 36>, weight_scale = "column", device = #analog.device<"ideal", {}>,
    settings = {output_noise = 0.0},
    mapping = #analog.mapping<"conv1", "conv1", {col_bounds = array<i64: 0, 6>, first_tile = 0,
                                                 tile_rows = 32, tile_cols = 8}>,
    operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 1>
  } : (tensor<?x4x6x?xf32>, tensor<6x4x3x3xf32>, tensor<2xf32>) -> tensor<?x6x6x?xf32>
  return %y : tensor<?x6x6x?xf32>
}

// Each patch has a range of its own.
// CHECK-LABEL: func.func @main(
// CHECK: %[[PART:.+]] = tensor.extract_slice %{{.+}}[0, 0, 0, 0] [%{{.+}}, 6, %{{.+}}, 18]
// CHECK: %[[PEAK:.+]] = "analog.peak"(%[[PART]]) : (tensor<?x6x?x18xf32>) -> tensor<?x6x?x1xf32>
// CHECK: "analog.dac"(%[[PART]], %[[PEAK]])
// CHECK: %[[NEXT:.+]] = "analog.peak"
// CHECK: "analog.accumulate"(%{{.+}}, %{{.+}}, %[[PEAK]], %[[NEXT]], %{{.+}})
