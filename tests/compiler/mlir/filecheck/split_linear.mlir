// RUN: analogc opt --passes 'split-to-tiles,canonicalize,cse' %s | filecheck %s

func.func @main(%x: tensor<?x7xf32>, %w: tensor<5x7xf32>, %bias: tensor<5xf32>,
                %in: tensor<2xf32>, %adc: tensor<2x5xf32>) -> tensor<?x5xf32> {
  %y = "analog.linear"(%x, %w, %bias, %in, %adc) {
    dac = #analog.converter<8, "calibrated", {per_column = false}>, adc = #analog.converter<6, "calibrated", {per_column = true}>,
    rows = array<i64: 0, 4, 7>, weight_scale = "column", device = #analog.device<"ideal", {}>,
    settings = {output_noise = 0.0},
    mapping = #analog.mapping<"fc1", "fc1", {col_bounds = array<i64: 0, 3, 5>, first_tile = 10,
                                             tile_rows = 4, tile_cols = 4}>,
    operandSegmentSizes = array<i32: 1, 1, 0, 1, 1, 1>
  } : (tensor<?x7xf32>, tensor<5x7xf32>, tensor<5xf32>, tensor<2xf32>, tensor<2x5xf32>) -> tensor<?x5xf32>
  return %y : tensor<?x5xf32>
}

// CHECK-LABEL: func.func @main(
// CHECK-SAME: %[[X:[a-z0-9]+]]: tensor<?x7xf32>, %[[W:[a-z0-9]+]]: tensor<5x7xf32>
// CHECK: %[[SCALE:.+]] = "analog.scale"(%[[W]]) {weight_scale = "column"}
// The first row block: one DAC for both of its tiles.
// CHECK: %[[X0:.+]] = tensor.extract_slice %[[X]][0, 0] [%{{.+}}, 4] [1, 1]
// CHECK: %[[CODES0:.+]] = "analog.dac"(%[[X0]], %{{.+}}) {{.*}} -> tensor<?x4xf32>
// CHECK: %[[W00:.+]] = tensor.extract_slice %[[W]][0, 0] [3, 4] [1, 1]
// CHECK: %[[T00:.+]] = "analog.program"(%[[W00]], %{{.+}}) {array = "fc1", {{.*}}size = array<i64: 4, 4>, tile_id = 10 : i64, written = false} {{.*}} -> !analog.tile<4 : i64, 3 : i64>
// CHECK: %[[S00:.+]] = "analog.mvm"(%[[CODES0]], %[[T00]])
// CHECK: %[[A00:.+]] = "analog.adc"(%[[S00]], %{{.+}}) {axis = 1 : i64, {{.*}} -> tensor<?x3xf32>
// CHECK: tile_id = 11 : i64
// CHECK-SAME: !analog.tile<4 : i64, 2 : i64>
// CHECK: "analog.mvm"(%[[CODES0]]
// CHECK: %[[A01:.+]] = "analog.adc"
// The second.
// CHECK: %[[X1:.+]] = tensor.extract_slice %[[X]][0, 4] [%{{.+}}, 3] [1, 1]
// CHECK: "analog.dac"(%[[X1]]
// CHECK: tensor.extract_slice %[[W]][0, 4] [3, 3] [1, 1]
// CHECK: tile_id = 12 : i64
// CHECK: %[[A10:.+]] = "analog.adc"
// CHECK: tile_id = 13 : i64
// CHECK: %[[A11:.+]] = "analog.adc"
// Column blocks side by side.
// CHECK: %[[Y0:.+]] = "analog.accumulate"(%[[A00]], %[[A10]], {{.*}}array<i32: 2, 2, 1, 1>
// CHECK: %[[Y1:.+]] = "analog.accumulate"(%[[A01]], %[[A11]], {{.*}}array<i32: 2, 2, 1, 1>
// CHECK: tensor.insert_slice %[[Y0]] into %{{.+}}[0, 0] [%{{.+}}, 3]
// CHECK: tensor.insert_slice %[[Y1]] into %{{.+}}[0, 3] [%{{.+}}, 2]
// CHECK-NOT: analog.linear
