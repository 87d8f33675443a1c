// RUN: analogc opt --passes 'expand-analog,canonicalize,cse' %s | filecheck %s

func.func @main(%x: tensor<?x4x6x?xf32>, %w: tensor<6x2x3x3xf32>, %in: tensor<2xf32>, %adc: tensor<2xf32>)
    -> tensor<?x6x6x?xf32> {
  %y = "analog.conv"(%x, %w, %in, %adc) {
    stride = array<i64: 1, 2>, padding = array<i64: 1, 0>, dilation = array<i64: 1, 1>, groups = 2,
    dac = #analog.converter<8, "calibrated", {per_column = false}>,
    adc = #analog.converter<8, "calibrated", {per_column = false}>,
    rows = array<i64: 0, 9, 18>, weight_scale = "column", device = #analog.device<"ideal", {}>,
    settings = {output_noise = 0.0},
    mapping = #analog.mapping<"conv1", "conv1", {col_bounds = array<i64: 0, 3>, first_tile = 0,
                                                 tile_rows = 32, tile_cols = 8}>,
    operandSegmentSizes = array<i32: 1, 1, 0, 0, 1, 1>
  } : (tensor<?x4x6x?xf32>, tensor<6x2x3x3xf32>, tensor<2xf32>, tensor<2xf32>) -> tensor<?x6x6x?xf32>
  return %y : tensor<?x6x6x?xf32>
}

// All groups in one product for each row block.
// CHECK-DAG: affine_map<(d0, d1, d2, d3, d4, d5, d6, d7) -> (d0, d1, d5, d3 + d6, d4 * 2 + d7)>
// CHECK-DAG: affine_map<(d0, d1, d2, d3, d4, d5, d6, d7) -> (d1, d2, d5, d6, d7)>
// CHECK-LABEL: func.func @main(
// CHECK: tensor.expand_shape %arg0 {{.*}} into tensor<?x2x2x6x?xf32>
// CHECK-COUNT-2: iterator_types = ["parallel", "parallel", "parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]
// CHECK: tensor.collapse_shape {{.*}} into tensor<?x6x6x?xf32>
// CHECK-NOT: analog.
