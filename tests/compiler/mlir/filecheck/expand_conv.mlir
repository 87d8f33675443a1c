// RUN: analogc opt --passes 'expand-analog,canonicalize,cse' %s | filecheck %s

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

// A convolution stays one, also where a row block ends inside a channel.
// CHECK-DAG: #[[X:.+]] = affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d0, d4, d2 + d5, d3 * 2 + d6)>
// CHECK-DAG: #[[W:.+]] = affine_map<(d0, d1, d2, d3, d4, d5, d6) -> (d1, d4, d5, d6)>
// CHECK-LABEL: func.func @main(
// The first block has 20 of 27 rows of three channels; the rest of its kernel is zero.
// CHECK: tensor.extract_slice %arg0[0, 0, 0, 0] [%{{.+}}, 3, 6, %{{.+}}]
// CHECK: %[[ROWS:.+]] = tensor.extract_slice %{{.+}}[0, 0] [6, 20]
// CHECK: tensor.pad %[[ROWS]] low[0, 0] high[0, 7]
// CHECK: tensor.expand_shape {{.*}} into tensor<6x3x3x3xf32>
// CHECK: linalg.generic {indexing_maps = [#[[X]], #[[W]], #{{.+}}], iterator_types = ["parallel", "parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]}
// The second begins two rows before channel 3.
// CHECK: tensor.extract_slice %arg0[0, 2, 0, 0] [%{{.+}}, 2, 6, %{{.+}}]
// CHECK: tensor.pad %{{.+}} low[0, 2] high[0, 0]
// CHECK: linalg.generic {indexing_maps = [#[[X]], #[[W]], #{{.+}}]
// CHECK-NOT: analog.
