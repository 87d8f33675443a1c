// RUN: analogc opt --passes 'expand-analog,canonicalize,cse' %s | filecheck %s

func.func @main(%x: tensor<?x7xf32>, %w: tensor<5x7xf32>, %bias: tensor<5xf32>,
                %adc: tensor<2x5xf32>) -> tensor<?x5xf32> {
  %y = "analog.linear"(%x, %w, %bias, %adc) {
    dac = #analog.converter<8, "dynamic", {per_column = false}>, adc = #analog.converter<6, "calibrated", {per_column = true}>,
    rows = array<i64: 0, 4, 7>, weight_scale = "column", device = #analog.device<"ideal", {}>,
    settings = {output_noise = 0.0},
    mapping = #analog.mapping<"fc1", "fc1", {col_bounds = array<i64: 0, 3, 5>, first_tile = 10,
                                             tile_rows = 4, tile_cols = 4}>,
    operandSegmentSizes = array<i32: 1, 1, 0, 1, 0, 1>
  } : (tensor<?x7xf32>, tensor<5x7xf32>, tensor<5xf32>, tensor<2x5xf32>) -> tensor<?x5xf32>
  return %y : tensor<?x5xf32>
}

// CHECK-LABEL: func.func @main(
// The range is the abs-max of each vector, and 1 for a vector of zeros.
// CHECK: linalg.generic {{.*}}"reduction"]} ins(%[[PART:.+]] : tensor<?x4xf32>) outs(%{{.+}} : tensor<?xf32>)
// CHECK: arith.select
// CHECK: ins(%[[PART]], %{{.+}} : tensor<?x4xf32>, tensor<?x1xf32>)
// CHECK: math.roundeven
// CHECK-NOT: analog.
