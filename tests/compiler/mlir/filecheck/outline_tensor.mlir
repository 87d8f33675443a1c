// RUN: analogc opt --passes 'outline-analog-to-calls' %s | filecheck %s

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

// CHECK: func.func private @analog.fc1(tensor<?x7xf32>, tensor<5x7xf32>, tensor<5xf32>, tensor<2xf32>, tensor<2x5xf32>) -> tensor<?x5xf32>
// CHECK-SAME: analog.attributes = {
// CHECK-SAME: mapping = #analog.mapping<"fc1", "fc1",
// CHECK-SAME: analog.layer = "fc1", analog.op = "analog.linear"
// CHECK: func.func @main(
// CHECK-NEXT: %[[Y:.+]] = call @analog.fc1(%arg0, %arg1, %arg2, %arg3, %arg4)
// CHECK-NEXT: return %[[Y]]
