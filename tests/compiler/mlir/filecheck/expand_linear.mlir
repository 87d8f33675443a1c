// RUN: analogc opt --passes 'expand-analog,canonicalize,cse' %s | filecheck %s

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

// CHECK-DAG: #[[X:.+]] = affine_map<(d0, d1, d2) -> (d0, d2)>
// CHECK-DAG: #[[W:.+]] = affine_map<(d0, d1, d2) -> (d1, d2)>
// CHECK-DAG: #[[Y:.+]] = affine_map<(d0, d1, d2) -> (d0, d1)>
// CHECK-LABEL: func.func @main(
// CHECK-DAG: %[[LEVELS:.+]] = arith.constant 1.270000e+02 : f32
// CHECK-DAG: %[[LOW:.+]] = arith.constant -1.270000e+02 : f32
// The weight scale is the abs-max of each column.
// CHECK: math.absf
// CHECK: arith.maximumf
// CHECK: arith.divf
// DAC: round half to even, clip, a NaN stays.
// CHECK: %[[STEP:.+]] = arith.divf %[[LEVELS]], %{{.+}} : f32
// CHECK-NEXT: %[[SCALED:.+]] = arith.mulf %{{.+}}, %[[STEP]] : f32
// CHECK-NEXT: %[[CODE:.+]] = math.roundeven %[[SCALED]] : f32
// CHECK-NEXT: %[[LIFTED:.+]] = arith.maximumf %[[CODE]], %[[LOW]] : f32
// CHECK-NEXT: %[[CLIPPED:.+]] = arith.minimumf %[[LIFTED]], %[[LEVELS]] : f32
// CHECK-NEXT: arith.divf %[[CLIPPED]], %[[LEVELS]] : f32
// One product for all columns of a row block.
// CHECK: linalg.generic {indexing_maps = [#[[X]], #[[W]], #[[Y]]], iterator_types = ["parallel", "parallel", "reduction"]} ins(%{{.+}}, %{{.+}} : tensor<?x4xf32>, tensor<5x4xf32>)
// CHECK: math.roundeven
// CHECK: linalg.generic {indexing_maps = [#[[X]], #[[W]], #[[Y]]], {{.*}} ins(%{{.+}}, %{{.+}} : tensor<?x3xf32>, tensor<5x3xf32>)
// CHECK: math.roundeven
// CHECK-NOT: analog.
