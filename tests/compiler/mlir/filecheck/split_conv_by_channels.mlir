// RUN: analogc opt --passes 'split-to-tiles,canonicalize,cse' %s | filecheck %s

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

// CHECK-LABEL: func.func @main(
// CHECK-SAME: %[[X:[a-z0-9]+]]: tensor<?x4x6x?xf32>
// Each group has tiles of its own; a row block is a slice of its channels.
// CHECK: %[[G0:.+]] = tensor.extract_slice %[[X]][0, 0, 0, 0] [%{{.+}}, 2, 6, %{{.+}}]
// CHECK: %[[C0:.+]] = tensor.extract_slice %[[G0]][0, 0, 0, 0] [%{{.+}}, 1, 6, %{{.+}}]
// CHECK: %[[CODES:.+]] = "analog.dac"(%[[C0]]
// CHECK: %[[TILE:.+]] = "analog.program"({{.*}}tile_id = 0 : i64{{.*}} -> !analog.tile<9 : i64, 3 : i64>
// CHECK: "analog.conv_mvm"(%[[CODES]], %[[TILE]]) {dilation = array<i64: 1, 1>, kernel = array<i64: 3, 3>, padding = array<i64: 1, 0>, {{.*}}stride = array<i64: 1, 2>}
// CHECK-SAME: -> tensor<?x3x6x?xf32>
// CHECK: "analog.adc"({{.*}}axis = 1 : i64
// CHECK: tensor.extract_slice %[[G0]][0, 1, 0, 0]
// CHECK: tile_id = 1 : i64
// CHECK: %[[Y0:.+]] = "analog.accumulate"
// CHECK: tensor.extract_slice %[[X]][0, 2, 0, 0] [%{{.+}}, 2, 6, %{{.+}}]
// CHECK: tile_id = 2 : i64
// CHECK: tile_id = 3 : i64
// CHECK: %[[Y1:.+]] = "analog.accumulate"
// CHECK: tensor.insert_slice %[[Y0]] into %{{.+}}[0, 0, 0, 0]
// CHECK: tensor.insert_slice %[[Y1]] into %{{.+}}[0, 3, 0, 0]
// CHECK-NOT: "analog.mvm"
